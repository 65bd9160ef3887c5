"""OpenAI's protocol over an engine: requests as structs, their checks, and their answers."""
