"""Records the README's first command as a picture: python scripts/recording.py docs/first_run.svg

The command runs as it would for a newcomer, with no compiled program kept from before. The picture
is what it leaves on the terminal: a status line that it takes away again is not in it.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Once upon a time"
COLUMNS = 100
PLAIN = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Rich's picture without its fonts, which it would fetch from elsewhere."""
STATUS = re.compile(r"loading .* \.\.\.|getting the model ready .* \.\.\.")


def recorded() -> list[tuple[str, str]]:
    """The lines of stdout and stderr, each with its style, as they came."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "llama_jax", "generate", PROMPT],
            cwd=ROOT,
            env={**os.environ, "LLAMA_JAX_CACHE": folder, "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    about = [line for line in done.stderr.splitlines() if not STATUS.fullmatch(line)]
    *before, speed = about
    return [(line, "dim") for line in before] + [(done.stdout.rstrip("\n"), ""), (speed, "dim")]


def picture(lines: list[tuple[str, str]]) -> str:
    """A terminal in which the command was typed and these lines came, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(Text.assemble(("$ ", "green"), f'llama-jax generate "{PROMPT}"'))
    for line, style in lines:
        console.print(Text(line, style=style))
    return console.export_svg(title="llama-jax", code_format=PLAIN, unique_id="first-run")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(recorded()), encoding="utf-8")
