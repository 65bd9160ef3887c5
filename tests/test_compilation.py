"""Compiled programs outlive the process that compiled them, within bounds, and harm nobody."""

import json
import os
import subprocess
import sys
import time
import warnings

import jax
import pytest
from helpers import ROOT, unkept_environment

from llama_jax import compilation, kept_programs

PROGRAM = """
import json, shutil, sys, warnings
warnings.simplefilter("always")
usage = shutil.disk_usage
shutil.disk_usage = lambda folder: usage(folder)._replace(free=1 << 40)  # whatever this disk has
import jax, jax.numpy as jnp
found = {"cache_hits": 0, "cache_misses": 0}
def listen(event, **_):
    name = event.rsplit("/", 1)[-1]
    if name in found:
        found[name] += 1
jax.monitoring.register_event_listener(listen)
from llama_jax.compilation import keep_programs
with warnings.catch_warnings(record=True) as caught:
    keep_programs()
    keep_programs()
    for size in map(int, sys.argv[1:] or ["3"]):
        value = jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((size, size)))
found["value"], found["warnings"] = float(value[0, 0]), [str(w.message) for w in caught]
found["directory"] = jax.config.jax_compilation_cache_dir
found["max_size"] = jax.config.jax_compilation_cache_max_size
print(json.dumps(found))
"""


def run(*sizes, program=PROGRAM, **variables):
    """What a process of its own says that compiles a small program for each size."""
    command = [sys.executable, "-c", program, *map(str, sizes)]
    root = ROOT
    done = subprocess.run(
        command,
        env=unkept_environment(**variables),
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def entries(folder):
    return sorted(file.name for file in folder.glob("*-cache"))


def test_a_second_process_compiles_nothing(tmp_path):
    first = run(LLAMA_JAX_CACHE=str(tmp_path))
    assert first["cache_misses"] > 0
    assert first["cache_hits"] == 0
    second = run(LLAMA_JAX_CACHE=str(tmp_path))
    assert second["cache_misses"] == 0
    assert second["cache_hits"] == first["cache_misses"]
    assert second["value"] == first["value"]


@pytest.mark.skipif(sys.platform != "linux", reason="XDG's variable is Linux's")
def test_programs_lie_in_the_users_cache_folder_which_is_theirs_alone(tmp_path):
    found = run(XDG_CACHE_HOME=str(tmp_path))
    folder = tmp_path / "llama_jax" / "programs"
    assert found["directory"] == str(folder)
    assert found["max_size"] == compilation.MAX_BYTES
    assert entries(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="XDG's variable is Linux's")
def test_generate_keeps_its_programs_unless_told_not_to(tmp_path):
    root = ROOT
    model = ["tests/golden/meta/llama3", "--ids", "46 182", "-n", "2"]
    command = [sys.executable, "-m", "llama_jax", "generate", *model]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != compilation.VARIABLE and not name.startswith(("JAX_COMP", "JAX_PERS"))
    }
    for name, options in (("kept", []), ("none", ["--no-cache"])):
        env = {**kept, "XDG_CACHE_HOME": str(tmp_path / name)}
        subprocess.run([*command, *options], env=env, cwd=root, check=True, capture_output=True)
    assert entries(tmp_path / "kept" / "llama_jax" / "programs")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no", "false"])
def test_off_leaves_no_files(tmp_path, monkeypatch, word):
    monkeypatch.setenv(compilation.VARIABLE, word)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.keep_programs()
    assert not list(tmp_path.iterdir())


def test_the_users_own_settings_stand(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    found = run(JAX_COMPILATION_CACHE_DIR=str(theirs), LLAMA_JAX_CACHE=str(ours))
    assert found["directory"] == str(theirs)
    assert found["max_size"] == -1
    found = run(JAX_ENABLE_COMPILATION_CACHE="false", LLAMA_JAX_CACHE=str(ours))
    assert found["directory"] is None
    assert not ours.exists()
    found = run(JAX_COMPILATION_CACHE_MAX_SIZE="12345678", LLAMA_JAX_CACHE=str(ours))
    assert found["directory"] == str(ours)
    assert found["max_size"] == 12345678


def test_old_programs_make_room_for_new_ones(tmp_path):
    bounds = {"LLAMA_JAX_CACHE": str(tmp_path), "JAX_COMPILATION_CACHE_MAX_SIZE": "30000"}
    run(3, **bounds)
    first = entries(tmp_path)
    found = run(*range(4, 16), **bounds)
    assert found["warnings"] == []
    assert sum(file.stat().st_size for file in tmp_path.glob("*-cache")) <= 30000
    assert not set(first) <= set(entries(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_warning_and_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    program = PROGRAM.replace('"always"', '"default"')
    found = run(program=program, LLAMA_JAX_CACHE=str(tmp_path / "file" / "programs"))
    assert found["directory"] is None
    (said,) = set(found["warnings"])
    assert "compiled programs are not kept" in said
    assert "LLAMA_JAX_CACHE" in said


@pytest.fixture
def keeps_none(monkeypatch):
    """This process has no folder of programs, and is the suite's again afterwards."""
    from jax._src import compilation_cache

    settings = ("jax_enable_compilation_cache", compilation.DIRECTORY, *compilation.SETTINGS)
    before = {name: getattr(jax.config, name) for name in settings}
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    jax.config.update(compilation.DIRECTORY, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="ownership is POSIX's")
def test_a_folder_that_others_can_write_is_not_trusted(tmp_path, monkeypatch, keeps_none):
    folder = tmp_path / "llama_jax" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.delenv(compilation.VARIABLE)
    monkeypatch.setattr(compilation, "cache_folder", lambda: tmp_path / "llama_jax")
    with pytest.warns(UserWarning, match="others than this user can write"):
        compilation.keep_programs()


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch, keeps_none):
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path))
    monkeypatch.setattr(compilation, "MAX_BYTES", 2**80)
    with pytest.warns(UserWarning, match="is full"):
        compilation.keep_programs()


def test_what_a_killed_process_half_wrote_is_compiled_again(tmp_path):
    run(LLAMA_JAX_CACHE=str(tmp_path))
    whole = max(tmp_path.glob("*-cache"), key=lambda file: file.stat().st_size)
    size = whole.stat().st_size
    whole.write_bytes(whole.read_bytes()[: size // 2])
    whole.with_name(whole.name.replace("-cache", "-atime")).unlink()  # JAX writes it last
    found = run(LLAMA_JAX_CACHE=str(tmp_path))
    assert found["cache_misses"] == 1
    assert found["warnings"] == []
    assert run(LLAMA_JAX_CACHE=str(tmp_path))["cache_misses"] == 0


def odd_pipe(file):
    os.mkfifo(file)


def odd_folder(file):
    file.mkdir()


def odd_endless(file):
    file.symlink_to("/dev/zero")


def odd_link_to_nothing(file):
    file.symlink_to(file.parent.parent / "nothing")


def odd_huge(file):
    with file.open("wb") as opened:
        opened.truncate(1 << 40)


ODD = (odd_pipe, odd_folder, odd_endless, odd_link_to_nothing, odd_huge)


@pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices are as Linux has them")
@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("what", ["cache", "atime"])
def test_what_no_writing_leaves_is_removed_with_its_other_half(tmp_path, keeps_none, make, what):
    digest = "0" * 64
    for number in "12":
        for kind in ("cache", "atime"):
            (tmp_path / f"jit_{number}-{digest}-{kind}").write_bytes(b"8 bytes.")
    (odd := tmp_path / f"jit_1-{digest}-{what}").unlink()
    make(odd)
    compilation.remove_broken(tmp_path)
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [f"jit_2-{digest}-atime", f"jit_2-{digest}-cache"]


@pytest.mark.parametrize("name", ["browser-cache", "jit_f-12-atime"])
def test_a_folder_of_somebodys_own_files_is_not_used(tmp_path, monkeypatch, keeps_none, name):
    (own := tmp_path / name).write_text("mine")
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path))
    with pytest.warns(UserWarning, match=f"not kept: .*{name} is no kept program, so .* else"):
        compilation.keep_programs()
    assert own.read_text() == "mine"


