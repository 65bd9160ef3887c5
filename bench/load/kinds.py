"""Requests of all kinds, and the texts of an answer to one."""

from __future__ import annotations

import json
import random

KINDS = 96
TEXT = "Once upon a time there was a girl named Lily who saw the big red ball and the dog ran"


def requests_of(seed: int) -> list[bytes]:
    """The bodies of the different requests: greedy and drawn, streamed and whole, one and two
    completions, short prompts and some of several pages."""
    drawn, words, found = random.Random(seed), TEXT.split(), []
    for number in range(KINDS):
        begin = words * 8 if number % 4 == 3 else []
        body = {
            "prompt": " ".join(begin + drawn.choices(words, k=drawn.randint(1, 20))),
            "max_tokens": drawn.choice([1, 4, 8, 24]),
            "temperature": drawn.choice([0, 1]),
            "seed": number,
            "stream": drawn.random() < 0.5,
            "n": drawn.choice([1, 1, 1, 2]),
            "logprobs": drawn.choice([None, None, 2]),
            "stop": drawn.choice([None, None, " and"]),
            "echo": False,
            "ignore_eos": drawn.random() < 0.3,
        }
        found.append(json.dumps(body).encode())
    return found


def text_of(content: bytes, headers: dict[str, str]) -> str:
    """The texts of an answer by their index; ValueError where it is not whole."""
    if headers["content-type"].startswith("application/json"):
        events = [json.loads(content)]
    else:
        *lines, done, rest = content.split(b"\n\n")
        if done != b"data: [DONE]" or rest:
            raise ValueError(f"the stream ended with {content[-80:]!r}")
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
    texts: dict[int, str] = {}
    ended = set()
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"]:
                ended.add(choice["index"])
    if ended != set(texts):
        raise ValueError(f"completions {set(texts) - ended} did not end")
    return json.dumps(sorted(texts.items()))
