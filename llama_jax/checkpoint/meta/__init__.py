"""Meta's checkpoints: params.json and consolidated.NN.pth, in any number of shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llama_jax.checkpoint.blocks import Stored, same_bits
from llama_jax.checkpoint.files.messages import listed
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.huggingface.files import has_weights
from llama_jax.checkpoint.meta.names import check_count, check_names, cut_axis
from llama_jax.checkpoint.meta.params import (
    MULTIPLE_OF,
    MetaParams,
    asked_scaling,
    default_max_seq_len,
    read_params,
)
from llama_jax.checkpoint.meta.quantized import read_quantized
from llama_jax.checkpoint.meta.shards import (
    Shards,
    check_drift,
    check_dtypes,
    check_replicas,
    check_shapes,
    drift,
    open_shards,
)
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.checkpoint.published import matching
from llama_jax.checkpoint.rope_buffers import rope_warnings
from llama_jax.checkpoint.source import Source, StoredTensor, own_tokenizer
from llama_jax.config import Config
from llama_jax.tokenizer.folder import is_there
from llama_jax.weights.table import EMBEDDING, OUTPUT, WeightPath


def is_meta(path: str | Path) -> bool:
    """Whether a directory holds a checkpoint of Meta's, whole or not."""
    path = Path(path)
    if any(path.glob("consolidated.*.pth")):
        return True
    # Mistral's params.json lies beside whole folders of Hugging Face's: the weights tell.
    return is_there(path / "params.json") and not has_weights(path)


def open_meta(
    path: str | Path, *, max_seq_len: int | None = None, rope_factor: float | None = None
) -> Source:
    """Opens a checkpoint of Meta's, every name, shape and dtype in it checked.

    No weight is read but those that must be compared: replicas with each other, the output layer
    with the embedding. Meta's files say neither `max_seq_len` nor Llama 3.2's `rope_factor`; both
    are supplied, the notes say so, and an argument wins. A `rope_factor` of 1 leaves RoPE as is.
    """
    path = Path(path)
    if not is_there(path / "params.json"):
        raise ValueError(f"{path} has no params.json; copy it from where the weights came from")
    check_inside(path, path / "params.json")
    params = read_params(path / "params.json")
    config = params.config
    if rope_factor is not None:
        config = config.replace(rope_scaling=asked_scaling(rope_factor))
    shards, values, said_of_them = read_quantized(open_shards(path), params, config)
    check_names(shards, config, params.adapted)
    config, head_notes = _with_kv_heads(shards, params, config)
    config, width_notes = _with_width(shards, params, config)
    check_count(shards, config)
    if not params.says_vocab_size:
        config = config.replace(vocab_size=_vocab_size(shards, config.dim))
    config, tensors = _tensors(shards, config, values)
    if max_seq_len is not None or not params.says_max_seq_len:
        supplied = default_max_seq_len(config) if max_seq_len is None else max_seq_len
        config = config.replace(max_seq_len=supplied)
    notes = [*shards.notes, *params.notes, *head_notes, *width_notes, *said_of_them]
    if "vocab_size" in params.left_out:
        notes.append(f"vocab_size {config.vocab_size}, the embedding's: params.json leaves it out")
    notes += _notes(shards, params, config, max_seq_len, rope_factor)
    shared = path.resolve().parent / "tokenizer.model"  # LLaMA 1 and 2: one for all sizes
    tokenizer = own_tokenizer(path, shared)
    if tokenizer is not None and tokenizer.parent.resolve() == shared.parent:
        notes.append(f"the folder has no tokenizer of its own: {shared}, above it, is taken")
    return Source(
        path,
        "meta",
        config,
        tensors,
        tokenizer,
        shards.files,
        tuple(notes),
        rope_warnings(shards.frequencies, config, "params.json"),
    )


def _with_width(shards: Shards, params: MetaParams, config: Config) -> tuple[Config, list[str]]:
    """The config with the feed-forward width of the weights, where params.json leaves it open."""
    if "multiple_of" not in params.left_out:
        return config, []
    pieces = shards.pieces["layers.0.feed_forward.w1.weight"]
    rows = sum(piece.shape[0] for piece in pieces if piece.ndim == 2)
    if rows in (0, config.hidden_dim):
        return config, [f"multiple_of {MULTIPLE_OF} supplied, Meta's default: params.json has none"]
    note = (
        f"the feed-forward width is the weights', {rows}: params.json leaves multiple_of out, and "
        f"Meta's default, {MULTIPLE_OF}, would make it {config.hidden_dim}"
    )
    return config.replace(hidden_dim=rows), [note]


def _with_kv_heads(shards: Shards, params: MetaParams, config: Config) -> tuple[Config, list[str]]:
    """The config with the weights' key-value heads, where params.json leaves their number out.

    Meta's default is one for each query head. Files that share a head hold it twice, so their
    rows tell only where there are fewer files than heads.
    """
    pieces = shards.pieces["layers.0.attention.wk.weight"]
    heads, rest = divmod(sum(one.shape[0] for one in pieces if one.ndim == 2), config.head_dim)
    told = heads and not rest and config.n_heads % heads == 0
    shared = 1 < len(pieces) >= heads
    if "n_kv_heads" not in params.left_out or heads == config.n_heads or not told or shared:
        return config, []
    note = f"n_kv_heads {heads}, as the weights have it: params.json leaves it out"
    return config.replace(n_kv_heads=heads), [note]


