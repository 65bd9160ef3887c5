"""A server under load: requests, the client that sends them, when, and what their answers tell."""
