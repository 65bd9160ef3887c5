"""Training: text to token folders, and batches as a function of the step."""
