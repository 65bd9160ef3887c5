"""What llama_jax is measured against, and how: `python -m bench`."""
