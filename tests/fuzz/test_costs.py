"""What a few of the worst files cost; all of them cost minutes."""

import pytest
from fuzz.costs import WORST, costs

# One of each kind that once took minutes, and little to make.
QUICK = (
    "peft, tensors",
    "safetensors, dots",
    "native, one file many times",
    "torch, opcode b'('",
    "tokenizer.json, a long regex",
    "tiktoken, too many",
)


def test_no_file_of_those_found_to_be_dear_is_dear_any_more(tmp_path):
    assert check(tmp_path, QUICK) == {}


@pytest.mark.slow
def test_no_file_below_20_mb_costs_more_than_it_may(tmp_path):
    assert check(tmp_path, WORST) == {}


def check(root, names):
    found = costs(root, {name: WORST[name] for name in names})
    return {name: wrong for name, one in found.items() if (wrong := one.wrong())}
