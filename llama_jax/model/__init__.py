"""The model: pure functions, the cache of keys and values, and what it needs in memory."""
