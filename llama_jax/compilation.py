"""Where JAX keeps the programs that it compiles for us, from one process to the next."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

from llama_jax.kept_programs import check_entries
from llama_jax.kernels import keeps_collective_order

VARIABLE = "LLAMA_JAX_CACHE"
"""Environment: `off` keeps no programs, a path keeps them there; unset, in the user's folder."""
MAX_BYTES = 512 << 20
"""The size limit of the cache: the least recently used go first. An 8B program has a megabyte."""
_KEPT = re.compile(r".+-[0-9a-f]{64}")
"""How JAX, and `untraced.py`, name a program: what it is called, and a digest."""
_UNMAPPED = 65534
"""The user that Linux shows for those whom a container's user namespace lacks, root among them."""
DIRECTORY = "jax_compilation_cache_dir"
SETTINGS = {  # of JAX: its default, which stands for "nobody asked", and what we set in its place
    "jax_compilation_cache_max_size": (-1, MAX_BYTES),
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.0),
}


def keep_programs() -> None:
    """From here on JAX keeps what it compiles, and finds what an earlier process compiled.

    It changes settings of JAX, which hold for the whole process, and so respects whoever set them
    before: with a `jax_compilation_cache_dir` of the user's own, or with $LLAMA_JAX_CACHE=off, it
    does nothing. A folder that cannot be written is a warning, and programs are compiled anew.
    Processes of a job on CPUs neither keep nor read programs, whosever folder it is.
    """
    if _order_is_lost():
        jax.config.update("jax_enable_compilation_cache", False)
        return
    wanted = os.environ.get(VARIABLE, "")
    if _setting(DIRECTORY) or not _setting("jax_enable_compilation_cache"):
        return
    if wanted.lower() in ("off", "0", "no", "false"):
        return
    try:
        folder = Path(wanted).expanduser().absolute() if wanted else cache_folder() / "programs"
        _prepare(folder, private=not wanted)
    except (OSError, ImportError, RuntimeError) as error:  # the last where there is no home
        warnings.warn(
            f"compiled programs are not kept: {error}; they need a folder that you can write and "
            f"others cannot: set {VARIABLE} to one, or to off",
            stacklevel=1,  # this line, so that Python shows it once whoever asks
        )
        return
    # A program lost to a full disk or to another process is compiled again: no news to anybody.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    check_entries(str(folder))
    jax.config.update(DIRECTORY, str(folder))
    for name, (default, ours) in SETTINGS.items():
        if _setting(name) == default:
            jax.config.update(name, ours)


def _order_is_lost() -> bool:
    """Whether a program that was kept could run its collectives in any order, in a job."""
    joined = jax.distributed.is_initialized()  # asks no backend to begin
    return joined and jax.process_count() > 1 and not keeps_collective_order(jax.default_backend())


def cache_folder() -> Path:
    """Where this user's caches of ours belong on this platform; OSError where that is no place."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        if not Path(base).is_absolute():  # it would be another folder from every other one
            raise OSError(f"XDG_CACHE_HOME={str(base)!r} is no absolute path of a folder")
    return Path(base) / "llama_jax"


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _prepare(folder: Path, *, private: bool) -> None:
    """Makes the folder, and mends what a process left that died as it wrote; OSError if in vain."""
    import filelock  # JAX's own lock, without which it refuses to bound its cache

    for missing in [one for one in (folder, *folder.parents) if not one.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        found = folder.stat()
        # A group may share a folder that somebody names; nobody shares this user's own.
        if found.st_uid != os.getuid() or found.st_mode & (0o022 if private else 0o002):
            # Whoever writes there runs code here.
            raise PermissionError(f"others than this user can write {folder}")
        _check_way(folder, private=private)
    if shutil.disk_usage(folder).free < MAX_BYTES // 8:
        raise OSError(f"the disk of {folder} is full")
    try:
        # JAX's own name for it: nobody reads or writes an entry meanwhile.
        with filelock.FileLock(folder / ".lockfile", timeout=0):
            remove_broken(folder)
    except filelock.Timeout:
        pass  # somebody is at work there, so it can be written


def _check_way(folder: Path, *, private: bool, links: int = 40) -> None:
    """PermissionError where others could put a folder of theirs in the place of this one.

    Who can write a folder can rename what lies in it: so each folder above counts, and each link
    and the folders above what it points to. In a sticky folder, as /tmp is, only an entry's owner
    renames it. A named folder may lie in one of another user, or of a group.
    """
    trusted, sticky = (0, _UNMAPPED, os.getuid()), False
    for one in (*reversed(folder.parents), folder):
        found = one.lstat()
        link = stat.S_ISLNK(found.st_mode)
        theirs = found.st_uid not in trusted and (private or sticky)
        sticky = bool(one.stat().st_mode & stat.S_ISVTX)
        shared = 0o022 if private and found.st_gid != os.getgid() else 0o002
        if theirs or (not (link or sticky) and found.st_mode & shared):
            raise PermissionError(f"others than this user can write {one}, on the way to {folder}")
        if link and links:
            _check_way(one.parent / os.readlink(one), private=private, links=links - 1)


def remove_broken(folder: Path) -> None:
    """Removes entries without a time of use, which JAX writes last, and times without an entry.

    And what no writing of ours makes: JAX would wait for a pipe, and for the end of a device. What
    has another name than a kept program has is somebody's own, and JAX would remove it.
    """
    for file in folder.glob("*-*"):
        entry, _, kind = file.name.rpartition("-")
        other = {"cache": "atime", "atime": "cache"}.get(kind)
        if other is None:
            continue
        if not _KEPT.fullmatch(entry):
            raise OSError(f"{file} is no kept program, so {folder} is used for something else")
        if not _is_kept(file) or not _is_kept(folder / f"{entry}-{other}"):
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            else:
                file.unlink(missing_ok=True)


def _is_kept(file: Path) -> bool:
    """Whether a regular file is there, itself and no link, of no more bytes than are kept."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES
