"""File formats, and how files are written: what no checkpoint has to itself."""