def test_a_damaged_program_is_compiled_without_a_word_and_written_anew(tmp_path):
    first = run(LLAMA_JAX_CACHE=str(tmp_path))
    for n, file in enumerate(sorted(tmp_path.glob("*-cache"))):
        content = bytearray(file.read_bytes())
        content[len(content) * (n + 1) // 9] ^= 4
        file.write_bytes(content if n else content[:20])
    found = run(LLAMA_JAX_CACHE=str(tmp_path))
    assert found["cache_misses"] == first["cache_misses"]
    assert found["warnings"] == []
    assert found["value"] == first["value"]
    again = run(LLAMA_JAX_CACHE=str(tmp_path))
    assert (again["cache_misses"], again["value"]) == (0, first["value"])


@pytest.fixture
def kept(tmp_path):
    """JAX's folder of programs, as it opens it once `check_entries` has been called."""
    from jax._src import compilation_cache

    plain = compilation_cache.get_file_cache
    kept_programs.check_entries(str(tmp_path))
    cache, path = compilation_cache.get_file_cache(str(tmp_path))
    assert path == str(tmp_path)
    yield cache
    compilation_cache.get_file_cache = plain


def test_a_flipped_bit_of_an_entry_is_never_read_and_the_entry_is_removed(kept, tmp_path):
    kept.put("key", b"a program")
    assert kept.get("key") == b"a program"
    (entry,) = tmp_path.glob("*-cache")
    content = entry.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        entry.write_bytes(broken)
        assert kept.get("key") is None
        assert entries(tmp_path) == []
        kept.put("key", b"a program")
    assert kept.get("key") == b"a program"


def test_processes_of_a_job_on_cpus_keep_no_programs(monkeypatch):
    """Not in a folder of the user's either. XLA forgets the order of their collectives:
    tests/train/killed_runs.py two."""
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    compilation.keep_programs()
    assert changed == {"jax_enable_compilation_cache": False}
    changed.clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compilation.keep_programs()
    assert "jax_enable_compilation_cache" not in changed


def test_the_program_of_another_key_is_never_read(kept, tmp_path):
    kept.put("one", b"a program")
    kept.put("other", b"another")
    (tmp_path / "one-cache").write_bytes((tmp_path / "other-cache").read_bytes())
    assert kept.get("one") is None
    assert kept.get("other") == b"another"
    assert entries(tmp_path) == ["other-cache"]


def test_another_folder_of_programs_is_as_jax_has_it(kept, tmp_path):
    from jax._src import compilation_cache

    other, _ = compilation_cache.get_file_cache(str(tmp_path / "other"))
    other.put("key", b"a program")
    assert (tmp_path / "other" / "key-cache").read_bytes() == b"a program"


def test_a_folder_that_another_process_holds_is_waited_for_once(kept, tmp_path):
    import filelock

    kept.eviction_enabled, kept.max_size, kept.lock_timeout_secs = True, 1 << 20, 0.2
    kept.lock = filelock.FileLock(tmp_path / ".lockfile")
    kept.put("key", b"a program")
    with filelock.FileLock(tmp_path / ".lockfile"):
        start = time.monotonic()
        assert [kept.get("key") for _ in range(20)] == [None] * 20
        kept.put("other", b"a program")
        assert time.monotonic() - start < 2
    assert entries(tmp_path) == ["key-cache"]


def test_a_jax_that_keeps_programs_otherwise_is_said_and_left_alone(tmp_path, monkeypatch):
    from jax._src import compilation_cache

    monkeypatch.delattr(compilation_cache, "get_file_cache")
    with pytest.warns(UserWarning, match="are not checked for damage"):
        kept_programs.check_entries(str(tmp_path))
    assert not hasattr(compilation_cache, "get_file_cache")


@pytest.mark.skipif(sys.platform != "linux", reason="XDG's variable is Linux's")
def test_a_relative_cache_folder_of_xdg_is_refused(tmp_path, monkeypatch, keeps_none):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(compilation.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME='somewhere' is no absolute path"):
        compilation.keep_programs()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="ownership is POSIX's")
def test_a_named_folder_that_everybody_can_write_is_not_used(tmp_path, monkeypatch, keeps_none):
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path))
    tmp_path.chmod(0o707)
    with pytest.warns(UserWarning, match="others than this user can write"):
        compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def give_away(path):
    """Makes a path another user's."""
    try:
        os.chown(path, 1234, 1234, follow_symlinks=False)
    except OSError as error:
        pytest.skip(f"nothing can be given away here: {error.strerror}")


