"""Hugging Face's checkpoints: config.json and safetensors, or torch's files before them."""

from __future__ import annotations

import re
from pathlib import Path

from llama_jax.checkpoint.blocks import same_bits
from llama_jax.checkpoint.dtypes import DTYPES
from llama_jax.checkpoint.files.json_file import read_object
from llama_jax.checkpoint.files.messages import listed, no_weight, shorten
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.huggingface.config import read_hf_config
from llama_jax.checkpoint.huggingface.files import HFTensors, has_weights, open_tensors
from llama_jax.checkpoint.huggingface.names import check_names, zero_biases
from llama_jax.checkpoint.huggingface.quantization import read_quantized, stated_beside
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.rope_buffers import rope_warnings
from llama_jax.checkpoint.source import Source, StoredTensor, own_tokenizer
from llama_jax.config import Config
from llama_jax.tokenizer.folder import is_there

_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
# Constants that transformers used to register as buffers; the model computes its own.
_BUFFER = re.compile(r"(model\.)?(layers\.[0-9]+\.self_attn\.)?rotary_emb\.[a-z_]+")


def is_hf(path: str | Path) -> bool:
    """Whether a directory holds a checkpoint in Hugging Face's format, whole or not."""
    path = Path(path)
    if has_weights(path):
        return True
    try:
        return (
            not read_object(path / "config.json").keys().isdisjoint(("model_type", "architectures"))
        )
    except (OSError, ValueError):
        return False


def open_hf(path: str | Path, *, max_seq_len: int | None = None) -> Source:
    """Opens a checkpoint in Hugging Face's format, every name, shape and dtype in it checked.

    No weight is read but the output layer and the embedding, where they may be one. `max_seq_len`
    stands in for `max_position_embeddings`.
    """
    path = Path(path)
    if not is_there(path / "config.json"):
        raise ValueError(f"{path} has no config.json; copy it from where the weights came from")
    check_inside(path, path / "config.json")
    said = read_hf_config(path / "config.json", max_seq_len)
    found = open_tensors(path)
    buffers = [name for name in found.arrays if _BUFFER.fullmatch(name)]
    notes = [*said.notes, *found.notes]
    if buffers:
        notes.append(f"buffers skipped, which are no weights: {listed(buffers)}")
    config = said.config
    # Before the table is made: a number in a stranger's file must not decide how long it gets.
    if config.n_layers > len(found.arrays):
        raise ValueError(
            f"{path} holds {len(found.arrays)} tensors, too few for a model: config.json says "
            f"num_hidden_layers={config.n_layers}"
        )
    if config.tie_embeddings:
        config, note = _tied(found, config)
        notes += [] if note is None else [note]
    how, file = said.quantization, path / "config.json"
    if said.quantized is None and (beside := stated_beside(path)):
        file, how = beside
    values, said_of_them = read_quantized(found, how, config, file)
    notes += [*said_of_them, *zero_biases(found, config)]
    check_names(path, found, said, config, buffers)
    if said.quantized is not None and not values:
        notes.append(f"{said.quantized} is out of date: the weights are plain floats, and are read")
    tensors = {
        row.path: values.get(row.hf) or _stored(found, row, config) for row in names_table(config)
    }
    stored = {name: found.arrays[name] for name in buffers if name.endswith("inv_freq")}
    return Source(
        path,
        "huggingface",
        config,
        tensors,
        own_tokenizer(path),
        found.files,
        tuple(notes),
        rope_warnings(stored, config, "config.json"),
    )


def _tied(found: HFTensors, config: Config) -> tuple[Config, str | None]:
    """The config, untied where both ends are stored and differ: transformers lets files win.

    And what is to be said of that; nothing where the files are as config.json has them.
    """
    if _OUTPUT not in found.arrays:
        return config, None
    if _EMBEDDING not in found.arrays:
        found.arrays[_EMBEDDING] = found.arrays[_OUTPUT]
        found.file_of[_EMBEDDING] = found.file_of[_OUTPUT]
        return config, None
    embedding, output = found.arrays[_EMBEDDING], found.arrays[_OUTPUT]
    alike = (embedding.dtype, embedding.shape) == (output.dtype, output.shape)
    if (
        alike
        and embedding.ndim == 2
        and same_bits(
            embedding.__getitem__,
            output.__getitem__,
            len(embedding),
            max(1, embedding[:1].nbytes),
        )
    ):
        return config, None
    return config.replace(tie_embeddings=False), (
        f"{_OUTPUT} differs from {_EMBEDDING}, although config.json says tie_word_embeddings: "
        "both are kept, untied, as transformers does"
    )


def _stored(found: HFTensors, row: WeightNames, config: Config) -> StoredTensor:
    array, where = found.arrays[row.hf], f"{found.file_of[row.hf]}: {shorten(row.hf)}"
    if array.dtype not in DTYPES.values():
        raise ValueError(f"{where} is {array.dtype}; {no_weight(array.dtype)}")
    if array.shape != row.stored_shape:
        raise ValueError(
            f"{where} has shape {list(array.shape)} where config.json says "
            f"{list(row.stored_shape)}; one of the two is damaged or belongs to another model"
        )
    heads = {"q": config.n_heads, "k": config.n_kv_heads}.get(row.path[-1][1:])
    return StoredTensor((array,), 0, row.transposed, half_split_heads=heads)
