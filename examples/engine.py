"""Answer many requests at once: they come and go while one engine takes all of them on.

    python examples/engine.py [CHECKPOINT]

Run it from the repository's root. CHECKPOINT is a native checkpoint, or Meta's or Hugging Face's
folder. Without one it runs the small model that comes with the package, which tells stories.
"""

import asyncio
import sys

import llama_jax

params = llama_jax.load(sys.argv[1]) if len(sys.argv) > 1 else llama_jax.load()
prompts = ["Once upon a time", "One day, a dog", "Lily had a red ball"]

# The engine's thread compiles and decodes. `submit` returns at once, and may be called from any
# thread; a request may join while others are half written.
with llama_jax.Engine(params, rows=4) as engine:
    streams = [engine.submit(text, temperature=0, max_new_tokens=16) for text in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        (done,) = stream.completions()
        print(f"{prompt}|{done.text}")

    # Requests that begin alike read the beginning once, by pages of 64 tokens.
    story = "Tom had a big dog. " * 20
    for question in ("The dog was", "Tom was"):
        stream = engine.submit(story + question, temperature=0, max_new_tokens=8)
        (done,) = stream.completions()
        print(f"{stream.cached_tokens} of {len(stream.prompt)} tokens were cached: {done.text!r}")

    # In an event loop a stream is an asynchronous iterator. Another one is cancelled half way.
    async def race() -> None:
        kept, left = (engine.submit(text, max_new_tokens=24) for text in prompts[:2])
        async for delta in left:
            print(f"the first piece of the one that is left: {delta.text!r}")
            left.cancel()
            break
        text = "".join([delta.text async for delta in kept])
        print(f"the other goes on to its end: {text!r}")

    asyncio.run(race())
    print(engine.stats())
