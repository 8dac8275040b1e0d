"""Runs to report on, whose texts and names are hostile."""

import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

import cynosure
from cynosure.training import Trained
from tests.reporting.pages import HOSTILE
from tests.tiny import tiny
from tests.training.runs import run

TEXTS = [
    cynosure.Document(f"{HOSTILE} {i}", f"the cat {i} sat on the mat {HOSTILE} 猫 e\u0301 👩\u200d🚀. " * 6)
    for i in range(3)
]


class Runs(NamedTuple):
    """The folders of two scored runs of the same texts."""

    a: Path
    b: Path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    made = Runs(folder / "a", folder / "b")
    for seed, out in enumerate(made):
        cynosure.score(tiny(seed=seed), TEXTS, out=out).save()
    return made


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Trainer's own
        return run(tmp_path_factory.mktemp("trained") / "run")
