"""Chat templates that have files of their own, and a model's own beside a tokenizer it shares."""

import json

import pytest
from dialog_kinds import byte_folder
from hf_folder import write_folder
from small_tokenizers import sentencepiece_file, tiktoken_file

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.hub import needed
from llama_jax.tokenizer import find_tokenizer, load_tokenizer
from llama_jax.tokenizer.folder import tokenizer_state

ASKED = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
KINDS = {"SentencePiece": sentencepiece_file, "tiktoken": tiktoken_file}


def named(folder, **templates):
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    for name, text in templates.items():
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text, encoding="utf-8")


def written(tokenizer, tools=None):
    return tokenizer.decode(tokenizer.encode_dialog(ASKED, tools=tools))


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_template_of_tools_may_have_a_file_of_its_own(tmp_path, where):
    byte_folder(tmp_path, "of the config")
    named(tmp_path, tool_use="é{{ tools[0].function.name }}", rag="of rag")
    if where == "chat_template.jinja":
        (tmp_path / where).write_text("of its file")
    tokenizer = load_tokenizer(tmp_path)
    assert written(tokenizer, TOOLS) == "éf"
    (note,) = [note for note in tokenizer.notes if "'rag'" in note]
    assert "'tool_use'" not in note
    if where == "chat_template.jinja":
        assert written(tokenizer) == "of its file"
    else:  # as transformers has it, files that have a name stand in place of the config's
        with pytest.raises(ValueError, match="none is named default"):
            written(tokenizer)


def test_a_template_named_default_is_the_default_and_others_are_no_error(tmp_path):
    byte_folder(tmp_path, "of the config")
    named(tmp_path, default="x", rag="y")
    assert written(load_tokenizer(tmp_path)) == "x"
    (tmp_path / "chat_template.jinja").write_text("z")
    assert written(load_tokenizer(tmp_path)) == "z"
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"rag\.jinja is not UTF-8"):
        load_tokenizer(tmp_path)


def test_copies_keep_the_templates_and_a_tokenizer_is_never_stale(tmp_path):
    folder = write_folder(tmp_path / "m", vocab_size=263)
    byte_folder(folder, "of the config")
    named(folder, tool_use="{{ tools | length }}")
    before = tokenizer_state(folder / "tokenizer.json")
    named(folder, default="2")
    assert tokenizer_state(folder / "tokenizer.json") != before
    convert(folder, tmp_path / "native")
    export(tmp_path / "native", tmp_path / "hf", format="hf")
    for copy in (tmp_path / "native", tmp_path / "hf"):
        tokenizer = load_tokenizer(copy)
        assert (written(tokenizer), written(tokenizer, TOOLS)) == ("2", "1")
    convert(folder, tmp_path / "native", overwrite=True)
    export(tmp_path / "native", tmp_path / "hf", format="hf", overwrite=True)


def test_named_templates_are_downloaded_and_nothing_else_that_lies_below():
    names = ["config.json", "model.safetensors", "original/params.json", "tokenizer.json"]
    more = ["additional_chat_templates/rag.jinja", "additional_chat_templates/x.py"]
    assert needed([*names, *more]) == [names[0], names[1], names[3], more[0]]


def test_a_link_to_templates_out_of_the_folder_is_refused(tmp_path):
    folder = write_folder(tmp_path / "m", vocab_size=263)
    byte_folder(folder, "x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tool_use.jinja").write_text("y")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link out of the folder"):
        llama_jax.load(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_models_own_template_counts_beside_the_tokenizer_that_it_shares(tmp_path, kind, name):
    for size in ("7B", "13B"):
        (tmp_path / size).mkdir()
        (tmp_path / size / "params.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_bytes(KINDS[kind]())
    own = "own" if name.endswith("jinja") else json.dumps({"chat_template": "own"})
    (tmp_path / "7B" / name).write_text(own)
    assert find_tokenizer(tmp_path / "7B").samefile(tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path / "7B").has_template
    assert written(load_tokenizer(find_tokenizer(tmp_path / "7B"))) == "own"
    assert not load_tokenizer(tmp_path / "13B").has_template
    assert not load_tokenizer(tmp_path / "tokenizer.model").has_template
    (tmp_path / "chat_template.jinja").write_text("shared")
    assert written(load_tokenizer(tmp_path / "13B")) == "shared"


def test_a_path_through_any_other_folder_is_only_a_path(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "chat_template.jinja").write_text("somebody's")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    monkeypatch.chdir(tmp_path / "notebooks")
    assert not load_tokenizer("../tokenizer.model").has_template


@pytest.mark.parametrize(
    "template", ["<|user|>{{ messages[0].content }}", "{{ '<\uff5cUser\uff5c>' }}"]
)
def test_what_a_template_spells_like_a_control_token_and_nobody_knows_is_a_note(tmp_path, template):
    byte_folder(tmp_path, "{# <|comment|> #}<|u|>" + template)
    (note,) = load_tokenizer(tmp_path).notes
    assert "no token of this tokenizer" in note
    assert template.strip("{ '}").split(">")[0] in note
    assert "<|u|>" not in note
    assert "<|comment|>" not in note
