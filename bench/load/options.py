"""The options of `python -m bench.serve`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.load.mix import PROMPTS


def parser(about: str) -> argparse.ArgumentParser:
    """All of them, in the order in which they are thought of."""
    found = argparse.ArgumentParser(prog="bench.serve", description=about)
    add = found.add_argument
    add("--url", required=True, help="the server's, with or without /v1")
    add("--against", metavar="URL", help="a second server's, which gets the same in turns")
    about = "a checkpoint whose engine, in this process, is asked in a second server's place"
    add("--against-engine", type=Path, metavar="FOLDER", help=about)
    _add_requests(found)
    _add_load(found)
    add("--model", help="its name; the server's first if left out")
    for prefix, whose in (("", "the server"), ("against-", "the second server")):
        about = f"more fields of each request to {whose}"
        add(f"--{prefix}body", type=json.loads, default={}, metavar="JSON", help=about)
        about = f"{whose}'s process, whose memory and processor time are kept"
        add(f"--{prefix}pid", type=int, help=about)
    add("--timeout", type=float, default=600.0, help="seconds for one answer (600)")
    add("--output", type=Path, help="the JSON file, written after every round")
    return found


def _add_requests(found: argparse.ArgumentParser) -> None:
    add = found.add_argument
    pair = {"nargs": 2, "type": int, "metavar": ("LEAST", "MOST")}
    add("--text", type=Path, required=True, help="what prompts are cut from")
    about = "a tokenizer's file or folder: prompts are ids, of exact lengths (text, by characters)"
    add("--tokenizer", type=Path, help=about)
    about = "shared: prompts begin with the same 400 tokens; apart: with 400 of their own (mixed)"
    add("--mix", choices=tuple(PROMPTS), default="mixed", help=about)
    add("--prompt", **pair, help="its tokens, log-normal (20 600, and 20 60 after the 400)")
    add("--new", **pair, help="new tokens, uniform (20 300)")
    add("--seed", type=int, default=0, help="of all that is drawn (0)")


def _add_load(found: argparse.ArgumentParser) -> None:
    add = found.add_argument
    add("--clients", type=int, default=16, help="each sends one request after the other (16)")
    add("--rate", type=float, help="requests a second, a Poisson process, in place of clients")
    add("--requests", type=int, default=64, help="in a round (64)")
    add("--rounds", type=int, default=3, help="each with requests of its own (3)")
    about = "a round before, which does not count"
    add("--warm-up", action=argparse.BooleanOptionalAction, default=True, help=about)
