"""Runs a notebook's cells and writes what they print into it: python scripts/notebook.py FILE...

Run it in a clone with the package installed. A notebook here shows text alone, so Jupyter is not
needed; with Jupyter it opens as any other.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the output of its code cells, which run in order and share their names.

    An output is what a cell prints; the value of its last line is not shown.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"<cell {count}>", "exec"), names)
            cell = cell | {"execution_count": count, "outputs": _outputs(printed.getvalue())}
        cells.append(cell)
    return notebook | {"cells": cells}


def printed(notebook: dict[str, Any]) -> list[str]:
    """What each code cell has printed, as the notebook holds it."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join(line for out in cell["outputs"] for line in out["text"]) for cell in code]


def _outputs(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if text else []


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        done = executed(json.loads(path.read_text(encoding="utf-8")))
        text = json.dumps(done, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
