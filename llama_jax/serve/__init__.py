"""Serving: many requests at once over one model, and HTTP in front of it.

`Engine` is a library: `Engine(params).submit(prompt, settings)` is a stream of what the request
gains, while others come and go.
"""
