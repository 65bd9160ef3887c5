"""The files of weights and configs that cost their readers the most."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import torch_zip
from fuzz.worst import OF_JSON, SIZE, Made, Worst, adding, changed, filled, names, objects, texts
from gguf_file import gguf_bytes, small_model
from hf_folder import framed

from llama_jax.checkpoint.native.checked import FILES, OWN, sum_of_rest

_PTH, _ST, _PEFT = "consolidated.00.pth", "model.safetensors", "adapter_model.safetensors"
_HEADER, _JSON, _PICKLE = 4 << 20, 4 << 20, 2 << 20  # as much of each as is read


def _more_tensors(name: str) -> Made:
    """As many more tensors, empty, as the header has room for."""
    entry = f'"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'

    def made(file: Path) -> bytes:
        header, data = _parts(file)
        more = filled(_HEADER - len(header) - 9, entry, ",", "}")
        return framed(header.rstrip()[:-1] + more, data)

    return made


def _one_more(name: str) -> Made:
    """One more tensor, empty, under a long name."""

    def made(file: Path) -> bytes:
        header, data = _parts(file)
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        return framed({**json.loads(header), name: empty}, data)

    return made


def _parts(file: Path) -> tuple[bytes, bytes]:
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return content[8 : 8 + size], content[8 + size :]


def _quant_state(file: Path) -> bytes:
    """bitsandbytes' JSON of one matrix, as long as a file may be."""
    header, data = _parts(file)
    said = json.loads(header)
    tensors = {name: entry for name, entry in said.items() if name != "__metadata__"}
    name = next(name for name in tensors if "quant_state" in name)
    begin, end = tensors[name]["data_offsets"]
    text = data[begin:end].rstrip()[:-1] + b',"x":' + objects(SIZE - len(data) - 10_000) + b"}"
    for entry in tensors.values():
        if entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [at + len(text) - end + begin for at in entry["data_offsets"]]
    tensors[name] |= {"shape": [len(text)], "data_offsets": [begin, begin + len(text)]}
    return framed(tensors, data[:begin] + text + data[end:])


def _archive(pickled: bytes, *records: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name in records:
            archive.writestr(f"a/{name}", b"")
    return written.getvalue()


def _opcodes(each: bytes) -> Made:
    """A torch file whose pickle has these opcodes over and over."""
    return lambda _: _archive(b"\x80\x02" + each * ((_PICKLE - 3) // len(each)) + b".")


def _torch_tensors(length: int) -> Made:
    """As many tensors as a pickle has room for, under names of a length, all over one storage."""

    def made(_: Path) -> bytes:
        storages = torch_zip.Storages()
        tensor = torch_zip.dump(storages.tensor(np.empty(0, np.float32)))
        room = (_PICKLE - 8) // (len(tensor) + length + 5)
        keys = (torch_zip.dump(name.ljust(length, ".")) for name in itertools.islice(names(), room))
        return _archive(torch_zip.pickled(b"}(" + tensor.join([*keys, b""]) + b"u"), "data/0")

    return made


def _sums(file: Path) -> bytes:
    """A manifest with many sums of one file, under as many names of it as there is room for."""
    info = json.loads(file.read_bytes())
    digest = info[FILES]["config.json"]
    for count in range((_JSON - 10_000) // (len(digest) + 2_000)):
        info[FILES]["weights/../" * (count % 300) + "./" * (count // 300) + "config.json"] = digest
    info[OWN] = sum_of_rest(info)
    return json.dumps(info, separators=(",", ":")).encode()


def _unsummed(made: Made) -> Made:
    """A file of a native checkpoint that states no sums."""

    def without(file: Path) -> bytes:
        manifest = next(
            above / "checkpoint.json"
            for above in file.parents
            if (above / "checkpoint.json").exists()
        )
        info = json.loads(manifest.read_bytes())
        manifest.write_text(json.dumps({k: v for k, v in info.items() if k not in (FILES, OWN)}))
        return made(file)

    return without


def _gguf_tensors(_: Path) -> bytes:
    model, tensors = small_model()
    tensors |= {name: (0, (1,), b"\0\0\0\0") for name in itertools.islice(names(), 2**16 - 100)}
    return gguf_bytes(model, tensors)


def _gguf_with(value: object, count: int = 1) -> Made:
    """More metadata, under so many keys."""

    def made(_: Path) -> bytes:
        model, tensors = small_model()
        return gguf_bytes({**model, **dict.fromkeys(texts(count), value)}, tensors)

    return made


_ZARR = "weights/layers_0.attention.wq/zarr.json"
WEIGHTS: dict[str, Worst] = {
    **{
        f"{file}, {kind}": Worst(seed, file, adding("x", value, _JSON))
        for seed, file in (
            *(("pth", "params.json"), ("safetensors", "config.json")),
            *(("native", "config.json"), ("peft", "adapter_config.json")),
        )
        for kind, value in OF_JSON.items()
    },
    **{
        f"torch, opcode {each!r}": Worst("pth", _PTH, _opcodes(each))
        for each in (b"N", b"}", b"]", b"(", b"X\0\0\0\0", b"ccollections\nOrderedDict\n")
    },
    "torch, tensors": Worst("pth", _PTH, _torch_tensors(4)),
    "torch, a long name": Worst("pth", _PTH, _torch_tensors(1 << 20)),
    "torch, records": Worst("pth", _PTH, lambda _: _archive(b"\x80\x02}.", *texts(65_000))),
    "safetensors, tensors": Worst("safetensors", _ST, _more_tensors("%s")),
    "safetensors, layers": Worst("safetensors", _ST, _more_tensors("model.layers.0.%s.weight")),
    "safetensors, dots": Worst("safetensors", _ST, _one_more("." * 4_000_000)),
    "safetensors, projections": Worst(
        "safetensors", _ST, _one_more("model.layers.0.q_proj" * 190_000)
    ),
    "bitsandbytes, state": Worst("bnb-nf4", _ST, _quant_state),
    "peft, tensors": Worst("peft", _PEFT, _more_tensors("%s")),
    "peft, modules": Worst("peft", _PEFT, _more_tensors("base_model.model.%s.lora_A.weight")),
    "peft, ranks": Worst(
        "peft",
        "adapter_config.json",
        adding("rank_pattern", lambda size: filled(size, '"%s":2', "{", "}"), _JSON),
    ),
    "peft, patterns": Worst(
        "peft",
        "adapter_config.json",
        changed(
            lambda said: said.update(
                rank_pattern={"(.*.*)*x" + "(a|aa)+$" * n: 2 for n in range(50)}
            )
        ),
    ),
    "native, one file many times": Worst("native", "checkpoint.json", _sums),
    "native, shape": Worst(
        "native", _ZARR, _unsummed(changed(lambda said: said.update(shape=[2**40, 2**40])))
    ),
    "native, layers": Worst(
        "native", "config.json", _unsummed(changed(lambda said: said.update(n_layers=4096)))
    ),
    "native, description": Worst("native", _ZARR, _unsummed(adding("attributes", objects, _JSON))),
    "gguf, keys": Worst("gguf", "model.gguf", _gguf_with(1, 16_000)),
    "gguf, tensors": Worst("gguf", "model.gguf", _gguf_tensors),
    "gguf, numbers": Worst("gguf", "model.gguf", _gguf_with([1] * 4_100_000)),
    "gguf, texts": Worst("gguf", "model.gguf", _gguf_with(["ab"] * 1_040_000)),
    "gguf, too many texts": Worst("gguf", "model.gguf", _gguf_with(["ab"] * 1_980_000)),
}
