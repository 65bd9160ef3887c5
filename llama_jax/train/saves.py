"""The states that a run saves: whole or absent, the newest kept, restored onto any mesh."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from llama_jax.checkpoint.files.messages import in_units
from llama_jax.train.agreement import all_of, largest_of
from llama_jax.train.state import TrainState

DAMAGED = ".damaged"
"""Ends the name of a state's folder that could not be read."""
_ITEM = "default"
"""Orbax's folder of the arrays in a state's folder."""


class Saves:
    """Saved states in a folder, by their step. Writing goes on while training does."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        import orbax.checkpoint as ocp  # takes a second to import
        from orbax.checkpoint.checkpoint_managers import preservation_policy

        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(keep),
            cleanup_tmp_directories=True,
            # Which steps are saved is the loop's decision.
            should_save_fn=lambda step, latest: True,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        # It reads for this process alone. The manager waits for all, of which one may have failed.
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
        handler = ocp.PyTreeCheckpointHandler()
        self._reader = ocp.Checkpointer(handler, multiprocessing_options=alone)
        self._folder = folder

    def save(self, state: TrainState) -> None:
        """Begins to write a state, once the one before is written.

        OSError where that one could not be written; the states written earlier stay.
        """
        args = self._ocp.args.PyTreeSave(_flat(state))
        with in_words("a state", self._folder):
            size = sum(x.nbytes for x in jax.tree.leaves(state))
            if shutil.disk_usage(self._folder).free < size:  # before Orbax begins, and not amidst
                raise OSError(f"it takes {in_units(size)}, and the disk has less free")
            self._manager.save(int(state.step), args=args)

    def newest(self, template: TrainState, told: Callable[[str], None]) -> TrainState | None:
        """The newest state that is whole, laid out as `template`, or None where there is none.

        `template` has shapes and shardings. A state that any process cannot read is passed over by
        all, and `told` why; its folder is renamed, and nothing reads it again.
        """
        while (step := self._newest_step()) >= 0:
            state, why = self._tried(step, template)
            if all_of(state is not None):
                return state
            why = why or "another process cannot read its part"
            told(f"the state saved at step {step} cannot be read ({why}): kept as {step}{DAMAGED}")
            self._set_aside(step)
        return None

    def _newest_step(self) -> int:
        """The newest step that any process sees, or -1: files may reach one later than another."""
        self._manager.reload()  # another process may have written since
        return largest_of(max(self._manager.all_steps(), default=-1))

    def _tried(self, step: int, template: TrainState) -> tuple[TrainState | None, str]:
        """This process's part of a state, or None and why it cannot be read."""
        try:
            return self._restored(step, template), ""
        except Exception as error:  # whatever Orbax and TensorStore raise at damaged files
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            return None, first[0][:200]

    def _set_aside(self, step: int) -> None:
        """Renames a state's folder, so that no process sees it any more."""
        damaged = self._folder / f"{step}{DAMAGED}"
        if jax.process_index() == 0:
            shutil.rmtree(damaged, ignore_errors=True)
            os.replace(self._folder / str(step), damaged)
        all_of(True)  # nobody looks again before it is renamed

    def wait(self) -> None:
        """Returns when all is written. OSError where that failed."""
        with in_words("a state", self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Returns when nothing is written any more, whether it could be or not."""
        with contextlib.suppress(OSError), in_words("a state", self._folder):
            self._manager.close()

    def _restored(self, step: int, template: TrainState) -> TrainState:
        ocp, flat = self._ocp, _flat(template)

        def how(x: Any) -> Any:
            # Not strict: another mesh pads a vocabulary with more zeros, or fewer.
            return ocp.ArrayRestoreArgs(
                sharding=x.sharding, global_shape=x.shape, dtype=x.dtype, strict=False
            )

        args = ocp.args.PyTreeRestore(flat, restore_args=jax.tree.map(how, flat))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._reader.restore(self._folder.absolute() / str(step) / _ITEM, args=args)
        leaves = [found[name] for name in _names(template)]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)


@contextlib.contextmanager
def in_words(what: str, folder: Path) -> Iterator[None]:
    """OSError for whatever Orbax and TensorStore raise where they cannot write."""
    try:
        yield
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        full = "RESOURCE_EXHAUSTED" in first or "No space left" in str(error)
        why = "the disk is full" if full else first[:200]
        raise OSError(
            f"{what} cannot be written to {folder}: {why}. The states written before "
            "stay; free some space, and the same call goes on from the newest"
        ) from error


def hush_log() -> None:
    """Silences what is printed beside the OSError of a state that cannot be written.

    Orbax logs a traceback for each file, asyncio one for each task that nobody waits for any more,
    Python warns of those that never began, and TensorStore calls back into a loop that is closed.
    """
    import orbax.checkpoint  # noqa: F401  # it sets its log up

    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    logging.getLogger("absl").addFilter(lambda record: record.levelno > logging.ERROR)
    logging.getLogger("asyncio").addFilter(
        lambda record: "was never retrieved" not in record.getMessage()
    )
    before = sys.unraisablehook

    def hook(said: sys.UnraisableHookArgs) -> None:
        if str(said.exc_value) != "Event loop is closed":
            before(said)

    sys.unraisablehook = hook


def _flat(state: TrainState) -> dict[str, Any]:
    """The state's arrays by name: "params.weights.layers_0.attention.wq"."""
    return dict(zip(_names(state), jax.tree.leaves(state), strict=True))


def _names(state: TrainState) -> Iterator[str]:
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        yield jax.tree_util.keystr(path, simple=True, separator=".")
