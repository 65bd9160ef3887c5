"""The formats that are fuzzed."""

QUANTIZED = ("awq", "gptq-order", "packed-zeros", "fbgemm", "bnb-nf4", "bnb-int8")
"""The Hugging Face formats of `quantized_folders`, each with other tensors of its own."""
NATIVE_KINDS = "native-kinds"
FORMATS = (
    *("pth", "safetensors", "hf-index", "hf-bin", "native", NATIVE_KINDS, "gguf"),
    *("peft", *QUANTIZED, "spinquant", "qlora", "meta-fp8", "gguf-blocks"),
    *("tokenizer.json", "tokenizer.model", "tiktoken", "template", "tokens", "dialogs"),
)
IN_PYTHON = ("pth", "safetensors", "gguf", "peft", "template")
"""Read in Python alone, where each line can be watched."""
