"""tokenizer.json: the library's own ids and texts, with bos, eos and stops as the files say."""

import contextlib
import functools
import json
import os
import random

import pytest
import sentencepiece
import tokenizers
from hf_folder import mutated, write_folder
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.tokenizer import (
    Detokenizer,
    SentencePieceTokenizer,
    detokenize,
    find_tokenizer,
    load_tokenizer,
    tokenizer_files,
)

TEXTS = [
    "Once upon a time, there was a little girl.",
    " two  spaces   and\ttabs\n\nand lines ",
    "naïve café — “quoted” … 你好 世界 🦙🦙 e\u0301",
    "x",
    "",
    "  ",
    "1234567890 don't they'll 3.14",
]
CORPUS = [*TEXTS, *(f"the {word} of a little llama and its {word}s" for word in "abcdefghij")] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def byte_level():
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_like(metaspace=None):
    """As transformers converts a SentencePiece model: in the legacy way, or with Metaspace."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace is None:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    else:
        scheme = {"prepend_scheme": metaspace, "split": False}
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**scheme)
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(**scheme)]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        limit_alphabet=60,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = saved["added_tokens"][: len(SPECIAL)]  # bytes are no added tokens
    return tokenizers.Tokenizer.from_str(json.dumps(saved))


KINDS = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece_like,
    "metaspace": functools.partial(sentencepiece_like, "first"),
    "metaspace-never": functools.partial(sentencepiece_like, "never"),
}


@functools.cache
def trained(kind):
    return KINDS[kind]().to_str()


@pytest.fixture(params=KINDS)
def library(request):
    return tokenizers.Tokenizer.from_str(trained(request.param))


def folder_of(folder, library, **files):
    """A folder with a tokenizer, and files beside it: `tokenizer_config={...}`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(library.to_str(), encoding="utf-8")
    files = {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}} | files
    for name, value in files.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


# Ids and texts


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_and_texts_are_the_librarys(tmp_path, library, text):
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    ids = tokenizer.encode(text, bos=False, eos=False)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == library.decode(ids)
    assert tokenizer.decode(ids).strip() == text.strip()
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == library.decode(ids)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant"
)


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("text", ["Hi", " two  spaces", "été 🦙\n"])
def test_what_follows_an_added_token_is_as_tokenizer_json_says(tmp_path, library, legacy, text):
    """Whether a space is put there is the file's word, and not a class's that `legacy` selects."""
    first = library.get_vocab_size()
    marks = ["<|im_start|>", "<|im_end|>"]
    decoder = {str(first + n): {"content": mark, "special": True} for n, mark in enumerate(marks)}
    config = {"eos_token": "<|im_end|>", "chat_template": CHATML, "added_tokens_decoder": decoder}
    config |= {"tokenizer_class": "LlamaTokenizer"} | ({} if legacy is None else {"legacy": legacy})
    tokenizer = load_tokenizer(folder_of(tmp_path, library, tokenizer_config=config))
    library.add_special_tokens([tokenizers.AddedToken(mark, normalized=False) for mark in marks])
    rendered = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant"
    ids = tokenizer.encode_dialog([{"role": "user", "content": text}])
    assert ids == library.encode(rendered, add_special_tokens=False).ids


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_stream_is_the_text_wherever_it_is_cut(tmp_path, library, text):
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    ids = tokenizer.encode(text, bos=True, eos=False)
    for cut in range(len(ids) + 1):
        stream = Detokenizer(tokenizer, after=ids[:cut])
        pieces = [stream.push(id) for id in ids[cut:]] + [stream.finish()]
        assert "".join(pieces) == detokenize(tokenizer, ids[cut:], after=ids[:cut])
    stream = Detokenizer(tokenizer)
    assert "".join([stream.push(id) for id in ids]) + stream.finish() == library.decode(ids)


def test_any_ids_decode(tmp_path, library):
    tokenizer, rng = load_tokenizer(folder_of(tmp_path, library)), random.Random(0)
    for _ in range(200):
        tokenizer.decode(rng.choices(range(tokenizer.vocab_size), k=8))
    assert tokenizer.decode([tokenizer.vocab_size]) == ""
    with pytest.raises(ValueError, match="id -1 is no token"):
        tokenizer.decode([-1])


