"""Which tokens of a dialog are trained, against transformers' `return_assistant_tokens_mask`."""

import random

import pytest
import tokenizers

pytest.importorskip("transformers", reason="transformers is absent; pip install -e '.[oracle]'")

from transformers import PreTrainedTokenizerFast

from llama_jax.tokenizer import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
CONTROLS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
WORDS = [
    "llama",
    " the",
    "\n",
    "\n\n",
    "  ",
    "1234",
    "é",
    "\N{LLAMA}",
    "don't",
    "\t",
    "[INST]",
    ".",
]


TRIMMED = TEMPLATE.replace("m.content", "m.content | trim")
"""As Llama 3's own template has it."""


@pytest.fixture(scope="module", params=[TEMPLATE, TRIMMED], ids=["whole", "trimmed"])
def folder(request, tmp_path_factory):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=CONTROLS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the llama\n\nand the user and assistant don't"] * 20, trainer)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=CONTROLS[0],
        eos_token=CONTROLS[3],
        chat_template=request.param,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    theirs.save_pretrained(folder)
    return folder, theirs


def dialog(number):
    draw = random.Random(number)

    def content():
        return "".join(draw.choices(WORDS, k=draw.randrange(12)))

    roles = ["user", "assistant"] * draw.randrange(1, 5)
    if draw.random() < 0.5:
        roles.insert(0, "system")
    return [{"role": role, "content": content()} for role in roles]


def test_the_trained_tokens_of_200_dialogs_are_transformers(folder):
    folder, theirs = folder
    ours = load_tokenizer(folder)
    for number in range(200):
        messages = dialog(number)
        wanted = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, writers = ours.encode_answers(messages)
        assert ids == wanted["input_ids"]
        assert [int(writer >= 0) for writer in writers] == wanted["assistant_masks"]
        assert [messages[i]["role"] for i in writers if i >= 0] == ["assistant"] * sum(
            wanted["assistant_masks"]
        )
