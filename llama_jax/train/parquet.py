"""Texts from parquet files, by pyarrow where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def open_parquet(file: Path) -> Any:
    """The opened file; ValueError where pyarrow is absent, or cannot read it."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"reading {file} needs pyarrow; install it: pip install pyarrow") from None
    try:
        return parquet.ParquetFile(file)
    except (ArrowException, ValueError) as error:
        raise ValueError(f"{file} is no parquet file ({error}); download it again") from None


def parquet_texts(file: Path, key: str) -> Iterator[tuple[str, str, int]]:
    """Each row's text, its place, and about how many bytes of the file have been read."""
    opened = open_parquet(file)
    names, rows = opened.schema_arrow.names, opened.metadata.num_rows
    if key not in names:
        raise ValueError(f"{file} has no column {key!r}; it has {', '.join(map(repr, names))}")
    size, number = file.stat().st_size, 0
    batches = opened.iter_batches(columns=[key], batch_size=256)
    while True:
        try:
            batch = next(batches, None)
            texts = [] if batch is None else batch.column(0).to_pylist()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{file} is damaged after row {number} ({error}); download it again"
            ) from None
        if batch is None:
            return
        for text in texts:
            number += 1
            place = f"{file}, row {number}"
            if not isinstance(text, str):
                raise ValueError(
                    f"{place} has a {type(text).__name__} under {key!r}; it must be a text"
                )
            yield text, place, size * number // rows
