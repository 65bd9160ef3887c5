"""tools/bench.py: its statistics, its files, its table, and a tiny contest from end to end."""

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from benchmarks import slots, table
from benchmarks.contest import Effort, check_agreement, distance, equal_beginnings, prompts
from benchmarks.contestant import Loading, Run
from benchmarks.entrants import CONTESTANTS, absent
from benchmarks.gguf_file import write_gguf
from benchmarks.llama2c import Llama2c
from benchmarks.llama2c_file import ids_of, spelled, write_llama2c
from benchmarks.models import Model, write
from benchmarks.options import DOCUMENT
from benchmarks.shapes import SHAPES, parameters, prefill_flops, read_per_step
from benchmarks.spread import Spread, paired, significant, spread_of
from benchmarks.worker import MACHINE, answered

import llama_jax
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.reading import open_checkpoint

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench.py"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A tiny native checkpoint, tied, with two query heads a key head."""
    path = tmp_path_factory.mktemp("bench") / "native"
    llama_jax.save(llama_jax.init_params(jax.random.key(0), SHAPES["tiny"]), path)
    return path


def needs(module):
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"{module} comes with the extra `bench`"
    )


def test_a_median_stands_between_its_quartiles():
    assert spread_of([1, 2, 3, 4, 100]) == Spread(3, 2, 4)
    assert spread_of([7.0]) == Spread(7, 7, 7)
    with pytest.raises(ValueError, match="at least one round"):
        spread_of([])


def test_ratios_are_of_neighbours_in_time():
    drifting = [10.0, 40.0, 20.0]
    assert paired([x / 2 for x in drifting], drifting) == Spread(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="2 rounds against 3"):
        paired([1, 2], drifting)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8916, "0.892"),
        (0.01234, "0.0123"),
        (0.9999, "1.00"),
        (99.96, "100"),
        (1234.5, "1,230"),
        (0, "0"),
    ],
)
def test_a_number_shows_three_significant_digits(value, text):
    assert significant(value) == text


def test_a_spread_without_width_is_one_number():
    assert Spread(0.5, 0.5001, 0.4999).text() == "0.500"
    assert Spread(0.5, 0.4, 0.6).text() == "0.500 (0.400-0.600)"


def test_shapes_are_the_models_they_are_named_for():
    assert round(parameters(SHAPES["S"]) / 1e6) == 110
    assert round(parameters(SHAPES["M"]) / 1e9, 1) == 1.1


def test_a_step_reads_an_embedding_only_where_it_is_the_output_too():
    tied, own = SHAPES["S"], SHAPES["M"]
    assert read_per_step(tied) == parameters(tied)
    assert read_per_step(own) == parameters(own) - own.vocab_size * own.dim


def test_a_prompt_of_one_token_uses_every_weight_once():
    c = SHAPES["S"]
    assert prefill_flops(c, 1) == pytest.approx(2 * parameters(c), rel=0.01)
    assert prefill_flops(c, 512) > 500 * 2 * (parameters(c) - c.vocab_size * c.dim)


def test_prompts_are_the_same_for_everybody_and_begin_as_llama2c_begins():
    model = Model("tiny", Path(), "float32", SHAPES["tiny"])
    rows = prompts(model, 16, 8)
    assert rows == prompts(model, 16, 8)
    assert all(row[:2] == [1, 2] and len(row) == 16 for row in rows)
    assert len({tuple(row) for row in rows}) == 8


def test_an_effort_fits_the_context():
    model = Model("tiny", Path(), "float32", SHAPES["tiny"])
    assert Effort(1, 500, 500, 0).within(model) == Effort(1, 240, 255, 0)
    short = Model("x", Path(), "float32", SHAPES["tiny"].replace(max_seq_len=17))
    with pytest.raises(ValueError, match="no room"):
        Effort(1, 8, 8, 0).within(short)


