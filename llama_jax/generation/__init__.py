"""From prompts to text: settings, batches, the two jitted programs, and the host's side of them."""
