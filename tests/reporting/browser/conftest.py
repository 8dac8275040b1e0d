"""Reports of tiny models: a score run, a comparison and a training."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from cynosure import TrainSettings, score, train
from cynosure.reporting import report
from cynosure.text import Document
from tests.reporting.browser.hostile import DOCUMENTS
from tests.tiny import tiny
from tests.training.runs import SETTINGS, documents

KINDS = ("score", "compare", "train")


def made(folder: Path, texts: Sequence[Document]) -> dict[str, Path]:
    """Score with two tiny models, train a third, and return the page of each kind."""
    for seed, name in enumerate("ab"):
        score(tiny(seed=seed), texts, out=folder / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Trainer's own
        train(texts, folder / "trained", TrainSettings(**SETTINGS))
    return {
        "score": report(folder / "a"),
        "compare": report(folder / "a", folder / "b"),
        "train": report(folder / "trained"),
    }


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of common texts."""
    return made(tmp_path_factory.mktemp("pages"), documents())


@pytest.fixture(scope="session")
def hostile_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of texts that want to run, to hide or to break out."""
    return made(tmp_path_factory.mktemp("hostile"), DOCUMENTS)
