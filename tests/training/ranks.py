"""One of two processes that share every weight: what `tests/training/test_sharding.py` starts by torchrun."""

import sys
import warnings
from pathlib import Path
from typing import Any

from tests.training.runs import Dying, run

DEATH = 8  # the step after which the leader is killed


def untied(folder: Path) -> dict[str, Any]:
    """Options of fine-tuning a model whose head is not its embedding."""
    return {"preset": None, "vocab_size": None, "init": str(folder), "learning_rate": 1e-3}


def main(folder: Path, model: Path, phase: str) -> None:
    if phase == "begin":  # Accelerate's own switch is set too, for the first run
        run(folder / "whole")
        run(folder / "untied", fsdp=True, **untied(model))
        run(folder / "killed", Dying(DEATH, "step"), fsdp=True)
    else:
        run(folder / "killed", resume=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Trainer's own
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
