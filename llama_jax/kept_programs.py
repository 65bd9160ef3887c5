"""JAX's folder of compiled programs, each with a digest that is checked before JAX reads it.

JAX itself checks none: it compiles a damaged program anew in every run and never replaces it, or,
where the damage can be unpacked, it runs what it finds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

WAIT_SECONDS = 3.0
"""How long another process may hold the folder. After one wait in vain it is let be."""
MISSED = "/llama_jax/kept_programs/missed"
"""An event of JAX's monitoring: a program is not in the folder, so this thread compiles it."""
_DIGEST_BYTES = 32
_thread = threading.local()
_ours: dict[str, Any] = {}
"""Our folder, once it is checked, and what opens it."""


def check_entries(folder: str) -> None:
    """From here on JAX, where it keeps programs in `folder`, checks each before it reads it.

    JAX has no public door for this. Where a version of it is built otherwise than we know, that is
    a warning, and its folder is as it always was.
    """
    try:
        from jax._src import compilation_cache

        plain, kept = compilation_cache.get_file_cache, _checked_cache()
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"programs kept in {folder} are not checked for damage: this JAX keeps them otherwise "
            f"than is known here ({error})",
            stacklevel=1,
        )
        return

    def opened(path: str) -> Any:
        if path != folder:
            return plain(path)
        settings = compilation_cache.config
        size = settings.compilation_cache_max_size.value
        cache = kept(path, max_size=size, lock_timeout_secs=WAIT_SECONDS)
        if settings.compilation_cache_check_contents.value:  # a developer's: all compiled anew
            cache = compilation_cache.VerificationCache(cache)
        return cache, path

    compilation_cache.get_file_cache = opened
    _ours.clear()
    _ours[folder] = functools.cache(lambda: opened(folder)[0])


def are_kept() -> bool:
    """Whether JAX keeps programs in our folder, and is not asked to compile all anew."""
    config: Any = jax.config
    anew = config.jax_compilation_cache_check_contents or not config.jax_enable_compilation_cache
    return not anew and config.jax_compilation_cache_dir in _ours


@contextlib.contextmanager
def compiling_anew() -> Iterator[Callable[[], bool]]:
    """A context in which JAX finds no program in our folder, for this thread.

    The function given says whether it looked for one, so that what it made is compiled here. XLA's
    programs for a CPU that were read from a file lack functions when they are written once more.
    """
    _thread.asked = False
    try:
        yield lambda: bool(_thread.asked)
    finally:
        _thread.asked = None


def read_kept(key: str) -> bytes | None:
    """What `keep` wrote under a key, if it is whole."""
    (opened,) = _ours.values()
    with contextlib.suppress(OSError):
        return opened().read(key)
    return None


def keep(key: str, program: bytes) -> None:
    """Keeps a program in our folder, beside those that JAX keeps there and within their bounds."""
    (opened,) = _ours.values()
    with contextlib.suppress(OSError):
        opened().put(key, program)


def _checked_cache() -> type:
    import filelock
    from jax._src.lru_cache import LRUCache

    class CheckedCache(LRUCache):
        """Entries of a digest and a program. What fails is removed, so that JAX writes it anew."""

        _waits_in_vain = False

        def get(self, key: str) -> bytes | None:
            anew = getattr(_thread, "asked", None) is not None
            _thread.asked = True if anew else None
            if anew or (program := self.read(key)) is None:
                jax.monitoring.record_event(MISSED)
                return None
            return program

        def read(self, key: str) -> bytes | None:
            """As `get`, and no news where there is none."""
            entry = self._unless_locked(lambda: super(CheckedCache, self).get(key))
            program = None if entry is None else _checked(key, entry)
            if entry is not None and program is None:
                self._unless_locked(lambda: self._remove_damaged(key))
            return program

        def put(self, key: str, value: bytes) -> None:
            entry = _digest(key, value) + value
            self._unless_locked(lambda: super(CheckedCache, self).put(key, entry))

        def _unless_locked(self, action: Any) -> Any:
            """What it gives; None once another process has held the folder for too long."""
            if self._waits_in_vain:
                return None
            try:
                return action()
            except filelock.Timeout:
                self._waits_in_vain = True
                return None

        def _remove_damaged(self, key: str) -> None:
            entry, used = (self.path / f"{key}-{what}" for what in ("cache", "atime"))
            with self.lock.acquire(timeout=WAIT_SECONDS) if self.eviction_enabled else _nobody():
                # Another process may have written it anew meanwhile.
                if entry.exists() and _checked(key, entry.read_bytes()) is None:
                    entry.unlink()
                    used.unlink(missing_ok=True)

    return CheckedCache


_nobody = contextlib.nullcontext


def _checked(key: str, entry: bytes) -> bytes | None:
    """The program in an entry; None where it is not the one that was written under this key."""
    digest, program = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
    return program if _digest(key, program) == digest else None


def _digest(key: str, program: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + program).digest()
