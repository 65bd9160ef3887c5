"""A small sound checkpoint of every format that the project reads, and how each is read whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_file
import meta_folder
import meta_quantized
import numpy as np
import quantized_folders
import torch_zip
from dialog_kinds import KINDS, byte_folder
from fuzz import native_seeds
from fuzz.formats import NATIVE_KINDS, QUANTIZED
from hf_folder import SMALL, tensors_of, write_folder, write_safetensors
from small_tokenizers import sentencepiece_file, tiktoken_file

from llama_jax.checkpoint.adapters import with_adapter
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.checkpoint.source import Source
from llama_jax.tokenizer import load_tokenizer
from llama_jax.train.dialogs import example_of, read_dialogs
from llama_jax.train.token_folder import open_tokens
from llama_jax.train.tokens import tokenize

DIALOG = [
    {"role": "user", "content": "Who is Lily?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Why?"},
]


@dataclasses.dataclass(frozen=True)
class Seed:
    """A folder, the files of it that are changed, and what reads it."""

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], Any]


def make(root: Path) -> dict[str, Seed]:
    """The seeds by format, written below `root`."""
    config = meta_folder.config_of(_folder(root / "said"))
    states = meta_folder.cut(meta_folder.weights_of(config), 1)
    meta = meta_folder.write(root / "meta", states)
    hf = write_folder(root / "hf")
    convert(meta, root / "native")
    json_tokenizer = byte_folder(root / "tokenizer.json", KINDS["plain"][0])
    return {
        "pth": Seed(meta, ("consolidated.00.pth", "params.json"), read_weights),
        "safetensors": Seed(hf, ("model.safetensors", "config.json"), read_weights),
        "native": Seed(root / "native", native_seeds.FILES, read_weights),
        "gguf": Seed(gguf_folder(root / "gguf"), ("model.gguf",), read_gguf),
        **_quantized(root / "q"),
        "peft": Seed(_peft(root / "peft"), ("adapter_model.safetensors", PEFT), peft_on(hf)),
        "tokenizer.json": Seed(
            json_tokenizer, ("tokenizer.json", "tokenizer_config.json"), read_tokenizer
        ),
        "tokenizer.model": Seed(
            _of(root / "sp", sentencepiece_file()), ("tokenizer.model",), read_tokenizer
        ),
        "tiktoken": Seed(_of(root / "tt", tiktoken_file()), ("tokenizer.model",), read_tokenizer),
        **_several_files(root / "several"),
        **_for_training(root / "training"),
    }


def without_sums(seeds: dict[str, Seed], root: Path) -> dict[str, Seed]:
    """The seeds, with native checkpoints that state no sums: of arrays, and of every kind."""
    arrays, kinds = root / "native-arrays", root / NATIVE_KINDS
    native_seeds.arrays(seeds["native"].folder, arrays)
    files = native_seeds.kinds(seeds["pth"].folder, kinds)
    return {
        **seeds,
        "native": dataclasses.replace(seeds["native"], folder=arrays),
        NATIVE_KINDS: Seed(kinds, files, read_weights),
    }


def _several_files(root: Path) -> dict[str, Seed]:
    """Hugging Face folders of two files and an index: safetensors, and torch's."""
    index, numbered = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
    folder, torch = write_folder(root / "index", files=2), write_folder(root / "bin")
    (torch / "model.safetensors").unlink()
    torch_zip.save(torch / "pytorch_model.bin", tensors_of(SMALL), prefix="pytorch_model")
    return {
        "hf-index": Seed(folder, (index, numbered), read_weights),
        "hf-bin": Seed(torch, ("pytorch_model.bin", "config.json"), read_weights),
    }


