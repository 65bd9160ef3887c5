"""What a command that does not exist was meant to be."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from llama_jax.cli.console import in_utf8

MEANT = {
    "generate": "benchmark bench complete infer inference predict prompt run sample speed",
    "generate --chat": "answer ask instruct question",
    "chat": "interactive repl talk",
    "download": "fetch get pull",
    "convert": "import load",
    "convert --quantize none": "dequantize",
    "export": "save write",
    "export --format gguf": "gguf to-gguf",
    "inspect": "describe info memory show",
    "verify": "check compare diff test validate",
    "serve": "api http server start",
    "perplexity": "eval evaluate ppl score",
    "train-tokenizer": "tokenizer",
    "tokenize": "encode prepare preprocess",
    "train": "continue fine-tune finetune lora pretrain resume sft",
    "merge": "fuse",
    "plot": "curves loss",
    "--help": "commands help list",
    "--version": "about version",
}
"""What is typed here, and the field's other words for it."""


class Group(TyperGroup):
    """The commands; one that does not exist is answered with the way to do what it says."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        option = args[0].partition("=")[0] if args else ""
        own = [name for param in self.get_params(ctx) for name in param.opts]  # type: ignore[arg-type]
        wrong = option.startswith("--") and option not in own and not ctx.resilient_parsing
        if wrong and (takers := _takers(self.commands).get(option[2:])):
            ctx.fail(f"{option} comes after a command: {takers}")
        return super().parse_args(ctx, args)  # type: ignore[arg-type]

    def resolve_command(  # type: ignore[override]
        self, ctx: typer.Context, args: list[str]
    ) -> tuple[str | None, Any, list[str]]:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            named = in_utf8(args[0])[:200]
            ctx.fail(f"{named!r} is no command; {way_out(args[0], self.commands)}")
        return super().resolve_command(ctx, args)  # type: ignore[arg-type]


def way_out(typed: str, commands: Mapping[str, Any]) -> str:
    """How to do what somebody typed in a command's place, as the end of an error.

    It may be another word for a command, the name of an option, a slip of the pen, a prompt or a
    checkpoint.
    """
    named = {word: f"`llama-jax {one}`" for one, words in MEANT.items() for word in words.split()}
    meant = _takers(commands) | named | {name: f"`llama-jax {name}`" for name in commands}
    word = typed.strip("-").lower().replace("_", "-")
    if word in meant:
        return f"that is {meant[word]}"
    from llama_jax.checkpoint.named import NAMES

    near = difflib.get_close_matches(word, meant, n=1, cutoff=0.7)
    given = os.path.lexists(typed) or typed in NAMES or typed.startswith("hf:")
    if given or (" " in typed and not near):
        return "prompts and checkpoints come after one, such as `llama-jax generate`"
    if near:
        return f"did you mean {meant[near[0]]}?"
    return "`llama-jax --help` lists them"


def _takers(commands: Mapping[str, Any]) -> dict[str, str]:
    """Each option, without its dashes, and the commands that have it."""
    takers: dict[str, list[str]] = {}
    for name, command in commands.items():
        for option in {option for param in command.params for option in param.opts}:
            if option.startswith("--"):
                takers.setdefault(option[2:], []).append(name)
    return {
        option: f"`llama-jax {names[0]} --{option}`" + _also(names[1:])
        for option, names in takers.items()
    }


def _also(names: list[str]) -> str:
    return f", also of {', '.join(names[:4])}" if names else ""
