"""Prompts of `generate`: whole files, lines, JSON lines, stdin, questions."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from dialog_kinds import TOOL_TEMPLATE, TOOLS, byte_folder
from helpers import GOLDEN_META, run
from hf_folder import write_folder

import llama_jax
from llama_jax.checkpoint.named import PRETRAINED
from llama_jax.cli import text_output
from llama_jax.cli.dialogs import is_instruct
from llama_jax.cli.prompts import Asked
from llama_jax.cli.requests import Request
from llama_jax.cli.sampling import TextSampling
from llama_jax.cli.text_input import unescaped
from llama_jax.cli.text_output import in_order
from llama_jax.completions import as_finished
from llama_jax.generation.results import Delta
from llama_jax.generation.settings import SamplingSettings
from llama_jax.weights.by_outputs import ByOutputs

LLAMA3 = GOLDEN_META / "llama3"
FEW = ("-n", 3, "-t", 0)


def rows(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_whole_file_is_one_prompt_and_its_lines_are_several(writer, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("Q: one?\nA: two\n\nQ:\n")
    whole = run("generate", writer, "-f", file, "--whole", *FEW, "--json")
    assert [row["prompt"] for row in rows(whole)] == ["Q: one?\nA: two\n\nQ:"]
    lines = run("generate", writer, "-f", file, "--lines", *FEW, "--json")
    assert [row["prompt"] for row in rows(lines)] == ["Q: one?", "A: two", "Q:"]
    usual = run("generate", writer, "-f", file, *FEW, "--json")
    assert usual.stdout == lines.stdout
    assert "3 prompts, one a line; --whole makes it one" in usual.stderr
    assert "--whole" not in lines.stderr


@pytest.mark.parametrize("text", ["one\ntwo\n", "  a  ", "é\n\n"])
def test_what_a_pipe_brings_is_the_prompt(writer, text):
    (row,) = rows(run("generate", writer, *FEW, "--json", input=text.encode()))
    assert row["prompt"] == text.removesuffix("\n")
    lines = rows(run("generate", writer, *FEW, "--json", "--lines", input=text.encode()))
    assert [row["prompt"] for row in lines] == [line for line in text.split("\n") if line]


def test_a_wrong_line_costs_that_line(writer, tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes(b"one\ncaf\xe9\n" + b"long" * 100 + b"\ntwo\n")
    result = run("generate", writer, "-f", file, *FEW, "--json")
    assert result.exit_code == 1
    one, bytes_, long, two = rows(result)
    assert (len(one["tokens"]), len(two["tokens"])) == (3, 3)
    assert "p.txt, line 2: byte 4 of the line, 0xE9" in bytes_["error"]
    assert f"{file}, line 3 has 401 tokens and the context ends at max_seq_len=256" in long["error"]
    assert "pass --truncate" in result.stderr
    assert long["error"].replace("truncate=True", "--truncate") in result.stderr
    # The others are what they are without it.
    alone = rows(run("generate", writer, "one", *FEW, "--json"))
    assert alone[0]["tokens"] == one["tokens"]


def test_a_seed_is_of_the_place_whatever_stands_before(writer, tmp_path):
    sound, broken = tmp_path / "sound.txt", tmp_path / "broken.txt"
    sound.write_bytes(b"one\ntwo\n")
    broken.write_bytes(b"\xff\ntwo\n")
    options = ("-n", 8, "-t", 1.5, "--json")
    one, other = (rows(run("generate", writer, "-f", file, *options)) for file in (sound, broken))
    assert one[1]["tokens"] == other[1]["tokens"]


def test_json_lines_come_back_by_their_place(writer):
    lines = [
        json.dumps("one"),
        json.dumps([1, 2, 3]),
        json.dumps({"prompt": "two", "max_new_tokens": 1, "id": "b"}),
        "{",
        json.dumps({"prompt": "x", "heat": 3}),
        json.dumps({"prompt": "x", "top_p": 7}),
        json.dumps({"id": 4}),
        json.dumps({"prompt": "y", "logit_bias": {"65": 100}}),
    ]
    result = run("generate", writer, "--jsonl", *FEW, input="\n".join(lines))
    assert result.exit_code == 1
    found = {row["index"]: row for row in rows(result)}
    assert sorted(found) == list(range(len(lines)))
    assert [len(found[i]["tokens"]) for i in (0, 1, 2, 7)] == [3, 3, 1, 3]
    assert found[2]["id"] == "b"
    assert found[7]["tokens"] == [65, 65, 65]
    for i, said in (
        (3, "no JSON"),
        (4, "'heat' is no setting"),
        (5, "top_p=7"),
        (6, "needs either"),
    ):
        assert found[i]["error"].startswith(f"stdin, line {i + 1}: ")
        assert said in found[i]["error"]


@pytest.mark.parametrize(
    ("more", "turned"), [([], False), (["One day"], True), (["--num-samples", "2"], True)]
)
def test_weights_are_turned_for_several_rows_alone(writer, monkeypatch, more, turned):
    kinds = set()

    def stream(params, *given, **options):
        kinds.add(type(params.weights["output"]["weight"]) is ByOutputs)
        return llama_jax.completions.stream(params, *given, **options)

    monkeypatch.setattr(llama_jax, "stream", stream)
    result = run("generate", writer, "Once", *more, *FEW)
    assert result.exit_code == 0
    assert kinds == {turned}
    as_they_are = llama_jax.load(writer)
    prompts, n = (["Once", *more], 1) if more[:1] != ["--num-samples"] else (["Once"], 2)
    for done in llama_jax.generate(as_they_are, prompts, n=n, max_new_tokens=3, temperature=0):
        assert done.text in result.stdout


def test_a_question_goes_through_the_template(talker):
    params = llama_jax.load(talker)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    told = llama_jax.chat(params, messages, max_new_tokens=3, temperature=0)
    by_option = run("generate", talker, "Hi", "--chat", "--system", "Be brief.", *FEW, "--json")
    by_line = run("generate", talker, "--jsonl", *FEW, input=json.dumps({"messages": messages}))
    assert rows(by_option)[0]["tokens"] == rows(by_line)[0]["tokens"] == told.tokens
    assert rows(by_option)[0]["text"] == told.text
    assert run("generate", talker, "Hi", "--chat", "--system", "Be brief.", *FEW).stdout == (
        told.text + "\n"
    )


def test_a_json_line_tells_its_dialog_of_tools(tmp_path):
    folder = write_folder(tmp_path / "m", vocab_size=263, max_position_embeddings=256)
    byte_folder(folder, TOOL_TEMPLATE, eos="<|end|>")
    messages = [{"role": "user", "content": "Hi"}]
    lines = [
        {"messages": messages, "tools": TOOLS},
        {"messages": messages},
        {"messages": messages, "tools": 5},
        {"prompt": "Hi", "tools": TOOLS},
    ]
    result = run("generate", folder, "--jsonl", *FEW, input="\n".join(map(json.dumps, lines)))
    found = {row["index"]: row for row in rows(result)}
    params = llama_jax.load(folder)
    for index, tools in (0, TOOLS), (1, None):
        told = llama_jax.chat(params, messages, tools=tools, max_new_tokens=3, temperature=0)
        assert found[index]["tokens"] == told.tokens
    assert found[2]["error"].startswith("stdin, line 3: tools=5 is no list of tools")
    assert "line 4 is no dialog, and tools= are told in one" in found[3]["error"]


def test_a_dialog_is_a_prompt_in_python_too(talker):
    params = llama_jax.load(talker)
    dialogs = [[{"role": "user", "content": text}] for text in ("Hi", "What is it?")]
    settings = {"max_new_tokens": 4, "temperature": 0}
    found = llama_jax.generate(params, dialogs, **settings)
    assert found == [llama_jax.chat(params, dialog, **settings) for dialog in dialogs]
    assert dict(as_finished(params, dialogs, **settings)) == dict(enumerate(found))
    with pytest.raises(ValueError, match=r"prompt 0 is a dialog of .* shorten its messages"):
        llama_jax.generate(params, [[{"role": "user", "content": "a" * 300}]], truncate=True)


def test_without_a_template_a_question_is_refused_before_the_weights_are_read(writer, monkeypatch):
    monkeypatch.setattr(llama_jax, "load", None)
    for arguments, code, way_out in (
        (("generate", writer, "Hi", "--chat"), 2, "leave out --chat"),  # the option is wrong
        (("chat", writer), 1, "use `llama-jax generate`"),  # the model is
    ):
        result = run(*arguments)
        assert result.exit_code == code
        assert "is no chat model" in result.stderr
        assert f"To continue a text, {way_out}" in result.stderr


@pytest.mark.parametrize("model", ["stories", "writer"])
def test_a_json_lines_dialog_is_refused_where_a_question_would_be(writer, model):
    lines = '{"messages": [{"role": "user", "content": "Hi"}]}\n"Once"\n'
    checkpoint = writer if model == "writer" else model
    result = run("generate", checkpoint, "--jsonl", "-f", "-", *FEW, input=lines.encode())
    assert result.exit_code == 1
    wrong, right = sorted(rows(result), key=lambda row: row["index"])
    why = "only tells stories" if model == "stories" else "has no chat template"
    assert wrong["error"].startswith("stdin, line 1: ")
    assert why in wrong["error"]
    assert len(right["tokens"]) == 3


@pytest.mark.parametrize(
    "asked",
    [("Hi", "--chat"), ("--jsonl",)],
    ids=["question", "messages"],
)
def test_a_format_that_nobody_stated_is_said(tmp_path, asked):
    folder = write_folder(tmp_path / "plain", vocab_size=2048)
    shutil.copy(PRETRAINED / "tokenizer.model", folder)
    lines = '{"messages": [{"role": "user", "content": "Hi"}]}'
    result = run("generate", folder, *asked, *FEW, input=lines.encode())
    assert "dialogs are written in Llama 2's format; a model that never saw it" in result.stderr


def test_with_jsonl_a_prompt_that_is_typed_is_json_too(writer):
    typed = '{"prompt": [1, 2], "max_new_tokens": 1, "id": "a"}', '"Once"', "Once"
    result = run("generate", writer, *typed, "--jsonl", *FEW)
    assert result.exit_code == 2
    found = {row["index"]: row for row in rows(result)}
    assert (found[0]["id"], found[0]["prompt"], len(found[0]["tokens"])) == ("a", [1, 2], 1)
    assert (found[1]["prompt"], len(found[1]["tokens"])) == ("Once", 3)
    assert found[2]["error"].startswith("prompt 3: no JSON")
    whole = run("generate", writer, "--jsonl", "--whole", input=b"5")
    assert whole.exit_code == 2
    assert "--jsonl reads each line and --whole all as one" in whole.stderr


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [("stop_ids", [99_999], ("--stop-id", "99999")), ("logit_bias", {99_999: 1}, None)],
)
def test_a_setting_of_a_line_is_named_as_the_line_has_it(writer, name, value, option):
    line = json.dumps({"prompt": "Once", name: value})
    result = run("generate", writer, "--jsonl", *FEW, input=line.encode())
    assert result.exit_code == 1
    (row,) = rows(result)
    assert row["error"].startswith(f'stdin, line 1: "{name}" has token 99999')
    if option is not None:  # the command's own keeps the option's name
        typed = run("generate", writer, "Once", *option, *FEW)
        assert typed.exit_code == 2
        assert "--stop-id has token 99999" in typed.stderr


INSISTING = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('first a system message') }}"
    "{% endif %}{% for m in messages %}{{ m.content }};{% endfor %}"
)
COUNTING = (
    "{% for m in messages %}{% if m.content|length > 3 %}{{ raise_exception('too long') }}"
    "{% endif %}{{ m.content }};{% endfor %}"
)


@pytest.mark.parametrize(("template", "system"), [(INSISTING, "Be brief."), (COUNTING, "B.")])
def test_a_template_is_asked_about_the_users_dialog_alone(tmp_path, template, system):
    folder = write_folder(tmp_path / "m", vocab_size=263, max_position_embeddings=256)
    byte_folder(folder, template)
    asked = run("generate", folder, "Hi", "--chat", "--system", system, *FEW)
    assert asked.exit_code == 0, asked.output
    told = run("chat", folder, "--system", system, *FEW, input="Hi\n")
    assert told.exit_code == 0, told.output
    assert told.stdout == asked.stdout


def test_what_a_template_refuses_is_said_of_the_prompt(tmp_path):
    folder = write_folder(tmp_path / "m", vocab_size=263, max_position_embeddings=256)
    byte_folder(folder, INSISTING)
    refused = run("generate", folder, "Hi", "--chat", *FEW)
    assert refused.exit_code == 2
    assert "prompt 1: " in refused.stderr
    assert "first a system message" in refused.stderr
    assert "is no chat model" not in refused.stderr


@pytest.mark.parametrize(
    ("name", "template", "instruct"),
    [("model.gguf", "{{ messages }}", True), ("m", None, False), ("Llama-2-7b-chat", None, True)],
)
def test_a_chat_model_is_known_by_its_template_wherever_that_lies(
    tmp_path, name, template, instruct
):
    byte_folder(tmp_path, template)
    tokenizer = llama_jax.load_tokenizer(tmp_path)
    source = SimpleNamespace(path=tmp_path / name, format="huggingface")
    assert is_instruct(source, tokenizer) is instruct
    assert not is_instruct(source, None)


def test_samples_stand_side_by_side(writer):
    options = ("-n", 6, "-t", 1.5, "--json")
    found = rows(run("generate", writer, "a", "b", "--num-samples", 2, *options))
    assert [(row["prompt"], row["sample"]) for row in found] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1)
    ]  # fmt: skip
    params = llama_jax.load(writer)
    settings = {"max_new_tokens": 6, "temperature": 1.5, "seed": [0, 2]}
    drawn = llama_jax.generate(params, ["a", "b"], n=2, **settings)
    assert [row["tokens"] for row in found] == [done.tokens for done in drawn]


def test_the_context_that_is_full_is_said(writer):
    result = run(
        "generate", writer, "a" * 250, "-n", 50, "-t", 0, "--logit-bias", "257=-inf", "--json"
    )
    (row,) = rows(result)
    assert row["context_full"] is True
    assert "the context of 256 tokens is full" in result.stderr
    result = run("generate", writer, "a" * 250, "-n", 50, "-t", 0, "--logit-bias", "257=-inf")
    assert "the context of 256 tokens is full" in result.stderr
    result = run("generate", writer, "a" * 300, "-n", 1, "-t", 0, "--truncate")
    assert result.exit_code == 0, result.output
    assert "prompt 1 is cut to its last 255 tokens" in result.stderr
    assert "is full" not in result.stderr


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_is_said_of_a_full_context_stands_in_no_text(monkeypatch, capsys, order):
    monkeypatch.setattr(text_output, "say_full", lambda request, tokens: print(f"[{tokens}]"))
    settings = SamplingSettings(max_new_tokens=9)
    asked = [Request(i, Asked("", "", prompt=""), "", 1, settings) for i in range(2)]
    first, second = order
    gains = [(0, "a", None), (1, "b", None), (first, "A", "length"), (second, "B", "length")]
    deltas = [Delta(row, text, [1] * (row + 1), None, end) for row, text, end in gains]
    text_output.print_text(asked, 1, iter(deltas), ids=False, echo=False)
    texts = "aA\n\nbB\n" if order == (0, 1) else "aB\n\nbA\n"
    assert capsys.readouterr().out == f"{texts}[2]\n[4]\n"


def test_options_are_the_settings_of_python(writer):
    given = (
        "--stop-id",
        70,
        "--logit-bias",
        "70=50",
        "--min-new-tokens",
        2,
        "--prompt-logprobs",
        1,
    )
    (row,) = rows(
        run("generate", writer, "ab", "-n", 8, "-t", 0, *given, "--logprobs", 2, "--json")
    )
    (done,) = llama_jax.generate(
        llama_jax.load(writer),
        ["ab"],
        max_new_tokens=8,
        temperature=0,
        stop_ids=[70],
        logit_bias={70: 50},
        min_new_tokens=2,
        prompt_logprobs=1,
        logprobs=2,
    )
    assert (row["tokens"], row["finish_reason"]) == (done.tokens, "stop")
    assert len(row["prompt_logprobs"]) == 3
    assert row["token_texts"] == [entry["text"] for entry in row["logprobs"]]
    assert row["logprobs"][0]["top_texts"].keys() == row["logprobs"][0]["top"].keys()
    assert row["stop_logprob"]["text"] == llama_jax.load_tokenizer(writer).decode([70])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"),
        (r"a\tb", "a\tb"),
        (r"\\n", r"\n"),
        (r"\u00e9\x41", "éA"),
        (r"\q", r"\q"),
        ("é", "é"),
    ],
)
def test_a_stop_string_has_escapes(typed, meant):
    assert unescaped(typed, "--stop") == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "--stop '' is no text"),
        (r"a\ud800", r"--stop 'a\\ud800' has a lone surrogate"),
        (r"\U00110000", "beyond Unicode"),
        ("\udcff", "--stop is not UTF-8"),
    ],
)
def test_a_stop_string_that_is_none_is_told_by_its_option(typed, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        TextSampling(stop=["ok", typed]).settings()


@pytest.mark.parametrize("id", [-1, "x"])
def test_a_stop_id_that_is_none_is_a_wrong_option(writer, id):
    result = run("generate", writer, "a", "--stop-id", id)
    assert result.exit_code == 2
    assert "Invalid value for '--stop-id'" in result.stderr


def test_a_stop_string_is_utf_8_whatever_the_locale():
    typed = "é".encode().decode("ascii", "surrogateescape")
    assert TextSampling(stop=[typed]).settings().stop == ("é",)


def test_what_is_found_out_of_order_waits_for_its_turn():
    found = in_order("abc", [("b", 2), ("a", 1), ("c", 3)])
    assert list(found) == [1, 2, 3]
    seen = in_order("ab", iter([("a", 1)]))
    assert next(seen) == 1
