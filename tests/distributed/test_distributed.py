"""Several real processes over loopback: equal to one, and a clear end when one is lost."""

import contextlib
import json
import math
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import helpers
import jax
import pytest
from job import Job, free_port, over
from typer.testing import CliRunner

import llama_jax
from llama_jax.cli import app
from llama_jax.distributed import arrivals, connection, roll_call
from llama_jax.distributed.connection import Line, words
from llama_jax.distributed.roll_call import SECRET, gather, report
from llama_jax.model.transformer import init_params
from llama_jax.weights.table import weight_table

PROGRAM = Path(__file__).with_name("distributed_program.py")
MODEL = helpers.GOLDEN / "meta/llama2-gqa"
SECONDS = 60
"""Within which a job that lost a process must be over."""


def program(processes, *, absent=(), **asked):
    asked = {"processes": processes, "devices": 1, **asked}
    return Job(processes, PROGRAM, json.dumps(asked), "{process}", "{port}", absent=absent)


def cli(processes, *arguments, **options):
    return Job(processes, "-m", "llama_jax", *arguments, *over(processes), **options)


def results(ended):
    for i, one in ended.items():
        assert one.returncode == 0, f"process {i}: {one.stderr}"
    return [json.loads(one.stdout.splitlines()[-1]) for one in ended.values()]


# The roll call


def call(port, processes, who, seconds=2.0):
    """The roll call with a thread a process; what each returned or raised."""
    found = {}

    def one(key, process):
        try:
            if process == 0:
                found[key] = gather(port, processes, seconds)
            else:
                found[key] = report(("127.0.0.1", port), process, processes, seconds)
        except ValueError as error:
            found[key] = error

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(who)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in found.values():
        for line in value[0].values() if isinstance(value, tuple) else ():
            line.close()
    return [found[key] for key in range(len(who))]


def test_a_roll_call_gives_process_0_a_line_to_each_and_each_a_line_to_it():
    first, *others = call(free_port(), 4, [0, 1, 2, 3])
    lines, hosts = first
    assert set(lines) == {1, 2, 3}
    assert hosts == dict.fromkeys((1, 2, 3), socket.gethostname())
    assert [set(lines) for lines, _ in others] == [{0}] * 3


def test_who_never_came_is_told_to_all_who_did():
    errors = call(free_port(), 5, [0, 2, 3], seconds=1.0)
    for error in errors:
        assert "processes 1, 4 of 5 never came within 1 s" in str(error)


def test_a_process_0_that_never_came_is_named_with_its_address():
    port = free_port()
    (error,) = call(port, 2, [1], seconds=0.5)
    assert f"process 0 never came: 127.0.0.1:{port} did not answer within 0.5 s" in str(error)


def test_two_processes_of_one_number_are_refused_in_both_and_in_process_0():
    first, *others = call(free_port(), 3, [0, 1, 1])
    for error in (first, *others):
        assert "two processes are process 1; give each a number of its own" in str(error)


def test_processes_that_count_differently_are_refused():
    port = free_port()
    found = {}

    def wrong():
        try:
            report(("127.0.0.1", port), 1, 3, 2.0)
        except ValueError as error:
            found["error"] = error

    thread = threading.Thread(target=wrong)
    thread.start()
    with pytest.raises(ValueError, match="counts 3 processes and process 0 counts 2"):
        gather(port, 2, 2.0)
    thread.join()
    assert "start all with the same number" in str(found["error"])


def test_what_else_connects_to_the_port_is_ignored(monkeypatch):
    port = free_port()
    hello = {"process": 1, "processes": 2, "host": "h", "proof": ""}
    strange = (
        *({"process": "x"}, {"process": True}, {**hello, "processes": 10**900}, hello),
        *({**hello, "process": 2}, {**hello, "process": -1}, {**hello, "host": []}),
        *({**hello, "host": "\ud800"}, {**hello, "proof": "\udc80"}),  # half letters
    )
    said = [b"GET / HTTP/1.1\r\n\r\n", b"", b"[1]\n", b"\xff\n", b"x" * 9999]
    said += [json.dumps(one).encode() + b"\n" for one in strange]
    with arrivals.listener(port) as heard:
        monkeypatch.setattr(roll_call, "listener", lambda port: contextlib.nullcontext(heard))
        strangers = idle(port, len(said))
        for stranger, junk in zip(strangers, said, strict=True):
            stranger.sendall(junk)
        strangers.pop(1).close()  # who says nothing and goes
        first, second = call(port, 2, [0, 1], seconds=5.0)
    assert set(first[0]) == {1}
    assert set(second[0]) == {0}
    for stranger in strangers:
        stranger.close()


def idle(port, count):
    """So many connections to a port that say nothing."""
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]


