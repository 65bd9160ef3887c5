"""The model that comes with the package: its texts cut for training, and its folder written.

configs/train/stories.toml says the whole sequence of commands. `split` needs the two files of
TinyStories (CDLA-Sharing-1.0) that lie in ../shared/data; `publish` measures and writes the card.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import typer

import llama_jax

SEPARATOR = "<|endoftext|>"
FILES = {"first": "tinystories_2M.txt", "second": "tinystories_more.txt"}
HELD_OUT = slice(2100, 2300)
"""The stories of each file that are kept out of training, counted from 0."""
CHARACTERS = 1400
"""A story that is measured has fewer: it fits the context of the models that are compared."""
SHARED = ROOT.parent / "shared" / "data"
PRETRAINED = ROOT / "llama_jax" / "pretrained"
app = typer.Typer(pretty_exceptions_enable=False)


def stories_of(file: Path) -> list[str]:
    """The stories of a file, without the line ends around them."""
    return [text.strip("\n") for text in file.read_text(encoding="utf-8").split(SEPARATOR)]


@app.command()
def split(
    out: Annotated[Path, typer.Argument(help="Folder for the texts")],
    corpora: Annotated[Path, typer.Option(help="Where the two files are")] = SHARED / "corpora",
) -> None:
    """Cut the files into OUT/{first,second}.{train,held-out}.txt."""
    out.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        stories = stories_of(corpora / file)
        held_out = stories[HELD_OUT]
        train = stories[: HELD_OUT.start] + stories[HELD_OUT.stop :]
        for kind, texts in (("train", train), ("held-out", held_out)):
            texts = [text for text in texts if text.strip()]
            joined = f"\n{SEPARATOR}\n".join(texts)
            (out / f"{name}.{kind}.txt").write_text(joined, encoding="utf-8")
            print(f"{out / f'{name}.{kind}.txt'}: {len(texts):,} stories")


def bits_per_byte(params: llama_jax.Params, texts: Sequence[str]) -> float:
    """The mean bits that a model needs for a byte of the texts, each read from its beginning.

    bits = -sum(log2 p(token)) / bytes of UTF-8; bos is given, and eos is not counted.
    """
    found = llama_jax.score(params, list(texts))
    nats = -sum(sum(one.logprobs) for one in found)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def measured(stories: Sequence[str]) -> list[str]:
    """Those of the stories that are short enough."""
    return [text for text in stories if 0 < len(text) < CHARACTERS]


@app.command()
def measure(
    checkpoint: Annotated[Path, typer.Argument(help="A model")] = PRETRAINED,
    corpora: Annotated[Path, typer.Option(help="Where the two files are")] = SHARED / "corpora",
) -> None:
    """Say a model's bits per byte on the stories of each file that were held out."""
    params = llama_jax.load(checkpoint, dtype="float32")
    for name, file in FILES.items():
        texts = measured(stories_of(corpora / file)[HELD_OUT])
        bits = bits_per_byte(params, texts)
        print(f"{checkpoint}, {name} file: {bits:.4f} bits per byte of {len(texts)} stories")


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run")],
    out: Annotated[Path, typer.Option(help="Folder to replace")] = PRETRAINED,
    corpora: Annotated[Path, typer.Option(help="Where the two files are")] = SHARED / "corpora",
) -> None:
    """Write a run's model in bfloat16 as the package's own, measure it, and write its card."""
    params = llama_jax.load(run / "model", dtype="bfloat16")
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    llama_jax.save(params, new)
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    params = llama_jax.load(out, dtype="float32")  # what was stored, as a CPU runs it
    texts = {name: measured(stories_of(corpora / file)[HELD_OUT]) for name, file in FILES.items()}
    found = {name: bits_per_byte(params, part) for name, part in texts.items()}
    (out / "README.md").write_text(card(params, run, texts, found), encoding="utf-8")
    for name, bits in found.items():
        print(f"{name} file: {bits:.4f} bits per byte")


def card(
    params: llama_jax.Params,
    run: Path,
    texts: dict[str, list[str]],
    found: dict[str, float],
) -> str:
    """The model's card, in Markdown."""
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    curve = [one for one in map(json.loads, lines) if "validation_loss" in one]
    best = min(curve, key=lambda one: one["validation_loss"])
    c, step = params.config, recipe["step"]
    per_step = step["batch"] * step["context"]
    samples = llama_jax.generate(params, [""], n=10, temperature=0.8, max_new_tokens=400)
    shown = "\n\n".join(f"{i}. {_quoted(one)}" for i, one in enumerate(samples, 1))
    points = "\n".join(
        f"| {one['step']:,} | {one['step'] * per_step / 1e6:.1f} | {one['validation_loss']:.4f} "
        f"| {one['bits_per_byte']:.4f} |"
        for one in curve
    )
    numbers: dict[str, Any] = {
        "parameters": f"{sum(w.size for w in _leaves(params)):,}",
        "sizes": f"dim {c.dim}, {c.n_layers} layers, {c.n_heads} query and {c.n_kv_heads} key heads"
        f" of {c.head_dim}, feed-forward {c.hidden_dim}, vocabulary {c.vocab_size:,}, "
        f"context {c.max_seq_len}, output tied to the embedding",
        "steps": f"{curve[-1]['step']:,} steps of {per_step:,} tokens, "
        f"{curve[-1]['step'] * per_step / 1e6:.1f} million in all",
        "best": f"{best['validation_loss']:.4f} nats a token ({best['bits_per_byte']:.4f} bits per "
        f"byte), after step {best['step']:,}",
    }
    numbers |= {name: len(part) for name, part in texts.items()}
    numbers |= {f"{name}_bits": f"{bits:.3f}" for name, bits in found.items()}
    template = Path(__file__).with_name("stories_card.md").read_text(encoding="utf-8")
    return template.format(**numbers, points=points, samples=shown)


def _leaves(params: llama_jax.Params) -> list[Any]:
    import jax

    return jax.tree.leaves(params.weights)


def _quoted(done: llama_jax.Completion) -> str:
    """A sample as it came, on one line; how it ended."""
    text = " / ".join(line.strip() for line in (done.text or "").splitlines() if line.strip())
    ended = {"stop": "it ends", "length": "cut off at 400 tokens"}.get(str(done.finish_reason))
    return f"{text} ({ended or done.finish_reason})"


if __name__ == "__main__":
    app()
