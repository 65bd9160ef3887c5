"""Training: text to token shards, batches, the step, the loop."""
