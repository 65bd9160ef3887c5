"""Adapters between peft and us, both ways: the same logits. peft is what reads and writes them."""

import json

import jax
import numpy as np
import pytest
from helpers import config_of

import llama_jax
from llama_jax.checkpoint.export import export
from llama_jax.sharding.adapters import put_adapters, with_adapters
from llama_jax.weights.lora import Adapter, scale_of
from llama_jax.weights.table import weight_table

torch = pytest.importorskip("torch", reason="torch is absent; pip install -e '.[oracle]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is absent; pip install -e '.[oracle]'"
)
peft = pytest.importorskip("peft", reason="peft is absent; pip install peft")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
CONFIG = config_of(n_heads=4, n_kv_heads=2)
TOKENS = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(2, 20))
POSITIONS = np.broadcast_to(np.arange(20), TOKENS.shape)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One model, as ours and as Hugging Face's."""
    folder = tmp_path_factory.mktemp("base")
    params = llama_jax.init_params(jax.random.key(0), CONFIG)
    params = params.replace(
        weights=jax.tree.map(lambda w: w * 4 if w.ndim == 2 else w, params.weights)
    )
    llama_jax.save(params, folder / "ours")
    export(folder / "ours", folder / "hf", format="hf")
    return folder


def their_base(base):
    name = "dtype" if transformers.__version__ >= "5" else "torch_dtype"
    return transformers.AutoModelForCausalLM.from_pretrained(base / "hf", **{name: torch.float32})


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def our_logits(params):
    return np.asarray(jax.jit(llama_jax.forward)(params, TOKENS, POSITIONS)[0])


def test_peft_computes_our_logits_with_our_adapters(base, tmp_path):
    for rslora, targets in (
        (False, ("wq", "wk", "wv", "wo", "w1", "w2", "w3")),
        (True, ("wq", "wk")),
    ):
        rng, given = np.random.default_rng(1), {}
        for path, row in weight_table(CONFIG).items():
            if path[-1] in targets:
                a = rng.normal(size=(row.shape[0], 6), scale=0.2).astype(np.float32)
                b = rng.normal(size=(6, row.shape[1]), scale=0.2).astype(np.float32)
                given[path] = Adapter(a, b, scale_of(6, 4.0, rslora))
        plain = llama_jax.load(base / "ours")
        ours = with_adapters(plain, put_adapters(plain, given))
        llama_jax.save(ours, tmp_path / f"adapted-{rslora}")
        export(tmp_path / f"adapted-{rslora}", tmp_path / f"peft-{rslora}", format="peft")
        said = json.loads((tmp_path / f"peft-{rslora}" / "adapter_config.json").read_text())
        assert said["use_rslora"] is rslora
        theirs = peft.PeftModel.from_pretrained(their_base(base), tmp_path / f"peft-{rslora}")
        found, wanted = our_logits(ours), their_logits(theirs)
        assert np.abs(found - our_logits(plain)).max() > 0.05, "the adapters change something"
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


SETTINGS = {
    "their default": {"r": 8, "target_modules": None},
    "all, rslora": {"r": 6, "lora_alpha": 12, "use_rslora": True, "target_modules": "all-linear"},
    "patterns": {
        "r": 4,
        "target_modules": ["q_proj", "k_proj", "down_proj", "lm_head"],
        "rank_pattern": {"layers.1.self_attn.k_proj": 2},
        "alpha_pattern": {"q_proj": 24},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_we_compute_pefts_logits_with_its_adapters(base, tmp_path, name):
    settings = {"task_type": "CAUSAL_LM", "init_lora_weights": False} | SETTINGS[name]
    torch.manual_seed(0)
    theirs = peft.get_peft_model(their_base(base), peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    wanted = their_logits(theirs)
    for folder in ("ours", "hf"):
        ours = llama_jax.load(base / folder, adapter=tmp_path / "peft")
        np.testing.assert_allclose(our_logits(ours), wanted, atol=1e-4, rtol=0)
    assert np.abs(wanted - our_logits(llama_jax.load(base / "ours"))).max() > 0.05


def test_pefts_dora_is_refused(base, tmp_path):
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "use_dora": True}
    model = peft.get_peft_model(their_base(base), peft.LoraConfig(**settings))
    model.save_pretrained(tmp_path / "peft")
    with pytest.raises(ValueError, match="use_dora=true is not supported"):
        llama_jax.load(base / "ours", adapter=tmp_path / "peft")
