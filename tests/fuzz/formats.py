"""The formats that are fuzzed."""

FORMATS = (
    *("pth", "safetensors", "native", "gguf", "peft"),
    *("tokenizer.json", "tokenizer.model", "tiktoken", "template"),
)
IN_PYTHON = ("pth", "safetensors", "gguf", "peft", "template")
"""Read in Python alone, where each line can be watched."""
