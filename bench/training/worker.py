"""A process that holds one training and goes on with it when it is asked.

`python -m bench.training.worker NAME JSON` answers as `bench.worker` does, a line at a time.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from bench.training.work import NANOGPT, WORKS
from bench.worker import own_output, say


def main() -> None:
    """Answers requests until there are none."""
    name, given = sys.argv[1], json.loads(sys.argv[2])
    answers = own_output()
    subject = _training(name, given)
    say(answers, {})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "train":
                seconds, losses = subject.train(request["steps"])
                answer: dict[str, Any] = {"seconds": seconds, "losses": losses}
            else:
                answer = {"loss": subject.validation()}
        except Exception as error:  # the parent says whose it was, and stops
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(answers, answer)


def _training(name: str, given: dict[str, Any]) -> Any:
    work = {**WORKS, "nanogpt": NANOGPT}[given["work"]]
    if name == "llama_jax":
        from bench.training.ours import Training

        return Training(work, given["folder"], given["steps"])
    import torch

    from bench.training.peers import Training as TorchTraining

    torch.set_num_threads(given["threads"])
    return TorchTraining(name, work, given["folder"])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
