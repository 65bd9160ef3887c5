"""bench: its statistics, what it counts, its order of turns, its tables and its plot."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from bench import slots, table
from bench.agreement import check_agreement, distance, equal_beginnings
from bench.columns import columns_of
from bench.contest import turned
from bench.effort import Effort, prompts
from bench.machine import described
from bench.models import Model
from bench.options import DOCUMENT
from bench.shapes import SHAPES, prefill_flops, read_per_step
from bench.spread import Spread, paired, significant, spread_of
from bench.worker import MACHINE
from llama_jax.checkpoint.published import parameter_count
from llama_jax.generation.limits import initial_slots


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
    assert round(parameter_count(SHAPES["S"]) / 1e6) == 110
    assert round(parameter_count(SHAPES["M"]) / 1e9, 1) == 1.1


def test_a_step_reads_an_embedding_only_where_it_is_the_output_too():
    tied, own = SHAPES["S"], SHAPES["M"]
    assert read_per_step(tied) == parameter_count(tied)
    assert read_per_step(own) == parameter_count(own) - own.vocab_size * own.dim


def test_a_prompt_of_one_token_uses_every_weight_once():
    c = SHAPES["S"]
    assert prefill_flops(c, 1) == pytest.approx(2 * parameter_count(c), rel=0.01)
    assert prefill_flops(c, 512) > 500 * 2 * (parameter_count(c) - c.vocab_size * c.dim)


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


@pytest.mark.parametrize("count", [2, 3, 4])
def test_who_goes_first_and_who_follows_whom_changes_with_the_round(count):
    names = [f"contestant {i}" for i in range(count)]
    rounds = [turned(names, i) for i in range(2 * count)]
    assert all(sorted(order) == names for order in rounds)
    assert {order[0] for order in rounds} == set(names)
    pairs = [pair for order in rounds for pair in itertools.pairwise(order)]
    one, other = names[:2]
    assert pairs.count((one, other)) == pairs.count((other, one)) > 0


def measured(config):
    """Two contestants' numbers, one of whom does one text at a time, as llama2.c does."""
    step = 4 * read_per_step(config)
    ours = {"decode 1": [50.0, 60.0], "decode 8": [400.0, 400.0], "prefill": [30.0, 30.0]}
    ours |= {f"bandwidth {batch}": [100.0 * step, 120.0 * step] for batch in (1, 8)}
    alone = {"decode 1": [100.0, 120.0], "bandwidth 1": [200.0 * step, 240.0 * step]}
    machine = {f"bandwidth {batch}": [50.0 * step] * 3 for batch in (1, 8)}
    machine["matrix float32"] = [60 * prefill_flops(config, 64) / 64] * 2
    count = parameter_count(config)
    held = {"loaded_bytes": 2 * 4 * count, "peak_bytes": 3 * 4 * count}
    return {
        "config": config.to_json(),
        "prefill": 64,
        "rates": {"llama_jax": ours, "llama2.c": alone, MACHINE: machine},
        "memory": {"llama_jax": held, "llama2.c": {**held, "loaded_bytes": 0}},
        "first_tokens": {
            "llama_jax": {"cold": [3.0, 3.0], "cached": [1.0, 1.0], "peak": [10 * count] * 2},
            "llama2.c": {"cold": [0.5, 0.5], "peak": [5 * count] * 2},
        },
    }


def test_a_table_shows_rates_their_part_of_the_limit_and_ratios():
    rows = table.model_table("tiny", measured(SHAPES["tiny"]), "float32", "gpu").splitlines()[2:]
    cells = {line.split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in rows[2:5]}
    assert len({line.count("|") for line in rows[:5]}) == 1
    assert cells["| llama_jax"][0] == "55.0 (52.5-57.5); 0.50"
    assert cells["| llama_jax"][1:3] == ["400; 0.46", "30.0; 0.50"]
    assert cells["| llama_jax"][3:] == ["3.00", "1.00", "2.00", "2.50", "3.00"]
    assert cells["| llama2.c"][0] == "110 (105-115); 0.50"
    assert cells["| llama_jax / llama2.c"] == ["0.500", "", "", "6.00", "2.00", "", "2.00", "1.00"]
    assert rows[-1].startswith("In the same rounds the machine reads ")


