"""Whether the files hold the tensors that params.json implies, in as many files as that takes."""

from __future__ import annotations

from llama_jax.checkpoint.files.messages import listed, shorten
from llama_jax.checkpoint.foreign import kind_of
from llama_jax.checkpoint.meta.shards import ROW_PARALLEL, Shards
from llama_jax.checkpoint.names import WeightNames, names_table
from llama_jax.config import Config


def check_names(shards: Shards, config: Config, adapted: bool) -> None:
    """ValueError where tensors are missing or unknown; their names may show why."""
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
    if unknown and (kind := kind_of(unknown, expected)):
        raise ValueError(f"{file}: {kind}")
    if absent := [name for name in missing if name != "output.weight"]:
        raise ValueError(
            f"{file} lacks {listed(absent)}, and {said}; the file is damaged or not LLaMA"
        )
    if unknown:
        raise ValueError(
            f"{file} has {listed(unknown)}, unknown in a LLaMA model, and {said}; "
            "remove it if the model works without it"
        )


def check_count(shards: Shards, config: Config) -> None:
    """Where the files fit each other but not their number, says how many there should be."""
    implied: set[int | None] = set()
    for row in names_table(config):
        if row.path[-1] in ("wq", "wo", "w1", "w2", "w3"):
            pieces, axis = shards.pieces[row.meta], cut_axis(row)
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


def cut_axis(row: WeightNames) -> int:
    """The axis of the files' [out, in] along which a matrix that is no embedding is cut."""
    return int(row.path[-1] in ROW_PARALLEL)


def _times(whole: tuple[int, ...], part: tuple[int, ...], axis: int) -> int | None:
    """How many of `part` along `axis` make the `whole`; None if no number does."""
    if len(part) != 2 or part[1 - axis] != whole[1 - axis] or not part[axis]:
        return None
    count, rest = divmod(whole[axis], part[axis])
    return None if rest else count
