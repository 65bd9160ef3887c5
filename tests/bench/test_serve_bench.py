"""bench.serve: a server that is slow in a known way, and the numbers that are printed of it."""

import asyncio
import json
import statistics
import threading
import time

import pytest

from bench import serve
from bench.load.client import Answer, Chunk, Server
from bench.load.direct import Direct
from bench.load.drive import Load, answers
from bench.load.measured import came, gaps, summary, times_of
from bench.load.mix import CHARACTERS, PREFIX, Asked, Mix, arrivals
from llama_jax.generation.results import Delta
from llama_jax.serve.stream import Stream

IDS = list(range(5000))
READ, WRITE = 0.15, 0.05
"""Seconds before the first chunk and between chunks, which have two tokens."""


class StandIn:
    """Answers as it is told to, and notes when a request came and each of its chunks left."""

    def __init__(self, style="usage", status=200):
        self.style, self.status = style, status
        self.bodies, self.came, self.left, self.busy, self.most = [], [], [], 0, 0
        self.url = ""

    def __enter__(self):
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def begin():
            self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
            ready.set()

        def run():
            self._loop.run_until_complete(begin())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_):
        async def end():
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10)
        self._loop.close()

    async def _answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length:")[1].split()[0])
        content = await reader.readexactly(length)
        if head.startswith("GET"):
            said = b'{"data": [{"id": "slow"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)
        else:
            self.came.append(time.perf_counter())
            self.bodies.append(json.loads(content))
            self.busy += 1
            self.most = max(self.most, self.busy)
            await self._complete(writer, self.bodies[-1])
            self.busy -= 1
        await writer.drain()
        writer.close()

    async def _complete(self, writer, body):
        if self.status != 200:
            said = b'{"error": {"message": "no room"}}'
            head = f"HTTP/1.1 {self.status} Busy\r\nContent-Length: {len(said)}\r\n\r\n"
            writer.write(head.encode() + said)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        total, written, left = body["max_tokens"], 0, []
        while written < total:
            await asyncio.sleep(WRITE if written else READ)
            some = min(2, total - written)
            written += some
            left.append(time.perf_counter())
            self._event(writer, self._chunk(some, written))
            await writer.drain()
        self.left.append(left)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": total}
        self._event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
        if self.style != "silent":
            self._event(writer, {"choices": [], "usage": usage})
        self._send(writer, b": a comment\n\ndata: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def _chunk(self, some, written):
        event = {"choices": [{"text": "ab" * some}]}
        if self.style == "timings":
            event["timings"] = {"predicted_n": written}
        if self.style == "logprobs":
            event["choices"][0]["logprobs"] = {"tokens": ["ab"] * some}
        return event

    def _event(self, writer, event):
        self._send(writer, f"data: {json.dumps(event)}\n\n".encode())

    def _send(self, writer, part):
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):  # cut anywhere
            writer.write(b"%x\r\n" % len(half) + half + b"\r\n")


def asked_of(server, style_body=None, clients=2, requests=4, **changes):
    load = Load(Mix(IDS, new=(7, 7)), requests, clients, **changes)
    return asyncio.run(answers(Server(server.url, "slow", style_body or {}), load, 0))