def _vocab_size(shards: Shards, dim: int) -> int:
    """LLaMA 1 and 2 state -1; the embedding tells, whichever way it is cut."""
    pieces = shards.pieces["tok_embeddings.weight"]
    shape = pieces[0].shape
    if len(shape) == 2 and shape[1] == dim:
        return max(1, sum(piece.shape[0] for piece in pieces if piece.ndim))
    if len(shape) == 2 and shape[1] * len(pieces) == dim and shape[0]:
        return shape[0]
    raise ValueError(
        f"{shards.files[0]}: 'tok_embeddings.weight' has shape {list(shape)}, of which "
        f"{len(pieces)} cannot make [vocab_size, {dim}], as params.json has it (dim={dim})"
    )


def _tensors(
    shards: Shards, config: Config, values: Mapping[str, Stored]
) -> tuple[Config, dict[WeightPath, Stored]]:
    """Every weight, and the config told whether the output layer is the embedding.

    `values` are the quantized ones, by Meta's name.

    Any model's may be: Llama 3.2 1B's and 3B's files hold both, and so do small models of other
    makers. Equal bits make tying exact whoever wrote them, so no list of models is consulted.
    """
    if "output.weight" not in shards.pieces:
        if untied := matching(config):
            raise ValueError(
                f"{shards.files[0]} lacks 'output.weight', which {next(iter(untied))} has by its "
                "params.json; the file is damaged"
            )
        config = config.replace(tie_embeddings=True)
    tensors = {
        row.path: values.get(row.meta) or _stored(shards, row, config)
        for row in names_table(config)
    }
    if not config.tie_embeddings and "output.weight" not in values:
        embedding, output = tensors[EMBEDDING], tensors[OUTPUT]
        if embedding.dtype == output.dtype and same_bits(
            lambda rows: embedding[rows, :],
            lambda rows: output[:, rows].T,
            config.vocab_size,
            config.dim * embedding.dtype.itemsize,
        ):
            del tensors[OUTPUT]
            config = config.replace(tie_embeddings=True)
    return config, tensors


def _stored(shards: Shards, row: WeightNames, config: Config) -> StoredTensor:
    pieces, count = shards.pieces[row.meta], len(shards.files)
    whole = row.stored_shape
    check_dtypes(shards, row.meta)
    if len(whole) == 1:
        check_shapes(shards, row.meta, whole, whole)
        check_drift(shards, row.meta)
        return StoredTensor(pieces[:1], axis=0, transposed=False)
    if row.path == EMBEDDING:
        axis = 1 if pieces[0].shape[:1] == whole[:1] else 0
    else:
        axis = cut_axis(row)
    copies = 1
    if row.path[-1] in ("wk", "wv"):
        # With more ranks than key-value heads (405B: 16 and 8) neighbours hold the same head.
        repeated = pieces[0].shape[:1] == (whole[0] // config.n_kv_heads,)
        copies = count // config.n_kv_heads if repeated and count > config.n_kv_heads else 1
    part = list(whole)
    part[axis], rest = divmod(whole[axis] * copies, count)
    if rest:
        raise ValueError(
            f"{shards.files[0]}: {row.meta!r} has shape {list(pieces[0].shape)} where params.json "
            f"says {list(whole)} over all files, and {count} do not divide that; one of the two is "
            "damaged or belongs to another model"
        )
    check_shapes(shards, row.meta, tuple(part), whole)
    check_replicas(shards, row.meta, copies)
    return StoredTensor(pieces[::copies], axis, row.transposed)


def _notes(
    shards: Shards,
    params: MetaParams,
    config: Config,
    max_seq_len: int | None,
    rope_factor: float | None,
) -> tuple[str, ...]:
    notes = []
    if params.unknown_keys:
        notes.append(f"params.json has unknown keys, ignored: {listed(params.unknown_keys)}")
    if shards.buffers:
        notes.append(f"buffers skipped, which are no weights: {listed(shards.buffers)}")
    if apart := [row.meta for row in names_table(config) if drift(shards, row.meta)]:
        notes.append(f"the first file's is taken where copies differ a little: {listed(apart)}")
    if "output.weight" not in shards.pieces:
        notes.append("output.weight is not stored: the output layer is the embedding")
    elif config.tie_embeddings:
        notes.append("output.weight equals tok_embeddings.weight: tied, and kept once")
    if rope_factor == 1:
        notes.append("RoPE is not scaled, as asked")
    elif rope_factor is not None:
        notes.append(f"RoPE scaled by Llama 3.1's rule with a factor of {rope_factor:g}, as asked")
    elif params.lacks_rope_factor:
        notes.append(
            "RoPE factor 32 supplied: Llama 3.2 1B and 3B were trained with it, and neither "
            "params.json nor Meta's code carries it; pass rope_factor to change it"
        )
    if max_seq_len is None and not params.says_max_seq_len and not matching(config):
        notes.append(
            f"max_seq_len {config.max_seq_len} supplied: params.json does not say it, and the "
            "model is not a published one; pass max_seq_len to change it"
        )
    return tuple(notes)