def test_strangers_that_say_nothing_delay_no_start_and_are_let_go(monkeypatch):
    monkeypatch.setattr(arrivals, "MAX_SILENT", 20)
    port, found = free_port(), {}
    with arrivals.listener(port) as heard:  # they came before anybody waited
        strangers = idle(port, 60)
        thread = threading.Thread(
            target=lambda: found.update(report=report(("127.0.0.1", port), 1, 2, 5.0))
        )
        monkeypatch.setattr(roll_call, "listener", lambda port: contextlib.nullcontext(heard))
        thread.start()
        began = time.monotonic()
        lines, _ = gather(port, 2, 5.0)
        thread.join()
        assert time.monotonic() - began < 1
    for stranger in strangers:
        stranger.settimeout(1)
        with contextlib.suppress(ConnectionError):
            assert b"".join(iter(lambda one=stranger: one.recv(99), b"")).count(b"\n") <= 1
        stranger.close()
    for line in (*lines.values(), *found["report"][0].values()):
        line.close()


def test_who_is_silent_for_too_long_is_let_go_before_the_end(monkeypatch):
    monkeypatch.setattr(arrivals, "PATIENCE", 0.05)
    port = free_port()
    thread = threading.Thread(target=call, args=(port, 2, [0], 2.0))
    thread.start()
    with connected(port) as one:
        began = time.monotonic()
        assert one.recv(99).startswith(b'{"word"')
        assert one.recv(99) == b""
        assert time.monotonic() - began < 1  # not at the end of the roll call
    thread.join()


def test_a_process_of_another_secret_is_told_so_and_ends_no_job(monkeypatch):
    port, found = free_port(), {}
    thread = threading.Thread(target=lambda: found.update(first=gather(port, 2, 5.0)))
    thread.start()
    other = connected(port)
    with other, other.makefile("rw") as talk:
        word = json.loads(talk.readline())["word"]
        monkeypatch.setenv(SECRET, "another")
        hello = roll_call.hello_to(1, 2, word)
        monkeypatch.setenv(SECRET, "ours")
        talk.write(json.dumps(hello) + "\n")
        talk.flush()
        told = json.loads(talk.readline())["over"]
    assert told == f"process 0 has another {SECRET}; give all processes the same"
    lines, _ = report(("127.0.0.1", port), 1, 2, 5.0)
    thread.join()
    assert set(found["first"][0]) == {1}
    for line in (*lines.values(), *found["first"][0].values()):
        line.close()


def test_an_answer_to_one_word_is_none_to_another():
    hello = roll_call.hello_to(1, 2, "a word")
    assert roll_call.read_hello(hello, "a word").proven
    assert not roll_call.read_hello(hello, "another word").proven


def connected(port):
    """A connection to a port on which somebody listens, or soon will."""
    until = time.monotonic() + 2
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=2)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_line_that_no_process_of_ours_sends_ends_what_is_heard_on_it():
    for sent in (b"[" * 60_000 + b"\n", b"1\n", b"x" * 5000, b"9" * 4999 + b"\n"):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as stranger,
        ):
            line = Line(server.accept()[0], limit=4000)
            stranger.sendall(sent)
            while line.open:
                line.receive()
            assert list(line.take()) == []
            line.close()