def test_an_unknown_decoder_is_asked_what_each_token_adds(tmp_path):
    library = tokenizers.Tokenizer.from_str(trained("byte-level"))
    library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("llama", "LLAMA")])
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    ids = library.encode("a little girl", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == library.decode(ids) == "a little girl"


@pytest.mark.parametrize("text", ["na\u00efve", "a \U0001f999 x", "e\u0301"])
@pytest.mark.parametrize("kind", ["ByteLevel", "ByteFallback"])
def test_characters_of_several_tokens_are_whole_by_an_unknown_decoder_too(tmp_path, kind, text):
    spaces = decoders.Replace(tokenizers.Regex("\u2581+"), " ")
    if kind == "ByteLevel":
        library = tokenizers.Tokenizer.from_str(trained("byte-level"))
        library.decoder = decoders.Sequence([decoders.ByteLevel(), spaces])
    else:
        known = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: 3 + n for n, c in enumerate("naivex e")}}
        known |= {f"<0x{byte:02X}>": 16 + byte for byte in range(256)}
        bpe = tokenizers.models.BPE(known, [], unk_token="<unk>", byte_fallback=True)
        library = tokenizers.Tokenizer(bpe)
        library.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    ids = tokenizer.encode(text, bos=False, eos=False)
    assert tokenizer.decode(ids) == library.decode(ids) == text


@pytest.mark.parametrize("text", ["<s>", "a</s>b", "<|end|> x", "<s></s>", "<unk>"])
def test_text_that_spells_a_control_token_stays_text(tmp_path, library, text):
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    ids = tokenizer.encode(text, bos=False, eos=False)
    assert not set(ids) & {library.token_to_id(name) for name in SPECIAL[1:]}
    assert "unk" in text or tokenizer.decode(ids).strip() == text


def test_an_eos_that_is_not_called_special_is_no_text_either(tmp_path, library):
    saved = json.loads(library.to_str())
    for token in saved["added_tokens"]:
        token["special"] = False
    library = tokenizers.Tokenizer.from_str(json.dumps(saved))
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    assert tokenizer.eos_id not in tokenizer.encode("a</s>b", bos=False, eos=False)
    assert tokenizer.special["</s>"] == tokenizer.eos_id


def test_a_control_token_is_no_part_of_a_text_and_has_a_name(tmp_path, library):
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    assert {tokenizer.bos_id, *tokenizer.stop_ids} <= set(tokenizer.special.values())
    ids = tokenizer.encode("a llama", bos=False, eos=False)
    for name in SPECIAL:
        id = tokenizer.special[name]
        assert tokenizer.decode([id, *ids, id]) == tokenizer.decode(ids)


@pytest.mark.parametrize("eos", ["</s>", "<unk>", "<|end|>"])
def test_a_control_token_that_the_file_calls_normalized_is_found_as_it_is_spelled(
    tmp_path, library, eos
):
    saved = json.loads(library.to_str())
    for token in saved["added_tokens"]:
        token["normalized"] = True
    normalized = tokenizers.Tokenizer.from_str(json.dumps(saved))
    config = {"bos_token": "<s>", "eos_token": eos}
    tokenizer = load_tokenizer(folder_of(tmp_path, normalized, tokenizer_config=config))
    assert tokenizer.special == {name: id for id, name in enumerate(SPECIAL)}
    assert tokenizer.eos_id == SPECIAL.index(eos)
    ids = tokenizer.encode_text("".join(f"a llama{name}" for name in SPECIAL), controls=True)
    assert [id for id in ids if id < len(SPECIAL)] == [0, 1, 2, 3]
    assert max(ids) < library.get_vocab_size()


def test_a_control_token_takes_the_white_space_that_the_file_says(tmp_path, library):
    saved = json.loads(library.to_str())
    for token in saved["added_tokens"]:
        token["rstrip"] = token["normalized"] = True
    taking = tokenizers.Tokenizer.from_str(json.dumps(saved))
    tokenizer = load_tokenizer(folder_of(tmp_path, taking))
    for name in ("</s>", "<|end|>"):
        spaced, bare = (
            tokenizer.encode_text(f"a{name}{space}b", controls=True) for space in (" \n", "")
        )
        assert spaced == bare


def test_truncation_and_padding_in_the_file_are_not_done(tmp_path, library):
    library.enable_truncation(3)
    library.enable_padding(length=50)
    tokenizer = load_tokenizer(folder_of(tmp_path, library))
    assert 3 < len(tokenizer.encode(TEXTS[0], bos=False, eos=False)) < 50


