"""Pure functions, arrays in and arrays out: the arithmetic of LLaMA without its weights."""
