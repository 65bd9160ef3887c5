"""What a stranger's `checkpoint.json` says of weights that are no arrays: one short ValueError."""

import json

import pytest
from fuzz import native_seeds
from fuzz.seeds import make

import llama_jax
from llama_jax.checkpoint.reading import open_checkpoint

QUERY, TURNED = "layers_0.attention.wq", "layers_0.feed_forward.w2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    native_seeds.kinds(make(root)["pth"].folder, root / "kinds")
    return root / "kinds"


def within(key, said, levels):
    """Constants of weights that lie in each other so deep."""
    for _ in range(levels):
        said = {"kind": said["kind"], "constants": {"scale": 1.0, "size": 2, key: said}}
    return said


LORA, TURN = ({"kind": kind, "constants": {}} for kind in ("lora", "hadamard"))


@pytest.mark.parametrize(
    ("weight", "record"),
    [
        (QUERY, {"kind": []}),
        (QUERY, {"kind": {}}),
        (QUERY, {"kind": "x" * 100_000}),
        (QUERY, {"constants": []}),
        (QUERY, {"constants": {"scale": "x" * 100_000}}),
        (QUERY, {"constants": {"scale": 1.0, "base": []}}),
        (QUERY, {"constants": {"scale": 1.0, "base": {"kind": [], "constants": {}}}}),
        (QUERY, {"constants": {"scale": 1.0, "base": within("base", LORA, 2)}}),
        (QUERY, {"constants": {"scale": 1.0, "base": within("base", LORA, 400)}}),
        (TURNED, {"constants": {"size": 2, "inner": {"kind": {}, "constants": {}}}}),
        (TURNED, {"constants": {"size": 2, "inner": within("base", LORA, 2)}}),
        (TURNED, {"constants": {"size": 2, "inner": within("inner", TURN, 400)}}),
        (TURNED, {"constants": {"size": "\u0000\u001b[31m" * 100}}),
    ],
)
@pytest.mark.parametrize("read", [llama_jax.load, open_checkpoint])
def test_a_damaged_record_is_one_short_line(folder, weight, record, read):
    file = folder / "checkpoint.json"
    sound = file.read_text()
    said = json.loads(sound)
    said["weights"][weight].update(record)
    file.write_text(json.dumps(said))
    try:
        with pytest.raises(ValueError, match=weight) as refused:
            read(folder)
    finally:
        file.write_text(sound)
    assert len(str(refused.value)) <= 500
    assert str(refused.value).isprintable()


def test_weights_within_weights_come_back(folder):
    """An adapter on a rounded weight, and a turned rounded weight."""
    weights = llama_jax.load(folder).weights["layers_0"]
    assert weights["attention"]["wq"].base.kind == "int4"
    assert weights["feed_forward"]["w2"].inner.kind == "int8"


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (f"{QUERY}.a", [2, 32]),
        (f"{QUERY}.b", [2, 16]),
        ("layers_1.feed_forward.w3.a", [16, 2]),
        ("layers_0.attention.wk.scale", [1, 8]),
    ],
)
@pytest.mark.parametrize("read", [llama_jax.load, open_checkpoint])
def test_a_part_of_another_shape_than_its_weight_is_refused(folder, part, shape, read):
    file = folder / "weights" / part / "zarr.json"
    sound = file.read_text()
    said = json.loads(sound)
    said["shape"] = shape
    said["codecs"][0]["configuration"]["chunk_shape"] = shape
    said["chunk_grid"]["configuration"]["chunk_shape"] = shape
    file.write_text(json.dumps(said))
    try:
        with pytest.raises(ValueError, match=rf"{part.rpartition('.')[0]}.* shape"):
            read(folder)
    finally:
        file.write_text(sound)
