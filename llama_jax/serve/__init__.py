"""A model behind a socket: pages, an engine that decodes many requests together, and HTTP."""