def test_what_another_process_says_is_one_line_of_bounded_length():
    assert words("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"
    for letter in ("x", "\x1b", "\U000e0001"):  # the last is ten letters when it is escaped
        assert len(words(letter * 10_000)) == connection.MAX_SAID + 3


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of this machine, .* name another"):
            gather(port, 2, 1.0)


# Which process this is


@pytest.mark.parametrize("coordinator", ["node1", "node1:", "node1:http", "node1:99999", ":1"])
def test_a_coordinator_is_a_host_and_a_port(coordinator):
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        llama_jax.distributed.initialize(coordinator, 2, 0)


def test_a_process_is_one_of_those_there_are():
    with pytest.raises(ValueError, match="process=2 must be from 0 to processes - 1 = 1"):
        llama_jax.distributed.initialize("node1:1234", 2, 2)


def test_without_a_scheduler_the_three_must_be_given(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORD")):
            monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="neither Slurm nor Open MPI nor Kubernetes"):
        llama_jax.distributed.initialize()
    with pytest.raises(ValueError, match="neither Slurm nor Open MPI nor Kubernetes"):
        llama_jax.distributed.initialize("node1:1234", 2)


def test_slurm_says_it(monkeypatch):
    from llama_jax.distributed.cluster import detected

    said = {"JOB_ID": 7, "STEP_NODELIST": "node[3-4]", "NTASKS": 4, "PROCID": 2, "LOCALID": 1}
    for name, value in said.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert detected(None, None, None) == ("node3:61447", 4, 2, [1])
    assert detected("other:1", 2, 1) == ("other:1", 2, 1, None)


def test_alone_a_process_is_the_first_and_asks_nobody():
    assert llama_jax.distributed.is_first()
    assert llama_jax.distributed.from_first(lambda: object) is object
    assert llama_jax.distributed.fail("nothing happens") is None


# The options of a mesh


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def without_notes(said):
    """The lines that are no notes on the checkpoint."""
    return [line for line in said.splitlines() if not line.startswith("note: ")]


def test_a_command_says_its_mesh_and_the_bytes_of_a_device_before_it_loads():
    result = run("generate", MODEL, "--ids", "1 2", "3", "-n", 0, "--tensor", 2, "--fsdp", 2)
    assert result.exit_code == 0, result.output
    first, second, *_ = without_notes(result.stderr)
    assert first.startswith("mesh: data=1 fsdp=2 tensor=2 over 4 devices (cpu); on each: weights ")
    assert "for 2 rows of up to 256 tokens" in first
    assert second.startswith("loading ")
    mesh = llama_jax.make_mesh(tensor=2, fsdp=2)
    params = llama_jax.load(MODEL, mesh=mesh)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    assert f"weights {here / 1000:,.1f} kB" in first


def test_more_devices_than_there_are_is_one_line_with_the_way_out():
    result = run("generate", MODEL, "--ids", "1 2", "--tensor", 4, "--data", 4)
    assert result.exit_code == 2
    (line,) = without_notes(result.stderr)
    assert "--data x --fsdp x --tensor is 16 and there are 8 devices" in line
    assert "or add --cpu-devices 16" in line


def test_which_process_is_asked_only_of_several():
    result = run("generate", MODEL, "--ids", "1 2", "--process", 1)
    assert result.exit_code == 2
    assert "--process says which of several processes; add --distributed" in result.stderr


def test_a_model_larger_than_a_device_is_refused_before_it_is_read(monkeypatch):
    class Small:
        device_kind, process_index = "toy", 0

        def memory_stats(self):
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax, "local_devices", lambda: [Small()])
    result = run("generate", MODEL, "--ids", "1 2", "--tensor", 2)
    assert result.exit_code == 1
    assert (
        "more than the 1.0 kB that JAX has of each device; raise --tensor or --fsdp"
        in result.stderr
    )
    assert "loading" not in result.stderr


# A process is lost


def check_over(ended, started, lines, victims=()):
    """Every survivor ended with an error, in time, and says one of these lines."""
    assert time.monotonic() - started < SECONDS
    for i, one in ended.items():
        if i not in victims:
            assert one.returncode not in (0, None), f"process {i} did not fail"
            assert re.search(lines, one.stderr), f"process {i}: {one.stderr}"


def test_a_killed_process_ends_the_other_with_a_line_that_names_it():
    with program(2, mode="kill", victim=1) as job:
        job.wait_for("working")
        started = time.monotonic()
        ended = job.ended()
    assert ended[1].returncode == -signal.SIGKILL
    check_over(ended, started, r"error: process 1 \(on .*\) died; the job is over", [1])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "victim"), [("kill", 0), ("kill", 2), ("idle", 1)])
def test_whoever_is_killed_the_others_say_so_and_end(mode, victim):
    with program(3, mode=mode, victim=victim) as job:
        job.wait_for("working")
        started = time.monotonic()
        job.running[victim].kill()
        ended = job.ended()
    check_over(ended, started, rf"error: process {victim} \(on .*\) died", [victim])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_exception_in_one_process_ends_the_others_with_what_it_says(victim):
    with program(3, mode="raise", victim=victim) as job:
        job.wait_for("working")
        started = time.monotonic()
        ended = job.ended()
    assert "Traceback" in ended[victim].stderr
    check_over(ended, started, rf"error: (process {victim}.*: )?RuntimeError: my disk")


@pytest.mark.slow
def test_a_process_that_stops_answering_ends_the_others():
    """No line tells that: JAX's heartbeats do, and its own abort names the process."""
    with program(2, mode="idle", victim=1) as job:
        job.wait_for("working")
        started = time.monotonic()
        job.running[1].send_signal(signal.SIGSTOP)
        _, err = job.running[0].communicate(timeout=SECONDS)
        assert time.monotonic() - started < SECONDS
    assert re.search(r"stopped sending heartbeats\):\n1\n", err)


@pytest.mark.slow
def test_a_process_that_is_told_to_end_ends():
    """JAX's service for preemptions would swallow the signal."""
    with program(2, mode="idle", victim=None) as job:
        job.wait_for("working")
        job.running[1].terminate()
        assert job.ended()[1].returncode == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("absent", [0, 1])