def _for_training(root: Path) -> dict[str, Seed]:
    """A folder of tokens, and dialogs."""
    (_folder(root) / "a.txt").write_text("Once upon a time\n\nthere was a llama\n\n" * 20)
    tokenizer = _of(root / "sp", sentencepiece_file()) / "tokenizer.model"
    tokenize([root / "a.txt"], tokenizer, root / "tokens", separator="\n\n", validation_every=4)
    said = [{"messages": DIALOG}, {"prompt": "Who?", "completion": "A cat."}]
    said += [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    dialogs = _folder(root / "dialogs")
    (dialogs / "a.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in said))
    written = ("manifest.json", "train/starts.npy", "train/00000.bin")
    return {
        "tokens": Seed(root / "tokens", written, read_tokens),
        "dialogs": Seed(dialogs, ("a.jsonl",), read_dialogs_with(tokenizer)),
    }


def read_tokens(folder: Path) -> None:
    """Every token of a folder for training, and where each document starts."""
    found = open_tokens(folder, vocab_size=1000)
    for split in (found.train, *([found.validation] if found.validation else [])):
        split.read(0, len(split))
        split.document_starts().sum()


def read_dialogs_with(tokenizer: Path) -> Callable[[Path], None]:
    """What reads dialogs as examples to train on."""

    def read(folder: Path) -> None:
        known = load_tokenizer(tokenizer)
        for dialog, _ in read_dialogs([folder / "a.jsonl"]):
            example_of(dialog, known)

    return read


PEFT = "adapter_config.json"


def _quantized(root: Path) -> dict[str, Seed]:
    """Folders of quantized weights, and a GGUF file of every type of block."""
    seeds = {}
    for name in QUANTIZED:
        make, said, _ = quantized_folders.FORMATS[name]
        folder, _ = quantized_folders.written(_folder(root / name), make, said)
        seeds[name] = Seed(folder, ("model.safetensors", "config.json"), read_weights)
    spinquant, _ = meta_quantized.int4_folder(root / "spinquant", **meta_quantized.SPINQUANT)
    qlora, _ = meta_quantized.int4_folder(
        root / "qlora", adapters=True, zeros=True, **meta_quantized.QLORA
    )
    meta_quantized.fp8_folder(_folder(root / "fp8"), ranks=2)
    scales = ("fp8_scales_0.pt", "consolidated.01.pth", "params.json")
    (_folder(root / "blocks") / "model.gguf").write_bytes(gguf_file.of_every_type())
    return seeds | {
        "spinquant": Seed(spinquant, ("consolidated.00.pth", "params.json"), read_weights),
        "qlora": Seed(qlora, ("consolidated.00.pth", "params.json"), read_weights),
        "meta-fp8": Seed(root / "fp8", scales, read_weights),
        "gguf-blocks": Seed(
            root / "blocks", ("model.gguf",), lambda folder: read_weights(folder / "model.gguf")
        ),
    }


def read_weights(folder: Path) -> None:
    """Every weight, as a conversion would read it."""
    _read_all(open_checkpoint(folder))


def peft_on(base: Path) -> Callable[[Path], None]:
    """What reads an adapter of `base`."""
    return lambda folder: _read_all(with_adapter(open_checkpoint(base), folder))


def _read_all(source: Source) -> None:
    for tensor in source.tensors.values():
        tensor.read(tuple(slice(0, n) for n in tensor.shape), np.empty(tensor.shape, tensor.dtype))


def read_gguf(folder: Path) -> None:
    read_weights(folder / "model.gguf")
    read_tokenizer(folder / "model.gguf")


def read_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("Once upon a time </s> 🦙", bos=True, eos=True))
    tokenizer.encode_dialog(DIALOG)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _of(folder: Path, tokenizer: bytes) -> Path:
    (_folder(folder) / "tokenizer.model").write_bytes(tokenizer)
    return folder


def gguf_folder(folder: Path) -> Path:
    tokenizer = gguf_file.sentencepiece_metadata(sentencepiece_file())
    size = len(tokenizer["tokenizer.ggml.tokens"])
    metadata, tensors = gguf_file.small_model(vocab=size)
    (_folder(folder) / "model.gguf").write_bytes(
        gguf_file.gguf_bytes({**metadata, **tokenizer}, tensors)
    )
    return folder


def _peft(folder: Path) -> Path:
    wide, name = SMALL["hidden_size"], "base_model.model.model.layers.0.self_attn.q_proj"
    outputs = SMALL["num_attention_heads"] * SMALL["head_dim"]
    tensors = {
        f"{name}.lora_A.weight": np.ones((2, wide), np.float32),
        f"{name}.lora_B.weight": np.ones((outputs, 2), np.float32),
    }
    write_safetensors(_folder(folder) / "adapter_model.safetensors", tensors)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / PEFT).write_text(json.dumps(said))
    return folder
