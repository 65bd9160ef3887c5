"""PartitionSpecs of activations; `weights/table.py` has those of weights."""

from __future__ import annotations

from jax.sharding import PartitionSpec as P

from llama_jax.weights.table import BATCH, TENSOR

ACTIVATION = P(BATCH, None, None)  # [batch, time, dim]
LOGITS = P(BATCH, None, TENSOR)  # [batch, time, vocab]
NEXT_LOGITS = P(BATCH, TENSOR)  # [batch, vocab], of one position
QUERIES = P(BATCH, None, TENSOR, None)  # [batch, time, heads, head_dim]
NEW_KEYS = P(BATCH, None, "tensor", None)  # [batch, time, kv_heads, head_dim]
CACHE = P(BATCH, "tensor", None, None)  # [batch, kv_heads, slots, head_dim]
POOL = P(None, "tensor", None, None)  # [pages, kv_heads, page, head_dim], for all rows
TABLE = P(BATCH, None)  # [batch, width], of the pages of each row
LENGTHS = P(BATCH)  # [batch]