def test_a_process_that_never_comes_is_named_by_all_others(absent):
    options = ("--ids", "1 2", "--tensor", 3, "--start-timeout", 25)
    with cli(3, "generate", MODEL, *options, absent=[absent]) as job:
        ended = job.ended()
        check_over(ended, job.started, rf"error: process {absent} (of 3 )?never came")
    for one in ended.values():
        assert "Traceback" not in one.stderr
        assert one.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_while_it_generates_ends_the_other(victim):
    with cli(2, "generate", MODEL, "--ids", "1 2", "--no-echo", "-n", 2000, "--tensor", 2) as job:
        assert job.running[0].stdout.read(2)
        started = time.monotonic()
        job.running[victim].kill()
        ended = job.ended()
    check_over(ended, started, rf"error: process {victim} \(on .*\) died", [victim])


# Several processes are equal to one


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    with program(1, mesh={}, model=str(MODEL), folder=str(folder)) as job:
        (found,) = results(job.ended(300))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        (2, 1, {"tensor": 2}),
        (2, 1, {"fsdp": 2}),
        (2, 2, {"data": 2, "tensor": 2}),
        (4, 1, {"fsdp": 2, "tensor": 2}),
        (4, 2, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_several_processes_convert_load_generate_and_score_as_one(
    tmp_path, alone, processes, devices, mesh
):
    asked = {"devices": devices, "mesh": mesh, "model": str(MODEL), "folder": str(tmp_path)}
    with program(processes, **asked) as job:
        found = results(job.ended(600))
    for one in found:
        for name in ("tokens", "streamed", "there"):
            assert one[name] == alone[name]
        assert one["nll"] == pytest.approx(alone["nll"], abs=2e-4)
        assert one["perplexity"] == pytest.approx(alone["perplexity"], rel=2e-4)
        assert one["written"] == [str(tmp_path / "native"), *alone["written"][1:]]


@pytest.mark.slow
def test_each_process_reads_its_own_bytes_alone(tmp_path):
    config = llama_jax.Config.named("tiny").replace(
        dim=128, hidden_dim=16384, vocab_size=16384, n_layers=1
    )
    llama_jax.save(init_params(jax.random.key(0), config), tmp_path / "model")
    size = {row.path: math.prod(row.shape) * 4 for row in weight_table(config).values()}
    total = sum(size.values())
    model = {"model": str(tmp_path / "model"), "folder": str(tmp_path), "generate": False}
    with program(4, mesh={"tensor": 4}, **model) as job:
        found = results(job.ended(300))
    for one in found:
        assert total / 4 < one["read"] < total * 0.3


# The commands


@pytest.mark.slow
def test_only_process_0_prints(tmp_path):
    arguments = ("generate", MODEL, "--ids", "1 2 3", "4", "-n", 6, "-t", 0, "--json")
    with cli(2, *arguments, "--tensor", 2) as job:
        first, second = job.ended(300).values()
    assert first.returncode == 0, first.stderr
    assert first.stdout == run(*arguments).stdout
    assert "\nmesh: data=1 fsdp=1 tensor=2 over 2 devices (cpu) of 2 proc" in first.stderr
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_mistake_is_told_once():
    for arguments, message in (
        (("generate", MODEL, "hello", "--tensor", 2), "has no tokenizer"),
        (("generate", MODEL, "--tensor", 2), "no prompt"),
        (("generate", MODEL, "--ids", "1"), "a mesh takes all of them, such as --tensor 2"),
    ):
        with cli(2, *arguments) as job:
            first, second = job.ended().values()
        assert first.returncode == second.returncode == 1
        assert message in first.stderr
        assert "Traceback" not in first.stderr
        assert second.stderr == ""


@pytest.mark.slow
def test_perplexity_over_processes_is_that_of_one(shared, tmp_path):
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little girl. She liked to play.")
    arguments = ("perplexity", shared / "models/stories260K-meta", text, "--json")
    with cli(2, *arguments, "--tensor", 2) as job:
        first, second = job.ended(300).values()
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == pytest.approx(json.loads(run(*arguments).stdout), rel=1e-5)
    assert second.stdout == ""


@pytest.mark.slow
def test_chat_over_processes_reads_what_is_typed_into_process_0(shared, tmp_path):
    model = shared / "models/stories260K-meta"
    typed = "Tell me a story.\n/help\nAnother.\n"
    arguments = ("chat", model, "-n", 8, "-t", 0)
    with cli(2, *arguments, "--tensor", 2) as job:
        job.say(typed)
        first, second = job.ended(300).values()
    alone = CliRunner().invoke(app, [str(word) for word in arguments], input=typed)
    assert alone.exit_code == 0, alone.output
    assert first.returncode == 0, first.stderr
    assert first.stdout == alone.stdout
    assert (second.stdout, second.stderr) == ("", "")
