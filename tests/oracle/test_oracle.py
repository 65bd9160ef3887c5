"""What we export, read by torch and transformers themselves: the extra `oracle` installs them."""

import json

import numpy as np
import pytest
from helpers import GOLDEN_META, config_of

from llama_jax.checkpoint import native
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.files import torch_writer
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import LinearScaling, Llama3Scaling, YarnScaling
from llama_jax.tokenizer import load_tokenizer
from llama_jax.verify.reference import reference_logits

torch = pytest.importorskip("torch", reason="torch is absent; pip install -e '.[oracle]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is absent; pip install -e '.[oracle]'"
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
META = ["llama1", "llama2-gqa", "llama3", "llama3.1"]
KINDS = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_embeddings": True},
    "head_dim": {"head_dim": 24},
    "linear": {"rope_scaling": LinearScaling(4.0)},
    "llama3": {"rope_scaling": Llama3Scaling(32.0, 1.0, 4.0, 8192), "rope_theta": 500000.0},
    "yarn": {"rope_scaling": YarnScaling(4.0, 32.0, 1.0, True, 1.3, 32768)},
}


def theirs(folder, tokens, positions=None):
    name = "dtype" if transformers.__version__ >= "5" else "torch_dtype"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **{name: torch.float32})
    tokens = torch.tensor(np.asarray(tokens, np.int64))
    places = None if positions is None else torch.tensor(np.asarray(positions, np.int64))
    with torch.no_grad():
        return model(tokens, position_ids=places).logits.numpy()


@pytest.mark.parametrize("name", META)
def test_transformers_gives_metas_logits_on_what_we_export(tmp_path, name):
    with np.load(GOLDEN_META / name / "reference.npz") as file:
        golden = dict(file)
    export(GOLDEN_META / name, tmp_path / "hf", format="hf", shards=3)
    logits = theirs(tmp_path / "hf", golden["tokens"])[:, :: int(golden["logits_stride"])]
    np.testing.assert_allclose(logits, golden["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_and_our_reference_agree_on_every_kind_of_model(tmp_path, kind):
    config = config_of(**{"max_seq_len": 131072, **KINDS[kind]})
    rng = np.random.default_rng(0)
    tensors = {
        w.path: rng.normal(size=w.shape, scale=0.2).astype(np.float32) for w in names_table(config)
    }
    native.write(tmp_path / "native", config, tensors)
    export(tmp_path / "native", tmp_path / "hf", format="hf")
    tokens = rng.integers(config.vocab_size, size=(2, 60))
    positions = np.broadcast_to(np.arange(60), (2, 60))
    logits = theirs(tmp_path / "hf", tokens)
    expected = reference_logits(config, tensors, tokens, positions)
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("limit", [0xFFFFFFFF, 4000], ids=["zip", "zip64"])
def test_torch_loads_the_tensors_we_export(tmp_path, name, shards, limit, monkeypatch):
    if open_checkpoint(GOLDEN_META / name).config.n_heads % shards:
        pytest.skip(f"{name} has 3 heads, which 2 files cannot share")
    monkeypatch.setattr(torch_writer, "LIMIT", limit)
    export(GOLDEN_META / name, tmp_path / "meta", format="meta", shards=shards)
    for file in sorted((tmp_path / "meta").glob("*.pth")):
        ours = read_state_dict(file)
        for mapped in (False, True):
            loaded = torch.load(file, weights_only=True, mmap=mapped)
            assert list(loaded) == list(ours)
            for key, tensor in loaded.items():
                assert str(tensor.dtype) == f"torch.{ours[key].dtype}"
                assert tensor.is_contiguous()
                bits = tensor.view(torch.int8 if tensor.dtype == torch.bool else torch.uint8)
                assert bits.numpy().tobytes() == ours[key].tobytes()


def test_torch_saves_what_we_wrote_and_we_read_it_again(tmp_path):
    export(GOLDEN_META / "llama3", tmp_path / "meta", format="meta")
    file = tmp_path / "meta" / "consolidated.00.pth"
    before = {name: array.tobytes() for name, array in read_state_dict(file).items()}
    torch.save(torch.load(file, weights_only=True), file)
    assert {name: a.tobytes() for name, a in read_state_dict(file).items()} == before


def test_transformers_reads_the_tokenizer_we_copy(tmp_path, shared):
    pytest.importorskip("sentencepiece")
    model = shared / "models/stories260K-meta"
    export(model, tmp_path / "hf", format="hf")
    ours = load_tokenizer(model)
    their = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    # Not spaces at the start or in a row: transformers 5 keeps to neither SentencePiece's prefix
    # nor its normalizer, whose work on them the file asks for.
    for text in ("Once upon a time, there was a girl.", "two spaces", "a\nb"):
        assert their(text)["input_ids"] == ours.encode(text, bos=True, eos=False)


def test_transformers_reads_the_folder_of_a_real_model(tmp_path, shared):
    model = shared / "models/tinystories656K-hf"
    golden = json.loads((model / "golden.json").read_text())
    assert golden
    export(model, tmp_path / "native-hf", format="hf")
    tokens = [[1, 5, 9, 100, 7]]
    np.testing.assert_array_equal(theirs(model, tokens), theirs(tmp_path / "native-hf", tokens))
