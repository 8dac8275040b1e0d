"""One of two processes that share every batch: what `tests/training/test_workers.py` starts by torchrun."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cynosure import Watcher
from cynosure.training import loop
from tests.training.runs import die, run

DEATH = 7  # steps after which the second process is killed


class Notes(Watcher):
    """Leaves what a user would be told in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{text}\n")


def doom() -> None:
    """Let the second process die in the middle of a step, as the system's killer would have it."""
    from cynosure.training.loop import Training

    own = Training.compute_loss

    def dying(training: Any, *args: Any, **kwargs: Any) -> Any:
        if training.state.global_step == DEATH and os.environ["RANK"] == "1":
            die()
        return own(training, *args, **kwargs)

    Training.compute_loss = dying  # type: ignore[method-assign]


@contextmanager
def noted_seeds(path: Path) -> Iterator[None]:
    """Keep the seeds of this process in a file."""
    own = loop.seed_of

    def noted(*numbers: int) -> int:
        with path.open("a") as file:
            file.write(f"{own(*numbers)}\n")
        return own(*numbers)

    loop.seed_of = noted
    yield
    loop.seed_of = own


def main(folder: Path, phase: str) -> None:
    if phase == "begin":
        run(folder / "whole")
        with noted_seeds(folder / f"seeds-{os.environ['RANK']}"):
            run(folder / "sampled", grad_tolerance=0.5, micro_rows=2)
        doom()
        run(folder / "killed")
    else:
        run(folder / "killed", resume=True)
        run(folder / "joined", Notes(folder / "notes"), resume=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Trainer's own
    main(Path(sys.argv[1]), sys.argv[2])
