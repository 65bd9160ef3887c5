"""JAX's folder of compiled programs, each with a digest that is checked before JAX reads it.

JAX itself checks none: it compiles a damaged program anew in every run and never replaces it, or,
where the damage can be unpacked, it runs what it finds.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from typing import Any

import jax

WAIT_SECONDS = 3.0
"""How long another process may hold the folder. After one wait in vain it is let be."""
MISSED = "/llama_jax/kept_programs/missed"
"""An event of JAX's monitoring: a program is not in the folder, so this thread compiles it."""
_DIGEST_BYTES = 32


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


def _checked_cache() -> type:
    import filelock
    from jax._src.lru_cache import LRUCache

    class CheckedCache(LRUCache):
        """Entries of a digest and a program. What fails is removed, so that JAX writes it anew."""

        _waits_in_vain = False

        def get(self, key: str) -> bytes | None:
            entry = self._unless_locked(lambda: super(CheckedCache, self).get(key))
            program = None if entry is None else _checked(key, entry)
            if entry is not None and program is None:
                self._unless_locked(lambda: self._remove_damaged(key))
            if program is None:
                jax.monitoring.record_event(MISSED)
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
