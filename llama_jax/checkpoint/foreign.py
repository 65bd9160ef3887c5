"""What the names of tensors say of files that are not plainly LLaMA's, and are not damaged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

from llama_jax.checkpoint.files.messages import shorten

_FLOATS = "get the model's float16 or bfloat16 files"
_ROUND = "its float16 or bfloat16 files, which --quantize int4 rounds"
_GPTQ = f"nearest are the model's GPTQ or AWQ files of 4 bits, and {_ROUND}"
_PACKED = f"nearest are its compressed-tensors of 8 bits or packed 4, and {_ROUND}"
_GGUF = f"nearest are the model's GGUF of Q2_K to Q8_0, and {_ROUND}"
_MERGE = "merge it into the weights first: peft's merge_and_unload(), then save_pretrained"
# The first that fits is said, so a name's most telling ending comes first.
_KINDS = (
    (r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b", "of a LoRA adapter", _MERGE),
    (r"\.base_layer\.", "of a model with a LoRA adapter in it", _MERGE),
    (r"\.q_(weight|scale|scale_max|groups|invperm|perm)$", "of a model quantized by EXL2", _GPTQ),
    (r"\.(W_q|W_q_packed)$", "of a model quantized by HQQ", _GPTQ),
    (r"\.codebooks$", "of a model quantized by AQLM", _GGUF),
    (r"\.weight\._\w+$", "of a model quantized by quanto", _GPTQ),
    (r"(\._weight_\w+|\.weight:\w+)$", "of a model quantized by torchao", _PACKED),
    (r"_(proj|head)_blocks$|\.weight_blocks$", "of a model quantized to MXFP4", _PACKED),
    (
        r"\.(weight_global_scale|input_global_scale|weight_scale_2)$",
        "of a model quantized to NVFP4 or MXFP4",
        _PACKED,
    ),
    (r"\.weight_scale_inv$", "of a model in float8 with a scale for each block", _PACKED),
    (r"\.(B|B_24)$", "of a model quantized by GPTQ in Marlin's order", _GPTQ),
    (r"\.g_idx$", "of a model quantized by GPTQ", _FLOATS),
    (r"\.(qweight|qzeros)$", "of a model quantized by GPTQ or AWQ", _FLOATS),
    (
        r"\.(SCB|absmax|quant_map|nested_absmax|nested_quant_map|weight_format"
        r"|quant_state\.bitsandbytes__\w+)$",
        "of a model quantized by bitsandbytes",
        _FLOATS,
    ),
    (
        r"\.(weight_packed|weight_scale|weight_zero_point|weight_g_idx|weight_shape|input_scale"
        r"|k_scale|v_scale)$",
        "of a model quantized by compressed-tensors or to float8",
        _FLOATS,
    ),
    (r"\.scales$", "of a quantized model, such as MLX writes", _GGUF),
    (
        r"(^|\.)(v_head|value_head|score|reward_head|classifier)\.",
        "the head of a reward model or a classifier",
        "it writes no text; get the language model that it was trained from",
    ),
)
_ANCHOR = "layers.0.input_layernorm.weight"
_META_ANCHOR = "layers.0.attention_norm.weight"


def kind_of(names: Collection[str], weights: Collection[str]) -> str | None:
    """What tensors of these names are where they are known, and the way out; None where not.

    `weights` are the names that the model's own have. What stands beside one of them, `wq.codes` or
    `wq.weight.scale` beside `wq.weight`, is part of a quantized weight, whoever names it so.
    """
    for pattern, what, way_out in _KINDS:
        for name in names:
            if re.search(pattern, name):
                return f"{shorten(name)} is {what}; {way_out}"
    stems = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    for name in names:
        head, _, ending = name.rpartition(".")
        while head and head not in stems:
            head = head.rpartition(".")[0]
        if head and ending not in ("weight", "bias"):
            return (
                f"{shorten(name)} stands beside {shorten(head + '.weight')} or in its place, and "
                f"looks like part of a quantized weight, of a kind that is not read; {_FLOATS}"
            )
    return None


def plain_names(names: Collection[str]) -> tuple[dict[str, str], str | None]:
    """Hugging Face's own name of each tensor, and a note where a common prefix was taken away.

    `torch.compile` writes "_orig_mod." before every name and DDP "module."; a bare LlamaModel
    leaves "model." out.
    """
    same = dict.fromkeys(names)
    anchors = [name for name in names if name.endswith(_ANCHOR)]
    if len(anchors) != 1 or anchors[0] == f"model.{_ANCHOR}":
        return {name: name for name in same}, None
    head = anchors[0].removesuffix(_ANCHOR)
    if head == "model." or not (head == "" or head.endswith(".")):
        return {name: name for name in same}, None
    prefix = head.removesuffix("model.") if f".{head}".endswith(".model.") else head
    bare = prefix == head

    def plain(name: str) -> str:
        name = name.removeprefix(prefix)
        inside = re.match(r"(embed_tokens|layers|norm|rotary_emb)\.", name)
        return f"model.{name}" if bare and inside else name

    note = f"the prefix {shorten(prefix)} of the tensors' names is left out" if prefix else ""
    added = 'the tensors\' names lack "model.", which is supplied' if bare else ""
    return _one_to_one({name: plain(name) for name in same}), "; ".join(filter(None, (note, added)))


def plain_meta_names(names: Collection[str]) -> tuple[dict[str, str], str | None]:
    """Meta's own name of each tensor, and a note where a common prefix was taken away."""
    anchors = [name for name in names if name.endswith(f".{_META_ANCHOR}")]
    if len(anchors) != 1 or _META_ANCHOR in names:
        return {name: name for name in names}, None
    prefix = anchors[0].removesuffix(_META_ANCHOR)
    note = f"the prefix {shorten(prefix)} of the tensors' names is left out"
    return _one_to_one({name: name.removeprefix(prefix) for name in names}), note


def _one_to_one(renamed: Mapping[str, str]) -> dict[str, str]:
    """The new names, but for those that two tensors would share, which keep the old."""
    taken = Counter(renamed.values())
    return {old: new if taken[new] == 1 else old for old, new in renamed.items()}