@pytest.mark.parametrize("style", ["usage", "timings", "logprobs"])
def test_times_are_those_of_the_servers_own_clock(style):
    """Each request is found again by when it was sent: 7 tokens, in chunks of 2, 2, 2, 1.

    A busy machine may hold one of them up, so what is late is the median.
    """
    with StandIn(style) as server:
        found, seconds = asked_of(server, clients=1)
    assert [answer.error for answer in found] == [None] * 4
    late = {"ttft": [], "itl": [], "e2e": []}
    for answer, came_at, left in zip(found, server.came, server.left, strict=True):
        times = times_of(answer)
        assert answer.sent <= came_at
        assert times["ttft"][0] > READ
        assert (len(times["itl"]), len(times["pause"])) == (6, 3)
        late["ttft"].append(times["ttft"][0] - (left[0] - answer.sent))
        late["itl"].append(sum(times["itl"]) - (left[-1] - left[0]))
        late["e2e"].append(times["e2e"][0] - (left[-1] - answer.sent))
    for some in late.values():
        assert statistics.median(some) == pytest.approx(0, abs=0.04)
    told = summary(found, seconds)
    assert told["new_tokens"] == 28
    assert told["prompt_tokens"] == sum(answer.asked.length for answer in found)
    assert told["tokens_per_second"] == pytest.approx(28 / seconds)
    assert seconds >= 4 * (READ + 3 * WRITE)
    assert told["counted"].startswith("evenly" if style == "usage" else "by the server")


def test_a_closed_loop_has_so_many_requests_at_once_and_a_poisson_process_any_number():
    with StandIn() as server:
        found, closed = asked_of(server, clients=3, requests=6)
        assert (len(found), server.most) == (6, 3)
    with StandIn() as server:
        found, arriving = asked_of(server, requests=6, rate=1000.0)
        assert (len(found), server.most) == (6, 6)
    assert arriving < closed


def test_requests_arrive_as_often_as_asked_and_irregularly():
    pause = arrivals(50.0, seed=0)
    drawn = [pause() for _ in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(1 / 50, rel=0.05)
    assert sum(one > 1 / 50 for one in drawn) / 4000 == pytest.approx(0.368, abs=0.03)  # 1 / e


def test_a_table_and_a_file_with_both_servers_and_their_ratio(tmp_path, capsys):
    text, output = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("Once upon a time. " * 1000)
    with StandIn() as one, StandIn() as two:
        options = ["--url", one.url, "--against", f"{two.url}/v1", "--text", str(text)]
        options += ["--requests", "2", "--rounds", "2", "--new", "4", "4", "--no-warm-up"]
        serve.main([*options, "--output", str(output), "--body", '{"seed": 3}', "--pid", "1"])
        assert one.bodies[0].pop("seed") == 3
        assert "seed" not in two.bodies[0]
        assert sorted(body["prompt"] for body in one.bodies) == sorted(
            body["prompt"] for body in two.bodies
        )
        assert len({body["prompt"] for body in one.bodies}) == 4
        assert {body["model"] for body in one.bodies} == {"slow"}
        assert all(body["ignore_eos"] for body in one.bodies)
    kept = json.loads(output.read_text())
    first, second = kept["servers"].values()
    assert first["all"]["new_tokens"] == second["all"]["new_tokens"] == 16
    assert len(first["process"]["memory"]) == 3
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in printed.splitlines()}
    assert [cell.strip() for cell in rows["failed"]] == ["0", "0", ""]
    ttft = float(rows["TTFT p50 (ms)"][0])
    assert ttft == pytest.approx(1000 * first["all"]["ttft"]["p50"], rel=0.01)
    assert ttft > 1000 * READ
    assert float(rows["TTFT p50 (ms)"][2].split("(")[0]) < 2


@pytest.mark.parametrize(
    ("style", "status", "why"),
    [
        ("usage", 429, 'status 429: {"error": {"message": "no room"}}'),
        ("silent", 200, "said no usage"),
    ],
)
def test_failures_are_counted_and_in_no_time(style, status, why):
    with StandIn(style, status) as server:
        found, seconds = asked_of(server, requests=2)
    told = summary(found, seconds)
    assert (told["requests"], told["failures"], told["new_tokens"]) == (2, 2, 0)
    assert told["ttft"]["p50"] is None
    assert all(why in answer.error for answer in found)


class Prompt:
    """An engine that gives every request two tokens at once, and refuses prompts of one."""

    def submit(self, prompt, **settings):
        if len(prompt) == 1:
            raise ValueError("too short")
        assert settings == {"max_new_tokens": 2, "temperature": 0, "stop_ids": ()}
        stream = Stream(prompt, 1, lambda stream: None)
        stream.put(Delta(0, "ab", [5, 6], None, "length"))
        return stream


