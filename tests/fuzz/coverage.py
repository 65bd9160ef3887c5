"""`python -m tests.fuzz --coverage FORMAT`: files made towards lines that none has reached yet.

libFuzzer, through atheris (`pip install -e ".[fuzz]"`), changes the bytes and watches which lines
of the readers run. What breaks a promise ends it, and lies in `keep`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path

WATCHED = ("llama_jax.checkpoint", "llama_jax.tokenizer")


def watch(name: str, seconds: float, keep: Path) -> None:
    """Fuzzes one format for so long; the process ends with it."""
    try:
        import atheris
    except ImportError:
        raise SystemExit('atheris is absent; install it: pip install -e ".[fuzz]"') from None
    with atheris.instrument_imports(include=list(WATCHED)):
        for package in map(importlib.import_module, WATCHED):  # some are imported late otherwise
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)

        from fuzz import mutations, seeds, trying

        from llama_jax.tokenizer.chat_template import ChatTemplate

    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        corpus = Path(root) / "corpus"
        corpus.mkdir()
        if name == "template":
            for number, part in enumerate(mutations.TEMPLATE_PARTS):
                (corpus / str(number)).write_text(part)
        else:
            seed = seeds.make(Path(root) / "seeds")[name]
            file = seed.folder / seed.files[0]
            (corpus / "sound").write_bytes(file.read_bytes())

        def one(data: bytes) -> None:
            try:
                if name == "template":
                    source = data.decode(errors="replace")
                    ChatTemplate(source, {"bos_token": "<s>"}).render(seeds.DIALOG)
                else:
                    file.write_bytes(data)
                    seed.read(seed.folder)
            except (ValueError, OSError) as error:
                if wrong := trying.wrong_words(str(error).replace(root, "")):
                    raise AssertionError(wrong) from error

        options = {
            "max_total_time": int(seconds),
            "artifact_prefix": f"{keep}/",
            "timeout": int(trying.HANGS),
            "rss_limit_mb": 2048,
            "max_len": 1 << 17,
        }
        words = [f"-{option}={value}" for option, value in options.items()]
        atheris.Setup([sys.argv[0], *words, str(corpus)], one)
        atheris.Fuzz()