def test_agreement_counts_the_tokens_before_the_first_that_differs():
    ours = {1: [[1, 2, 3]], 2: [[4, 5, 6], [7, 8, 9]]}
    assert equal_beginnings(ours, ours) == 3
    assert equal_beginnings(ours, {1: [[1, 2, 3]], 2: [[4, 5, 6], [7, 0, 9]]}) == 1


def test_a_contestant_that_computes_another_model_is_not_timed():
    logits = np.random.default_rng(0).normal(size=100)
    check_agreement("peer", "float32", 4, distance(logits, logits + 1e-5))
    check_agreement("peer", "bfloat16", 0, distance(logits, logits * 1.01))
    with pytest.raises(ValueError, match="another model"):
        check_agreement("peer", "float32", 4, distance(logits, logits * 1.01))
    with pytest.raises(ValueError, match="another model"):
        check_agreement("peer", "float32", 4, float("nan"))
    with pytest.raises(ValueError, match="other tokens"):
        check_agreement("peer", "float32", 1, None)


def test_a_table_shows_rates_their_part_of_the_limit_and_ratios():
    config = SHAPES["tiny"]
    step = 4 * read_per_step(config)
    ours = {"decode 1": [50.0, 60.0], "decode 8": [400.0, 400.0], "prefill": [30.0, 30.0]}
    alone = {"decode 1": [100.0, 120.0]}  # as llama2.c, which does one text at a time
    machine = {f"bandwidth {batch}": [100.0 * step, 120.0 * step] for batch in (1, 8)}
    machine["matrix float32"] = [60 * prefill_flops(config, 64) / 64] * 2
    held = {"loaded_bytes": 2 * 4 * parameters(config), "peak_bytes": 3 * 4 * parameters(config)}
    one = {
        "config": config.to_json(),
        "prefill": 64,
        "rates": {"llama_jax": ours, "llama2.c": alone, MACHINE: machine},
        "memory": {"llama_jax": held, "llama2.c": {**held, "loaded_bytes": 0}},
        "first_tokens": {
            "llama_jax": {"cold": [3.0, 3.0], "cached": [1.0, 1.0]},
            "llama2.c": {"cold": [0.5, 0.5]},
        },
    }
    rows = table.model_table("tiny", one, "float32").splitlines()[2:]
    cells = {line.split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in rows[2:5]}
    assert len({line.count("|") for line in rows[:5]}) == 1
    assert cells["| llama_jax"][0] == "55.0 (52.5-57.5); 0.50"
    assert cells["| llama_jax"][1:] == ["400; 0.46", "30.0; 0.50", "3.00", "1.00", "2.00", "3.00"]
    assert cells["| llama_jax / llama2.c"] == ["0.500", "", "", "6.00", "2.00", "", "1.00"]
    assert rows[-1].startswith("In the same rounds the machine reads ")


def test_the_document_changes_between_its_markers_alone():
    document = "a\n<!-- bench cpu -->\nold\n<!-- end of bench cpu -->\nb\n"
    assert table.replaced(document, "cpu", "new") == document.replace("old", "new")
    with pytest.raises(ValueError, match="once each"):
        table.replaced(document, "gpu", "new")


def test_our_document_has_every_pair_of_markers():
    document = DOCUMENT.read_text()
    for name in ("cpu-float32", "cpu-bfloat16", "slots-cpu-float32", "gpu-bfloat16"):
        assert f"{name} text" in table.replaced(document, name, f"{name} text")


def test_the_line_through_points_on_a_line_misses_none():
    costs = {256: [2.256], 1024: [3.024], 4096: [6.096], 16384: [18.384]}
    (start, slope), off = slots.line_through(costs)
    assert (start, slope) == (pytest.approx(2.0), pytest.approx(0.001))
    assert off < 1e-9
    assert slots.line_through({**costs, 16384: [100.0]})[1] > 0.3