def test_an_engine_is_asked_in_the_place_of_a_server():
    asked = Load(Mix(IDS, prompt=(1, 2), new=(2, 2)), 40, 3)
    found, seconds = asyncio.run(answers(Direct(Prompt()), asked, 0))
    told = summary(found, seconds)
    short = sum(one.asked.length == 1 for one in found)
    assert 0 < short < 40
    assert (told["failures"], told["new_tokens"]) == (short, 2 * (40 - short))
    assert {one.error for one in found if one.asked.length == 1} == {"ValueError: too short"}


def test_nothing_listens_and_nothing_is_answered(tmp_path):
    with StandIn(status=503) as server:
        pass
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time. " * 1000)
    with pytest.raises(SystemExit, match="error: "):
        serve.main(["--url", server.url, "--text", str(text)])
    with StandIn(status=503) as server, pytest.raises(SystemExit, match="no request was answered"):
        serve.main(["--url", server.url, "--text", str(text), "--requests", "1", "--rounds", "1"])


def answer_of(chunks, new):
    return Answer(Asked(0, "", 9, new), 10.0, [Chunk(*one) for one in chunks], 9, new)


def test_a_chunk_of_k_tokens_counts_as_k_gaps_and_gaps_sum_up():
    told = answer_of([(11.0, 3, True), (13.0, 2, True), (16.0, 1, True), (17.0, 0, False)], 6)
    assert gaps(came(told)) == [0, 0, 1, 1, 3]
    assert times_of(told)["pause"] == [2, 3]
    assert times_of(told)["tpot"] == [1.0]
    assert times_of(told)["e2e"] == [7.0]


def test_tokens_that_no_chunk_tells_of_are_spread_over_the_chunks_with_text():
    chunks = [(11.0, None, False), (12.0, None, True), (13.0, None, True), (14.0, 7, False)]
    assert came(answer_of(chunks, 5)) == [(12.0, 3), (13.0, 2)]
    few = answer_of([(11.0, None, True), (12.0, None, True), (13.0, None, True)], 2)
    assert came(few) == [(11.0, 1), (12.0, 1)]


def test_lengths_are_log_normal_within_their_bounds_and_follow_from_the_seed():
    mix = Mix(IDS, seed=3)
    asked = [mix.asked(number) for number in range(400)]
    lengths = sorted(len(one.prompt) for one in asked)
    assert 20 <= lengths[0] < 30
    assert 500 < lengths[-1] <= 600
    assert 95 < lengths[200] < 125  # the geometric mean of the bounds is 109.5
    assert {one.new for one in asked} <= set(range(20, 301))
    assert asked[7] == Mix(IDS, seed=3).asked(7) != Mix(IDS, seed=4).asked(7)


def test_shared_prompts_begin_alike_and_those_apart_do_not():
    shared, apart = (Mix(IDS, kind) for kind in ("shared", "apart"))
    one, two = shared.asked(0), shared.asked(1)
    assert one.prompt[:PREFIX] == two.prompt[:PREFIX]
    assert one.prompt[PREFIX : PREFIX + 20] != two.prompt[PREFIX : PREFIX + 20]
    assert apart.asked(0).prompt[:PREFIX] != apart.asked(1).prompt[:PREFIX]
    assert len(apart.asked(0).prompt) == len(one.prompt) == one.length
    text = Mix("".join(map(str, IDS)), "shared").asked(0)
    assert len(text.prompt) == CHARACTERS * text.length


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": (9, 3)}, "--prompt 9 3 must be 1 <= least <= most"),
        ({"new": (0, 3)}, "--new 0 3 must be"),
        ({"source": [1, 2]}, "--text has 2 tokens and needs 2000; pass another"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        Mix(**{"source": IDS, **changes})
