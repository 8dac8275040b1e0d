"""Small training runs, and processes that die in the middle of them."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from cynosure import TrainSettings, Watcher, train
from cynosure.text import Document
from cynosure.training import Trained
from cynosure.training.folder import DIGESTS, RunFolder

WORDS = "the of and to in that it is was he for on with as his they at be this from have or by one had not but"
CLOCK = ("seconds", "tokens_per_second")  # the only figures of a step that another run of it need not repeat
N_STEPS = 12
SETTINGS: dict[str, Any] = {
    "preset": "tiny", "vocab_size": 300, "row_tokens": 16, "batch_tokens": 128, "tokens": 128 * N_STEPS,
    "validate_every": 3 * 128, "validate_tokens": 150, "dtype": "float32", "device": "cpu",
}  # fmt: skip


def documents(n: int = 40) -> list[Document]:
    """Texts of words in a random order, each of its own length."""
    generator = random.Random(0)
    return [
        Document(f"text {i}", " ".join(generator.choices(WORDS.split(), k=generator.randint(5, 60)))) for i in range(n)
    ]


def run(out: Path, watcher: Watcher | None = None, resume: bool = False, **options: Any) -> Trained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Trainer's own
        settings = TrainSettings(**(SETTINGS | options))
        return train([] if resume else documents(), out, settings, watcher=watcher, resume=resume)


def old(out: Path) -> RunFolder:
    """The run as an earlier version would have left it."""
    values = json.loads((out / "train.json").read_text())
    for name in ("data_sha256", "checkpoints", "sha256", "init_sha256"):
        del values[name]
    (out / "train.json").unlink()  # which may be shared with another folder
    (out / "train.json").write_text(json.dumps(values))
    for path in out.rglob(DIGESTS):
        path.unlink()
    return RunFolder(out)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics without what the clock makes of them."""
    lines = RunFolder(folder).lines("metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


class Noting(Watcher):
    """Keeps what a user would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Stopping(Noting):
    """Ends a training in this process after a step, as an interruption does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, figures: dict[str, Any]) -> None:
        if figures["step"] == self.at:
            raise KeyboardInterrupt


def stopped_at(step: int, out: Path, **options: Any) -> list[str]:
    """Let a run be interrupted after a step; what a user would have been told."""
    watcher = Stopping(step)
    with contextlib.suppress(KeyboardInterrupt):
        run(out, watcher, **options)
    return watcher.notes


class Dying(Watcher):
    """Kills its own process at a moment of training, as `kill -9` does."""

    def __init__(self, step: int, moment: str) -> None:
        self.at, self.moment = step, moment
        if moment in ("saving", "keeping"):
            self.die_within()

    def step(self, figures: dict[str, Any]) -> None:
        if self.moment == "step" and figures["step"] == self.at:
            die()

    def validation(self, figures: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        if self.moment == "validation" and figures["step"] >= self.at:
            die()

    def die_within(self) -> None:
        """In the middle of a checkpoint: when its model is written, or when it has just been put in its place."""
        from cynosure.training.loop import Training

        name = {"saving": "_save_optimizer_and_scheduler", "keeping": "_save_checkpoint"}[self.moment]
        own = getattr(Training, name)

        def dying(training: Any, *args: Any) -> None:
            if training.state.global_step < self.at:
                own(training, *args)
            elif self.moment == "saving":
                die()
            else:
                own(training, *args)
                die()

        setattr(Training, name, dying)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_process(
    out: Path, resume: bool, options: dict[str, Any], step: int = N_STEPS + 1, moment: str = "never"
) -> None:
    """Without what takes a second and no test of such a run looks at: its curves, and how fast the machine is."""
    torch.set_num_threads(1)
    with patch("cynosure.training.run.draw_curves"), patch("cynosure.training.peak.peak_flops", return_value=1e9):
        run(out, Dying(step, moment), resume, **options)


def apart(out: Path, *death: Any, resume: bool = False, **options: Any) -> int:
    """Train in a process of its own, as users do, which may die at a step and a moment of it; what it ended with."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cynosure.training.loop", "cynosure.training.validate", "tests.training.runs"])
    process = context.Process(target=in_process, args=(out, resume, options, *death))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
