"""Reports of tiny models: a score run, a comparison and a training, and pages that are made of the same parts."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from cynosure import TrainSettings, predict, score, train
from cynosure.reporting import prediction_page, report, write_page
from cynosure.reporting.tokens import sample
from cynosure.text import Document
from tests.reporting.browser.hostile import DOCUMENTS
from tests.tiny import tiny
from tests.training.runs import SETTINGS, documents

KINDS = ("score", "compare", "train")
OTHERS = ("predict", "protocols", "sample")
PROTOCOLS = ("sliding", "rolling", "strided", "strided-legacy")
SAMPLE = {"MOST_TOKENS": 2_500, "EXCERPT_TOKENS": 100, "BEFORE": 2, "AFTER": 1}


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


def others(folder: Path) -> dict[str, Path]:
    """Return the pages of a prediction, of several protocols, and of the run `a` with a sample of its tokens."""
    prediction = predict(tiny(), "the cat sat on", truth=" the mat\n", top=20)
    for protocol in PROTOCOLS:
        score(tiny(), documents(5), protocol=protocol, out=folder / "all" / protocol)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SAMPLE.items():
            patch.setattr(sample, name, value)
        large = report(folder / "a", out=folder / "sample.html")
    return {
        "predict": write_page(prediction_page(prediction), folder / "predict.html"),
        "protocols": report(folder / "all"),
        "sample": large,
    }


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of common texts."""
    folder = tmp_path_factory.mktemp("pages")
    return made(folder, documents()) | others(folder)


@pytest.fixture(scope="session")
def hostile_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of texts that want to run, to hide or to break out."""
    return made(tmp_path_factory.mktemp("hostile"), DOCUMENTS)
