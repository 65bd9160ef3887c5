"""Stop strings on the device: what it meets is what a search of the bytes finds."""

import random

import jax
import numpy as np
import pytest

import llama_jax
from llama_jax.generation.stop_strings import STRINGS, WIDTH, stop_strings
from llama_jax.generation.stops import NOTHING, push_tokens


class Pieces:
    """A tokenizer of given pieces, of which those that begin with a space lose it at the start."""

    bos_id, eos_id, stop_ids = 0, 0, ()

    def __init__(self, pieces):
        self.pieces = pieces
        self.vocab_size = len(pieces)

    def token_bytes(self, id, *, at_start):
        piece = self.pieces[id]
        if at_start and piece.startswith(b" "):
            return piece[1:], False
        return piece, at_start and not piece


def met_on_the_device(tokenizer, rows, stops, after):
    """After how many tokens each row has met a stop string; None where it never does."""
    batch = len(rows)
    asked = stop_strings(tokenizer, stops, after, batch=batch, vocab=tokenizer.vocab_size)
    push = jax.jit(push_tokens)
    ending = np.full((batch, asked.strings.shape[2]), NOTHING, np.int16)
    at_start, found = asked.at_start, [None] * batch
    for i, tokens in enumerate(zip(*rows, strict=True)):
        met, ending, at_start = push(asked, np.array(tokens), ending, at_start)
        found = [i + 1 if old is None and new else old for old, new in zip(found, met, strict=True)]
    return found


def met_in_bytes(tokenizer, row, stops, after):
    at_start = True
    for id in after:
        _, at_start = tokenizer.token_bytes(id, at_start=at_start)
    text = b""
    for i, id in enumerate(row):
        added, at_start = tokenizer.token_bytes(id, at_start=at_start)
        text += added
        if any(stop.encode() in text for stop in stops):
            return i + 1
    return None


@pytest.mark.parametrize("longest", [1, 3, 9, 200])
def test_the_device_meets_a_stop_string_where_the_bytes_have_it(longest):
    rng = random.Random(longest)
    pieces = [b""] + [bytes(rng.choices(b"ab ", k=rng.randint(1, longest))) for _ in range(40)]
    pieces += ["猫が🐈"[i].encode() for i in range(3)] + [b"\xf0\x9f", b"\x90\x88"]
    tokenizer = Pieces(pieces)
    rows = [[rng.randrange(len(pieces)) for _ in range(30)] for _ in range(32)]
    stops, after = [], []
    for i in range(32):
        sizes = [rng.choice([1, 4, 8, 13, 30, WIDTH]) for _ in range(rng.randint(0, 4))]
        texts = ["".join(rng.choices("ab ", k=size)) for size in sizes]
        stops.append(texts + ["🐈"] * (i % 5 == 0))
        after.append([[], [0], [0, 5]][i % 3])
    found = met_on_the_device(tokenizer, rows, stops, after)
    wanted = [met_in_bytes(tokenizer, *row) for row in zip(rows, stops, after, strict=True)]
    assert found == wanted
    assert None in wanted


def test_more_and_longer_strings_than_usual_are_met_all_the_same():
    tokenizer = Pieces([b"", b"a", b"b", b"c" * 100])
    long = "a" * (WIDTH + 10) + "b"
    stops = [[long], [f"{n}" for n in range(STRINGS)] + ["ab"], ["c" * 190]]
    rows = [[1] * 80 + [2], [1] * 80 + [2], [3] * 81]
    assert met_on_the_device(tokenizer, rows, stops, [[0, 1]] * 3) == [81, 81, 2]


@pytest.mark.parametrize("model", ["stories260K-meta", "tinystories656K-hf"])
def test_every_token_of_a_real_tokenizer_is_spelled_as_the_tokenizer_spells_it(shared, model):
    tokenizer = llama_jax.load_tokenizer(shared / "models" / model)
    asked = stop_strings(tokenizer, [["x"]], [[]], batch=1, vocab=tokenizer.vocab_size)
    for id in range(tokenizer.vocab_size):
        whole, _ = tokenizer.token_bytes(id, at_start=False)
        first, still = tokenizer.token_bytes(id, at_start=True)
        assert whole.endswith(first), "what a start changes is dropped bytes"
        size, dropped = int(asked.sizes[id]), int(asked.dropped[id])
        assert bytes(asked.heads[id][:size]) == whole[:WIDTH]
        assert bytes(asked.tails[id][max(WIDTH - size, 0) :]) == whole[-WIDTH:]
        assert whole[dropped:] == first
        assert bool(asked.still_at_start[id]) == still