def a_writable_folder(above):
    above.mkdir()
    above.chmod(0o777)
    return above / "cache"


def a_folder_behind_a_link(above):
    (above / "real").mkdir(parents=True)
    above.chmod(0o777)
    (above.parent / "link").symlink_to(above / "real")
    return above.parent / "link"


def a_link_of_somebody_elses_in_a_sticky_folder(above):
    above.mkdir()
    above.chmod(0o1777)
    (above / "link").symlink_to(above.parent)
    give_away(above / "link")
    return above / "link"


def a_folder_of_somebody_elses(above):
    above.mkdir()
    give_away(above)
    return above / "cache"


ABOVE = [
    a_writable_folder,
    a_folder_behind_a_link,
    a_link_of_somebody_elses_in_a_sticky_folder,
    a_folder_of_somebody_elses,
]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="ownership is POSIX's")
@pytest.mark.parametrize("make", ABOVE)
def test_a_folder_whose_way_others_can_change_is_not_used(tmp_path, monkeypatch, keeps_none, make):
    monkeypatch.delenv(compilation.VARIABLE, raising=False)
    place = make(tmp_path / "above")
    monkeypatch.setattr(compilation, "cache_folder", lambda: place / "llama_jax")
    with pytest.warns(UserWarning, match=r"others than this user can write \S+, on the way to"):
        compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    if make is a_folder_of_somebody_elses:
        return  # who names a folder there trusts that user
    monkeypatch.setenv(compilation.VARIABLE, str(place / "named"))
    with pytest.warns(UserWarning, match="others than this user can write"):
        compilation.keep_programs()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="ownership is POSIX's")
def test_a_sticky_folder_and_a_link_of_ones_own_are_no_reason(tmp_path, monkeypatch, keeps_none):
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    (tmp_path / "sticky" / "link").symlink_to("../real")
    (tmp_path / "real").mkdir()
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "sticky" / "link" / "a" / "b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "sticky" / "link" / "a" / "b")
    assert (tmp_path / "real" / "a").stat().st_mode & 0o777 == 0o700


def test_processes_at_once_share_one_folder(tmp_path):
    variables = unkept_environment(LLAMA_JAX_CACHE=str(tmp_path))
    command = [sys.executable, "-c", PROGRAM, "3", "5", "7"]
    root = ROOT
    at_once = [
        subprocess.Popen(command, env=variables, cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = [json.loads(process.communicate()[0]) for process in at_once]
    assert {process.returncode for process in at_once} == {0}
    assert [one["warnings"] for one in found] == [[]] * 3
    assert run(3, 5, 7, LLAMA_JAX_CACHE=str(tmp_path))["cache_misses"] == 0


def test_a_tilde_is_the_users_home(tmp_path):
    found = run(LLAMA_JAX_CACHE="~/programs", HOME=str(tmp_path))
    assert found["directory"] == str(tmp_path / "programs")
    assert entries(tmp_path / "programs")