@needs("matplotlib")
def test_a_plot_of_the_same_numbers_is_the_same_file(tmp_path):
    result = {"milliseconds": {"256": [1.0, 2.0], "1024": [3.0, 4.0]}, "line": [1.0, 0.002]}
    for name in ("a.svg", "b.svg"):
        slots.plot({**result, "dtype": "float32"}, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_ids_survive_llama2cs_spelling():
    ids = [2, 3, 255, 31999, 127999]
    assert ids_of(spelled(ids)) == ids
    assert {len(character.encode()) for character in spelled(ids)} == {1, 4}


def test_llama2c_reads_its_weights_by_kind(native, tmp_path):
    write_llama2c(native, tmp_path / "llama2c")
    c, source = SHAPES["tiny"], open_checkpoint(native)
    written = (tmp_path / "llama2c" / "model.bin").read_bytes()
    assert struct.unpack("<7i", written[:28]) == (64, 128, 2, 4, 2, 256, 256)
    numbers = np.frombuffer(written[28:], np.float32)
    assert len(numbers) == parameters(c) + c.max_seq_len * c.head_dim
    second_wq = c.vocab_size * c.dim + c.n_layers * c.dim + c.dim * c.dim
    found = numbers[second_wq : second_wq + c.dim * c.dim].reshape(c.dim, c.dim)
    np.testing.assert_array_equal(found, source.tensors["layers_1", "attention", "wq"][...].T)


def test_llama2c_is_asked_for_ids_and_read_as_it_prints(tmp_path):
    """Its program is stood in for by one that prints its prompt, and then counts on from it."""
    program = tmp_path / "run"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "given = dict(zip(sys.argv[2::2], sys.argv[3::2]))\n"
        "new = int(given['-n']) - len(given['-i']) - 1\n"
        "for piece in given['-i'] + ''.join(chr(0x10000 + 10 + i) for i in range(new)):\n"
        "    sys.stdout.write(piece)\n"
        "    sys.stdout.flush()\n"
        "print()\n"
    )
    program.chmod(0o755)
    run = Llama2c(tmp_path, str(program), 1).decode([[1, 2, 7, 8]], 5)
    assert run.tokens == [[10, 11, 12, 13, 14]]
    assert 0 <= run.followed <= 4
    with pytest.raises(ValueError, match="begins a prompt"):
        Llama2c(tmp_path, str(program), 1).decode([[5, 6, 7]], 5)


@needs("gguf")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gguf_holds_hugging_faces_rows_permuted_back(native, tmp_path, dtype):
    """As llama.cpp's converter does it: [heads, 2, half, in] to [heads, half, 2, in]."""
    import gguf
    from safetensors.numpy import load_file

    cast = tmp_path / "cast"
    llama_jax.save(llama_jax.load(native, dtype=dtype), cast)
    write_gguf(cast, tmp_path / "model.gguf")
    export(cast, tmp_path / "hf", format="hf")
    theirs = load_file(tmp_path / "hf" / "model.safetensors")
    reader, c = gguf.GGUFReader(tmp_path / "model.gguf"), SHAPES["tiny"]
    held = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.get_field("llama.attention.head_count_kv").contents() == c.n_kv_heads
    assert reader.get_field("tokenizer.ggml.model").contents() == "no_vocab"
    for ggufs, hf, heads in (("attn_q", "q_proj", c.n_heads), ("attn_k", "k_proj", c.n_kv_heads)):
        rows = theirs[f"model.layers.1.self_attn.{hf}.weight"]
        adjacent = rows.reshape(heads, 2, -1, c.dim).swapaxes(1, 2).reshape(rows.shape)
        found = held[f"blk.1.{ggufs}.weight"].data.view(rows.dtype)
        np.testing.assert_array_equal(found, adjacent)
    assert held["output_norm.weight"].data.dtype == np.float32
    assert "output.weight" not in held  # tied
    assert len(held) == len(theirs)


