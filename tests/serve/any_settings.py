"""Settings of every kind, as requests of a mix have them."""

from llama_jax.generation.settings import SamplingSettings


def settings_of(draw):
    """Settings of every kind, at random."""
    return SamplingSettings(
        max_new_tokens=draw.choice([0, 1, 5, 5, 20, 20, 250, 250]),
        temperature=draw.choice([0, 0, 0.7, 1.3]),
        top_p=draw.choice([1, 0.9]),
        top_k=draw.choice([0, 0, 20]),
        min_p=draw.choice([0, 0.02]),
        seed=draw.randrange(2**32),
        repetition_penalty=draw.choice([1, 1.2]),
        presence_penalty=draw.choice([0, 0.5]),
        frequency_penalty=draw.choice([0, 0.3]),
        logit_bias=draw.choice([{}, {65: 3.0, 66: -3.0}]),
        forbidden_ids=draw.choice([(), (7, 8)]),
        min_new_tokens=draw.choice([0, 3]),
        stop_ids=draw.choice([(), None, (2, 40, 41, 42, 43)]),
        stop=draw.choice([(), (), ("a", "zz"), ("Q",)]),
        logprobs=draw.choice([None, None, 0, 3]),
    )