def test_a_ratio_is_of_the_rounds_in_which_both_met_the_same_machine():
    def over(ours_read, theirs_read):
        one = measured(SHAPES["tiny"])
        for name, rates, read in (
            ("llama_jax", [50.0, 60.0, 40.0], ours_read),
            ("llama2.c", [100.0, 50.0, 80.0], theirs_read),
        ):
            one["rates"][name] |= {"decode 1": rates, "bandwidth 1": read}
        return columns_of(one, "float32", "cpu")[0].over("llama2.c")

    assert over([40.0, 70.0, 70.0], [45.0, 45.0, 69.0]) == Spread(0.5, 0.5, 0.5)
    assert over([40.0, 70.0, 70.0], [60.0, 45.0, 40.0]).median == 0.5, "of all: 0.5, 1.2, 0.5"
    assert over([40.0, 70.0, 70.0], [60.0, 70.0, 40.0]) == Spread(1.2, 1.2, 1.2)


def test_a_heading_names_the_card_and_what_drives_it():
    gpu = {"card": "NVIDIA H100", "cuda": "cuda 12090", "driver": "570.1"}
    machine = {"processor": "Xeon", "cores": 16, "memory_bytes": 2**37, "python": "3.12.1"}
    machine |= {"device": "gpu", "gpu": {**gpu, "packages": {"jax-cuda12-plugin": "0.10.2"}}}
    result = {"machine": machine, "versions": {"jax": "0.10.2"}, "load": [1], "load_at_end": [2]}
    result |= {"date": "today", "command": "python -m bench", "seconds": 60, "models": {}}
    result |= {"source": {"commit": None}, "absent": ["llama.cpp (S): it is measured on cpu alone"]}
    shown = table.markdown({**result, "dtype": "bfloat16"})
    assert "NVIDIA H100 (driver 570.1, cuda 12090, jax-cuda12-plugin 0.10.2); Python" in shown
    assert shown.endswith("\n\nNot here: llama.cpp (S): it is measured on cpu alone.")
    machine["gpu"] = None
    assert "128 GiB, gpu; Python" in table.markdown({**result, "dtype": "bfloat16"})


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


def test_decode_is_also_measured_where_the_cache_has_just_doubled():
    config = SHAPES["S-long"]
    prompts_of = []

    class Pacing:
        def ask(self, do, prompt, new):
            prompts_of.append(len(prompt))
            return {"seconds": initial_slots(len(prompt), config.max_seq_len) / 1e6 * (new - 1)}

    model = Model("S-long", Path(), "float32", config)
    first, found = slots.costs(Pacing(), model, 2, lambda text: None)
    assert {len(ms) for ms in first["milliseconds"].values()} == {1}  # kept, if that was the last
    assert prompts_of == [192, 960, 4032, 16320, 236, 1036, 4136] * 3
    assert all(initial_slots(size - slots.NEW, config.max_seq_len) == size for size in slots.SLOTS)
    assert {past: cache for past, (cache, _) in found["just_past"].items()} == {
        300: 512,
        1100: 2048,
        4200: 8192,
    }
    assert found["off_line"] < 1e-9  # the four alone make the line
    assert {len(ms) for ms in found["milliseconds"].values()} == {2}
    assert found["just_past"][300][1] == pytest.approx([0.512] * 2)


def test_the_table_of_slots_says_of_what_model_and_how_far_each_point_is_off_the_line():
    about = {"date": "2026-11-22", "command": "python -m bench --slots", "seconds": 60.0}
    about |= {"machine": described("cpu"), "versions": {}, "dtype": "float32"}
    about |= {"load": [0.0], "load_at_end": [0.0], "source": {"commit": None, "changed": None}}
    result = {"model": "tiny", "config": SHAPES["tiny"].to_json(), "line": (2.0, 0.001)}
    result |= {"milliseconds": {256: [2.256], 1024: [3.024]}, "just_past": {300: (512, [2.53])}}
    text = table.slots_table({**about, **result})
    assert "**tiny** (0.1M parameters, float32, 0.00 GB), `llama_jax.stream`" in text
    assert "| 1,024 | 1,024 | 3.02 | +0 % |" in text
    assert "| 300 | 512 | 2.53 | +10 % |" in text


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib comes with `bench`"
)
def test_a_plot_of_the_same_numbers_is_the_same_file(tmp_path):
    result = {"milliseconds": {"256": [1.0, 2.0], "1024": [3.0, 4.0]}, "line": [1.0, 0.002]}
    result |= {"just_past": {"300": [512, [2.0, 2.5]]}, "dtype": "float32", "model": "S-long"}
    for name in ("a.svg", "b.svg"):
        slots.plot(result, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
