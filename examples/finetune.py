"""Fine-tune: a model goes on learning from texts of your own, as LoRA adapters on its weights.

    python examples/finetune.py [CHECKPOINT]

Run it from the repository's root. CHECKPOINT is a native checkpoint, or Meta's or Hugging Face's
folder, with its tokenizer. Without one it is the small model that comes with the package, whose
stories know no llama. `llama-jax train RECIPE.toml` runs the same recipe from a file.
"""

import sys
import tempfile
from pathlib import Path

import llama_jax
from llama_jax.train.recipe import Lora, Model, Optimizer, Recipe, Run, Step
from llama_jax.train.run import train
from llama_jax.train.tokens import tokenize

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "stories"
prompt = "One day, a llama"
folder = Path(tempfile.mkdtemp())
params = llama_jax.load(checkpoint, dtype="float32")


def shown(params):
    (done,) = llama_jax.generate(params, [prompt], temperature=0, max_new_tokens=16, echo=True)
    return repr(done.text)


# The text: one story a line would do as well. A document is a string under the key "text".
story = '{"text": "One day, a llama named Zib sat on the red roof and sang to the moon."}\n'
(folder / "text.jsonl").write_text(story * 64)
tokenize([folder / "text.jsonl"], params.tokenizer, folder / "tokens", validation_every=0)

recipe = Recipe(
    steps=40,
    model=Model(checkpoint=checkpoint),
    tokens=str(folder / "tokens"),
    optimizer=Optimizer(learning_rate=5e-3, warmup=5, weight_decay=0.0),
    step=Step(batch=4, context=32, dtype="float32", remat="none"),
    lora=Lora(rank=4, targets=("wq", "wv")),  # two small matrices each; all else is frozen
    run=Run(print_every=20, save_every=40, sample_every=0),
)
print("before:", shown(params))
tuned = train(recipe, folder / "run")  # a folder of the run's; the same call goes on after Ctrl-C
print("after: ", shown(llama_jax.load(tuned, dtype="float32")))
print("the model itself:", shown(params))

# `llama-jax merge RUN/model DST` adds the adapters into the weights.
