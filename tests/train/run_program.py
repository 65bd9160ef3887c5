"""One process of several that train: it takes a recipe as JSON and the run's folder."""

import json
import sys

import jax

coordinator, process, recipe, folder = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(coordinator, 2, int(process))

from llama_jax.train.recipe_file import recipe_of  # noqa: E402
from llama_jax.train.run import train  # noqa: E402

with open(recipe) as file:
    made = recipe_of(json.load(file), "recipe")
train(made, folder, say=lambda line: print(line, flush=True))