# What the files say


def with_bos(library):
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", library.token_to_id("<s>"))]
    )
    return library


BOS, EOS, END = 1, 2, 3
CONFIG = {"bos_token": "<s>", "eos_token": "</s>"}
ADDS = {
    "the post-processor": (True, CONFIG, True),
    "neither": (False, CONFIG, False),
    "said": (False, CONFIG | {"add_bos_token": True}, True),
    "said not to": (True, CONFIG | {"add_bos_token": False}, False),
    "LLaMA's class": (False, CONFIG | {"tokenizer_class": "LlamaTokenizer"}, True),
    "another class": (False, CONFIG | {"tokenizer_class": "GPT2Tokenizer"}, False),
    "no bos": (False, {"eos_token": "</s>", "add_bos_token": True}, False),
    "null": (False, {"bos_token": None, "eos_token": "</s>", "add_bos_token": True}, False),
}


@pytest.mark.parametrize(("processes", "config", "adds"), ADDS.values(), ids=ADDS)
def test_a_text_gets_one_bos_where_the_files_give_it_one(
    tmp_path, library, processes, config, adds
):
    library = with_bos(library) if processes else library
    tokenizer = load_tokenizer(folder_of(tmp_path, library, tokenizer_config=config))
    bare = tokenizer.encode("a llama", bos=False, eos=False)
    assert BOS not in bare
    assert tokenizer.encode("a llama", bos=True, eos=False) == [BOS] * adds + bare
    assert tokenizer.encode("a llama", bos=False, eos=True) == [*bare, EOS]


NAMED = {
    "tokenizer_config": ({}, (EOS,)),
    "an object": ({"tokenizer_config": {"eos_token": {"content": "<|end|>"}}}, (END,)),
    "special_tokens_map": (
        {"tokenizer_config": None, "special_tokens_map": {"eos_token": "<|end|>"}},
        (END,),
    ),
    "generation_config": (
        {"tokenizer_config": None, "generation_config": {"eos_token_id": 3}},
        (3,),
    ),
    "config": ({"tokenizer_config": None, "config": {"eos_token_id": 2}}, (2,)),
    "a list": ({"generation_config": {"eos_token_id": [3, 2]}}, (2, 3)),
    "all of them": (
        {"generation_config": {"eos_token_id": [3]}, "config": {"eos_token_id": [2, 4]}},
        (2, 3, 4),
    ),
    "none, and one out of reach": ({"config": {"eos_token_id": [-1, 10**6, None]}}, (2,)),
    "a name unknown": (
        {"tokenizer_config": {"eos_token": "<nobody>"}, "config": {"eos_token_id": 3}},
        (3,),
    ),
}


@pytest.mark.parametrize(("files", "stop_ids"), NAMED.values(), ids=NAMED)
def test_a_completion_stops_where_any_of_the_files_says(tmp_path, library, files, stop_ids):
    tokenizer = load_tokenizer(folder_of(tmp_path, library, **files))
    assert tokenizer.stop_ids == stop_ids
    assert tokenizer.eos_id == stop_ids[0]


def test_a_sentencepiece_model_in_a_folder_stops_where_the_folder_says(tmp_path):
    tokenizer = load_tokenizer(sentencepiece_folder(tmp_path))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.stop_ids == (2, 7)


def sentencepiece_folder(folder):
    folder.mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=9,
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    return folder


def test_tokenizer_json_is_preferred_but_beside_metas_weights(tmp_path, library):
    folder = folder_of(tmp_path, library)
    (folder / "tokenizer.model").write_bytes(b"\n")
    assert find_tokenizer(folder) == folder / "tokenizer.json"
    (folder / "params.json").write_text("{}")
    assert find_tokenizer(folder) == folder / "tokenizer.model"


