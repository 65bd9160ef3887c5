"""One of the shapes with random weights and a tokenizer, for us and for llama.cpp's server.

`python -m bench.load.model S FOLDER --tokenizer FILE` writes FOLDER/native and FOLDER/gguf in
float32. The models of `python -m bench` have no tokenizer, without which no server answers in text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.models import SEED
from bench.shapes import SHAPES


def main() -> None:
    """Writes both."""
    parser = argparse.ArgumentParser(prog="bench.load.model", description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--tokenizer", type=Path, required=True, help="of as many ids as the shape")
    options = parser.parse_args()
    try:
        write(options.shape, options.tokenizer, options.folder)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


def write(shape: str, tokenizer: Path, folder: Path) -> None:
    """`folder`/native and `folder`/gguf, weights alike."""
    import jax

    import llama_jax
    from llama_jax.checkpoint.export import export

    random = jax.jit(llama_jax.init_params, static_argnums=(1, 2))
    params = random(jax.random.key(SEED), SHAPES[shape], "float32")
    folder.mkdir(parents=True)
    llama_jax.save(params.replace(tokenizer=tokenizer), folder / "native")
    export(folder / "native", folder / "gguf", format="gguf")


if __name__ == "__main__":
    main()
