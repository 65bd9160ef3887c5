"""GGUF files made by hand, for tests: any metadata, any tensors, well formed or not."""

import struct

import numpy as np

from llama_jax.checkpoint.gguf.types import TYPES
from llama_jax.tokenizer.hf_decoder import BYTE_OF
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import SPECIAL, TiktokenTokenizer

F32 = 0
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
KINDS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def text(value):
    """A GGUF string."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value):
    """A value with its type before it, as metadata have it."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    if isinstance(value, list):
        kind, code = (5, "i") if isinstance(value[0], int) else (6, "f")
        return struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)
    number, code = KINDS[type(value)]
    return struct.pack("<I" + code, number, value)


def gguf_bytes(metadata, tensors, *, version=3, alignment=32):
    """A file; `tensors` are {name: (ggml's number of the type, NumPy's shape, bytes)}."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    return head + b"\0" * (-len(head) % alignment) + data


def f32(array):
    """A float32 tensor of `gguf_bytes`."""
    return F32, array.shape, np.ascontiguousarray(array, "<f4").tobytes()


def small_model(seed=0, *, heads=4, kv_heads=2, dim=32, hidden=64, layers=2, vocab=48, **changes):
    """The metadata and the float32 tensors of a tiny LLaMA without a tokenizer."""
    rng, head_dim = np.random.default_rng(seed), dim // heads
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": dim,
        "llama.block_count": layers,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        **changes,
    }
    shapes = {"token_embd": (vocab, dim), "output": (vocab, dim), "output_norm": (dim,)}
    for layer in range(layers):
        each = {
            **{"attn_norm": (dim,), "ffn_norm": (dim,), "attn_q": (dim, dim)},
            **{"attn_k": (kv_heads * head_dim, dim), "attn_v": (kv_heads * head_dim, dim)},
            **{"attn_output": (dim, dim), "ffn_gate": (hidden, dim), "ffn_up": (hidden, dim)},
            "ffn_down": (dim, hidden),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in each.items()}
    tensors = {
        f"{name}.weight": f32(rng.standard_normal(shape).astype(np.float32))
        for name, shape in shapes.items()
    }
    return metadata, tensors


def sentencepiece_metadata(file, **changes):
    """What llama.cpp's converter writes of a SentencePiece model."""
    model = SentencePieceTokenizer(file).model
    ids = range(model.vocab_size())
    kinds = (("is_unknown", UNKNOWN), ("is_control", CONTROL), ("is_byte", BYTE))

    def kind(id):
        return next((number for name, number in kinds if getattr(model, name)(id)), NORMAL)

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": [float(model.get_score(id)) for id in ids],
        "tokenizer.ggml.token_type": [kind(id) for id in ids],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        **{f"tokenizer.{name}": value for name, value in changes.items()},
    }


def bpe_metadata(file, pre="llama-bpe", **changes):
    """What llama.cpp's converter writes of Llama 3's tokenizer."""
    tokenizer = TiktokenTokenizer(file)
    own = (tokenizer.token_bytes(id, at_start=False)[0] for id in range(tokenizer.vocab_size))
    ranks = {token: id for id, token in enumerate(own) if token}
    character = {byte: character for character, byte in BYTE_OF.items()}
    spelled = {token: "".join(character[byte] for byte in token) for token in ranks}
    merges = []
    for token in ranks:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    tokens = [*spelled.values(), *SPECIAL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * len(ranks) + [CONTROL] * len(SPECIAL),
        "tokenizer.ggml.merges": [f"{spelled[a]} {spelled[b]}" for a, b in merges],
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin_of_text|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|eot_id|>"),
        **{f"tokenizer.{name}": value for name, value in changes.items()},
    }


def of_every_type():
    """A model of two layers with a tensor of each quantized type, 256 wide, of random blocks."""
    rng = np.random.default_rng(0)
    metadata, tensors = small_model(dim=256, hidden=256, layers=2, vocab=48)
    names = [name for name, (_, shape, _) in tensors.items() if len(shape) == 2]
    quantized = {number: kind for number, kind in TYPES.items() if kind.unpack}
    for name, (number, kind) in zip(names, quantized.items(), strict=False):
        shape = tensors[name][1]
        raw = rng.integers(0, 60, (shape[0] * shape[1] // kind.block, kind.nbytes), np.uint8)
        tensors[name] = number, shape, raw.tobytes()
    return gguf_bytes(metadata, tensors)
