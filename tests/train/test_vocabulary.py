import hashlib

import pytest
from token_files import STORIES, json_lines

from llama_jax.tokenizer import load_tokenizer
from llama_jax.train import vocabulary
from llama_jax.train.vocabulary import train_tokenizer

WORDS = [f"{word} llama number {n} says {word}" for n, word in enumerate(["one", "two", "three"])]
TEXTS = [*STORIES, *WORDS * 20]


def trained(tmp_path, texts=TEXTS, name="own.model", **settings):
    file = json_lines(tmp_path / "texts.jsonl", texts)
    settings = {"vocab_size": 330, "overwrite": True, **settings}
    return train_tokenizer([file], tmp_path / name, **settings)


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_trained_tokenizer_reads_and_writes_any_text(tmp_path):
    done = trained(tmp_path)
    tokenizer = load_tokenizer(done.path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (330, 1, 2)
    for text in [*STORIES, "\N{SNOWMAN} 1984 </s>"]:
        assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text
    ids = [tokenizer.encode(digits, bos=False, eos=False) for digits in ("12", "1234")]
    assert len(ids[1]) == len(ids[0]) + 2  # a digit each


def test_the_same_files_give_the_same_tokenizer(tmp_path):
    assert sha256(trained(tmp_path).path) == sha256(trained(tmp_path, name="two.model").path)
    assert sha256(trained(tmp_path).path) == sha256(trained(tmp_path).path)


def test_its_settings_are_those_of_llamas_own_file(tmp_path, shared):
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    ours, llamas = pb2.ModelProto(), pb2.ModelProto()
    ours.ParseFromString(trained(tmp_path).path.read_bytes())
    llamas.ParseFromString((shared / "tokenizers/llama2/tokenizer.model").read_bytes())
    chosen = "input", "input_format", "model_prefix", "vocab_size", "num_threads"
    sampling = "input_sentence_size", "shuffle_input_sentence"
    for spec in ("trainer_spec", "normalizer_spec"):
        one, two = (getattr(model, spec) for model in (ours, llamas))
        for field in one.DESCRIPTOR.fields:
            if field.name not in chosen + sampling:
                assert getattr(one, field.name) == getattr(two, field.name), field.name
    assert [p.piece for p in ours.pieces[:259]] == [p.piece for p in llamas.pieces[:259]]


def test_nmt_nfkc_unifies_spellings(tmp_path):
    plain, unified = (
        load_tokenizer(trained(tmp_path, name=f"{name}.model", normalization=name).path)
        for name in ("identity", "nmt_nfkc")
    )
    texts = "llama", "\uff4c\uff4c\uff41\uff4d\uff41"  # full width
    ids = [[t.encode(text, bos=False, eos=False) for text in texts] for t in (plain, unified)]
    assert ids[0][0] != ids[0][1]
    assert ids[1][0] == ids[1][1]


def test_long_lines_are_cut_and_not_left_out(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(vocabulary, "model_file", lambda lines, *_: seen.extend(lines) or b"")
    trained(tmp_path, ["llama " * 2000 + "\n\nend", "\N{LLAMA}" * 5000])
    assert "".join(seen[:-5]).replace("end", "") == "llama " * 2000
    assert "".join(seen[-5:]) == "\N{LLAMA}" * 5000
    assert max(len(line.encode()) for line in seen) <= 4192
    assert "end" in seen


@pytest.mark.parametrize("share", [1, 2, 5])
def test_of_more_text_than_asked_for_every_nth_line_is_read(tmp_path, monkeypatch, share):
    seen = []
    monkeypatch.setattr(vocabulary, "model_file", lambda lines, *_: seen.extend(lines) or b"")
    texts = [f"{n:03}" for n in range(100)]
    size = json_lines(tmp_path / "size.jsonl", texts).stat().st_size
    done = trained(tmp_path, texts, sample_bytes=-(-size // share))
    assert seen == texts[::share]
    assert done.sampled == 1 / share


@pytest.mark.parametrize(
    ("texts", "settings", "error"),
    [
        (TEXTS, {"vocab_size": 100_000}, r"vocab_size=100000 is more than the text has .* \d+;"),
        (TEXTS, {"vocab_size": 259}, "vocab_size=259 leaves no room .* above 259"),
        (["".join(map(chr, range(300, 400)))], {"vocab_size": 260}, "no room for the text's char"),
        ([], {}, "hold no text to train a tokenizer on"),
        (["", "\n\n"], {}, "hold no text to train a tokenizer on"),
        (["a", "\ud800"], {}, r"texts\.jsonl, line 2: text has the lone surrogate"),
        (TEXTS, {"normalization": "nfd"}, "normalization='nfd' must be one of 'identity', 'nmt_n"),
        (TEXTS, {"vocab_size": True}, "vocab_size=True must be a positive integer"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(tmp_path, texts, settings, error):
    with pytest.raises(ValueError, match=error) as raised:
        trained(tmp_path, texts, **settings)
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["texts.jsonl"]


def test_an_error_in_a_file_names_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xff\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: byte 0xFF is not UTF-8"):
        train_tokenizer([tmp_path / "a.txt"], tmp_path / "out.model", vocab_size=300)


def test_a_file_that_is_there_is_left_alone(tmp_path):
    trained(tmp_path)
    with pytest.raises(FileExistsError, match=r"own\.model is there already"):
        trained(tmp_path, overwrite=False)
    with pytest.raises(FileExistsError, match="is a directory; name a file"):
        trained(tmp_path, name=".")
