"""Meta's checkpoints: params.json and consolidated.NN.pth, in any number of shards."""

from __future__ import annotations

from pathlib import Path

from llama_jax.checkpoint.blocks import same_bits
from llama_jax.checkpoint.files.messages import listed, shorten
from llama_jax.checkpoint.files.safe_paths import check_inside
from llama_jax.checkpoint.meta.params import (
    MetaParams,
    asked_scaling,
    default_max_seq_len,
    read_params,
)
from llama_jax.checkpoint.meta.shards import (
    ROW_PARALLEL,
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
from llama_jax.checkpoint.source import Source, StoredTensor, own_tokenizer
from llama_jax.config import Config
from llama_jax.weights.table import EMBEDDING, OUTPUT, WeightPath


def is_meta(path: str | Path) -> bool:
    """Whether a directory holds a checkpoint of Meta's, whole or not."""
    path = Path(path)
    return (path / "params.json").is_file() or any(path.glob("consolidated.*.pth"))


def open_meta(
    path: str | Path, *, max_seq_len: int | None = None, rope_factor: float | None = None
) -> Source:
    """Opens a checkpoint of Meta's, every name, shape and dtype in it checked.

    No weight is read but those that must be compared: replicas with each other, the output layer
    with the embedding. Meta's files say neither `max_seq_len` nor Llama 3.2's `rope_factor`; both
    are supplied, the notes say so, and an argument wins. A `rope_factor` of 1 leaves RoPE as is.
    """
    path = Path(path)
    if not (path / "params.json").is_file():
        raise ValueError(f"{path} has no params.json; copy it from where the weights came from")
    check_inside(path, path / "params.json")
    params = read_params(path / "params.json")
    config = params.config
    if rope_factor is not None:
        config = config.replace(rope_scaling=asked_scaling(rope_factor))
    shards = open_shards(path)
    _check_names(shards, config, params.adapted)
    _check_count(shards, config)
    if not params.says_vocab_size:
        config = config.replace(vocab_size=_vocab_size(shards, config.dim))
    config, tensors = _tensors(shards, config)
    if max_seq_len is not None or not params.says_max_seq_len:
        supplied = default_max_seq_len(config) if max_seq_len is None else max_seq_len
        config = config.replace(max_seq_len=supplied)
    notes = _notes(shards, params, config, max_seq_len, rope_factor)
    shared = path.resolve().parent / "tokenizer.model"  # LLaMA 1 and 2: one for all sizes
    tokenizer = own_tokenizer(path, shared)
    return Source(path, "meta", config, tensors, tokenizer, shards.files, notes)


def _check_names(shards: Shards, config: Config, adapted: bool) -> None:
    found, file = shards.pieces, shards.files[0]
    said = f"params.json says n_layers={config.n_layers}"
    # Before the table is made: a number in a stranger's file must not decide how long it gets.
    if config.n_layers > len(found):
        raise ValueError(f"{file} holds {len(found)} tensors, too few for a model: {said}")
    expected = {row.meta for row in names_table(config)}
    # In the files' order, which is the model's: the first is the one to look at.
    unknown = [name for name in found if name not in expected]
    missing = [row.meta for row in names_table(config) if row.meta not in found]
    if unknown and adapted:
        raise ValueError(
            f"{file} is quantized or carries a LoRA adapter, as its params.json says and its "
            f"tensor {shorten(unknown[0])} shows; get the model's bfloat16 files"
        )
    if absent := [name for name in missing if name != "output.weight"]:
        raise ValueError(
            f"{file} lacks {listed(absent)}, and {said}; the file is damaged or not LLaMA"
        )
    if unknown:
        raise ValueError(
            f"{file} has {listed(unknown)}, unknown in a LLaMA model, and {said}; "
            "remove it if the model works without it"
        )


def _check_count(shards: Shards, config: Config) -> None:
    """Where the files fit each other but not their number, says how many there should be."""
    implied: set[int | None] = set()
    for row in names_table(config):
        if row.path[-1] in ("wq", "wo", "w1", "w2", "w3"):
            pieces, axis = shards.pieces[row.meta], _cut_axis(row)
            implied |= {_times(row.stored_shape, piece.shape, axis) for piece in pieces}
    here = len(shards.files)
    count = implied.pop() if len(implied) == 1 else None
    if count in (None, here):
        return  # all is well, or some tensors have wrong shapes and are named later
    way_out = (
        f"consolidated.{here:02}.pth is not there; copy or download it"
        if count is not None and count > here
        else "remove the files that belong to another model"
    )
    raise ValueError(
        f"{shards.files[0].parent} holds {here} files consolidated.NN.pth, and by the shapes in "
        f"them and params.json the model has {count}: {way_out}"
    )


def _cut_axis(row: WeightNames) -> int:
    """The axis of the files' [out, in] along which a matrix that is no embedding is cut."""
    return int(row.path[-1] in ROW_PARALLEL)


def _times(whole: tuple[int, ...], part: tuple[int, ...], axis: int) -> int | None:
    """How many of `part` along `axis` make the `whole`; None if no number does."""
    if len(part) != 2 or part[1 - axis] != whole[1 - axis] or not part[axis]:
        return None
    count, rest = divmod(whole[axis], part[axis])
    return None if rest else count


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


def _tensors(shards: Shards, config: Config) -> tuple[Config, dict[WeightPath, StoredTensor]]:
    """Every weight, and the config told whether the output layer is the embedding.

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
    tensors = {row.path: _stored(shards, row, config) for row in names_table(config)}
    if not config.tie_embeddings:
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
        axis = _cut_axis(row)
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