def test_who_cannot_take_part_says_why(monkeypatch):
    c = SHAPES["tiny"]
    assert absent("llama_jax", c, "float32", "cpu", None) is None
    assert "cpu alone" in absent("llama.cpp", c, "float32", "gpu", None)
    assert "--llama2c" in absent("llama2.c", c, "float32", "cpu", None)
    assert "float32" in absent("llama2.c", c, "bfloat16", "cpu", "run")
    assert "epsilon" in absent("llama2.c", c.replace(norm_eps=1e-6), "float32", "cpu", "run")
    assert absent("llama2.c", c, "float32", "cpu", "run") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "and torch are not installed" in absent("transformers", c, "float32", "cpu", None)


def test_our_worker_measures_what_generate_writes(native):
    from benchmarks.ours import load

    ours = load(Loading(native, "float32", "cpu", threads=2, contexts={1: 64, 8: 64}))
    rows = prompts(Model("tiny", native, "float32", SHAPES["tiny"]), 16, 8)
    answer = answered(ours, {"do": "decode", "prompts": rows, "new": 6})
    written = llama_jax.generate(ours.params, rows, max_new_tokens=6, temperature=0, stop_ids=())
    assert answer["tokens"] == [done.tokens for done in written]
    assert answer["rate"] > 0
    assert answered(ours, {"do": "prefill", "prompt": rows[0]})["rate"] > 0
    assert (
        np.argmax(answered(ours, {"do": "logits", "prompt": rows[0]})["logits"])
        == (written[0].tokens[0])
    )
    with pytest.raises(ValueError, match="came at once"):
        answered(ours, {"do": "decode", "prompts": rows[:1], "new": 1})
    ours.decode = lambda prompts, new: Run([[1, 2]], 1, -0.01)
    with pytest.raises(ValueError, match="less busy"):
        answered(ours, {"do": "decode", "prompts": rows[:1], "new": 2})
    with pytest.raises(ValueError, match="'sing'"):
        answered(ours, {"do": "sing"})


@pytest.mark.slow
def test_a_tiny_contest_from_end_to_end(tmp_path):
    """Ours alone, which is what a clone without the extra `bench` has."""
    output = tmp_path / "result.json"
    options = f"--quick --shapes tiny --contestants llama_jax --work {tmp_path} --output {output}"
    done = subprocess.run(
        [sys.executable, str(BENCH), *options.split()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rates = json.loads(output.read_text())["models"]["tiny"]["rates"]
    assert {len(values) for values in rates["llama_jax"].values()} == {2}
    assert set(rates["llama_jax"]) == {"decode 1", "decode 8", "prefill"}
    assert set(rates[MACHINE]) == {"matrix float32", "bandwidth 1", "bandwidth 8"}
    assert "| llama_jax |" in done.stdout
    assert "GFLOP/s" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_a_peer_agrees_with_us_to_the_last_token(name, tmp_path):
    if reason := absent(name, SHAPES["tiny"], "float32", "cpu", None):
        pytest.skip(f"{name}: {reason}")
    output = tmp_path / "result.json"
    options = f"--quick --shapes tiny --contestants llama_jax,{name} --work {tmp_path}"
    subprocess.run(
        [sys.executable, str(BENCH), *options.split(), "--output", str(output)], check=True
    )
    found = json.loads(output.read_text())["models"]["tiny"]
    agreement = found["agreement"][name]
    assert agreement["tokens"] == agreement["of"]
    assert agreement["logits"] < 1e-4
    assert name != "llama.cpp" or found["memory"][name]["build"].startswith("ggml ")


def test_a_model_is_written_once_and_only_in_the_formats_asked_for(tmp_path):
    write("tiny", "float32", tmp_path, ["native", "hf"], None)
    before = (tmp_path / "native" / "checkpoint.json").stat().st_mtime_ns
    write("tiny", "float32", tmp_path, ["llama2c"], None)
    assert {path.name for path in tmp_path.iterdir()} == {"native", "hf", "llama2c"}
    assert (tmp_path / "native" / "checkpoint.json").stat().st_mtime_ns == before
    assert {entry.format for entry in CONTESTANTS.values()} == {"native", "hf", "gguf", "llama2c"}