@pytest.mark.parametrize("own", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("marker", ["params.json", "consolidated.00.pth"])
def test_a_folders_own_tokenizer_wins_over_its_parents(tmp_path, own, marker):
    folder = tmp_path / "7B"
    folder.mkdir()
    (folder / marker).touch()
    (tmp_path / "tokenizer.model").touch()
    assert find_tokenizer(folder).samefile(tmp_path / "tokenizer.model")
    (folder / own).touch()
    assert find_tokenizer(folder) == folder / own


# Broken files


def test_a_folder_without_an_eos_is_told_where_to_name_it(tmp_path, library):
    with pytest.raises(ValueError, match=r"tokenizer\.json is a broken tokenizer: neither .* eos"):
        load_tokenizer(folder_of(tmp_path, library, tokenizer_config=None))


@pytest.mark.parametrize("content", ["{}", '{"model": 1}', "{", "{" * 10_000])
def test_a_file_that_the_library_cannot_read_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is a broken tokenizer: the tokenizers"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer_config", "special_tokens_map", "generation_config", "config"]
)
@pytest.mark.parametrize("content", ["{", "[]", '{"a":' * 50_000])
def test_a_broken_file_beside_is_named(tmp_path, library, name, content):
    folder = folder_of(tmp_path, library)
    (folder / f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{name}\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "rounds", [150, pytest.param(3000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_a_damaged_tokenizer_is_read_or_refused_in_words(tmp_path, rounds):
    rng = random.Random(0)
    library = with_bos(tokenizers.Tokenizer.from_str(trained("sentencepiece")))
    folder = folder_of(tmp_path, library, generation_config={"eos_token_id": [2, 3]})
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    refused = []
    for _ in range(rounds):
        name = rng.choice(sorted(whole))
        (folder / name).write_bytes(mutated(whole[name], rng))
        try:
            tokenizer = load_tokenizer(folder)
        except ValueError as error:
            refused.append(str(error))
        else:
            with contextlib.suppress(ValueError):
                tokenizer.decode(tokenizer.encode("a llama", bos=True, eos=True))
        (folder / name).write_bytes(whole[name])
    assert refused
    assert all(str(folder) in message for message in refused)


def test_a_dialog_is_what_the_folders_template_writes_and_content_stays_text(tmp_path, library):
    folder = folder_of(tmp_path, library)
    dialog = [{"role": "user", "content": "a</s>b"}]
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(folder).encode_dialog(dialog)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_dialog(dialog)
    assert (ids[0], ids[-1], ids.count(EOS)) == (BOS, EOS, 1)
    assert tokenizer.decode(ids).strip() == "a</s>b"
    os.truncate(folder / "chat_template.jinja", 2**40)
    with pytest.raises(ValueError, match=r"chat_template\.jinja has more than 16,777,216 bytes"):
        load_tokenizer(folder).encode_dialog(dialog)


# Into a native checkpoint, and through generate


def test_a_native_checkpoint_carries_all_that_the_tokenizer_needs(tmp_path, library):
    files = {"generation_config": {"eos_token_id": [2, 3]}, "special_tokens_map": {}}
    folder = folder_of(tmp_path / "hf", with_bos(library), **files)
    sizes = {"vocab_size": library.get_vocab_size(), "eos_token_id": [2, 4]}
    write_folder(folder, **sizes)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    convert(folder, tmp_path / "native")
    llama_jax.save(llama_jax.load(folder), tmp_path / "saved")
    llama_jax.save(llama_jax.load(tmp_path / "saved"), tmp_path / "again")
    for name in ("native", "saved", "again"):
        copy = tmp_path / name
        info = json.loads((copy / "checkpoint.json").read_text())
        assert info["tokenizer"] == "tokenizer.json"
        assert json.loads((copy / "config.json").read_text())["dim"] == 24
        for file, source in tokenizer_files(folder / "tokenizer.json").items():
            assert (copy / file).read_bytes() == source.read_bytes()
        one, two = load_tokenizer(folder), load_tokenizer(copy)
        assert one.stop_ids == two.stop_ids == (2, 3, 4)
        assert llama_jax.load(copy).tokenizer == copy / "tokenizer.json"
        assert one.encode(TEXTS[0], bos=True, eos=True) == two.encode(TEXTS[0], bos=True, eos=True)


def test_generate_takes_text_and_continues_it_after_one_bos(tmp_path, library):
    folder = folder_of(tmp_path, with_bos(library))
    write_folder(folder, vocab_size=library.get_vocab_size())
    params, tokenizer = llama_jax.load(folder), load_tokenizer(folder)
    ids = tokenizer.encode("a little", bos=True, eos=False)
    settings = {"max_new_tokens": 8, "temperature": 0.0}
    (text,) = llama_jax.generate(params, ["a little"], **settings)
    assert text == llama_jax.generate(params, [ids], **settings)[0]
    assert text.text == detokenize(tokenizer, text.tokens, after=ids)
