"""Chromium, and runs to report on. What asks for `open_page` is marked `browser`."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import pytest

import cynosure
from cynosure.training import Trained
from tests.reporting.browsing import NAMES, OFFLINE, Visitor, chromium_path
from tests.reporting.pages import HOSTILE
from tests.tiny import tiny
from tests.training.runs import run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TEXTS = [
    cynosure.Document(f"{HOSTILE} {i}", f"the cat {i} sat on the mat {HOSTILE} 猫 e\u0301 👩\u200d🚀. " * 6)
    for i in range(3)
]


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "open_page" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.exhaustive)


def missing(what: str) -> NoReturn:
    """Skip, except in CI, where a browser that is not there must not pass for a test that has."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


# For a module, not for the session: while playwright runs, asyncio is taken in its thread. It starts in half a second.
@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Chromium, driven by playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is missing: pip install playwright")
    path = chromium_path()
    if path is None:
        missing(f"none of {', '.join(NAMES)} is on the PATH: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=OFFLINE)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: "Browser") -> Iterator[Visitor]:
    """A function that opens a file in Chromium: `open_page(path, width=390, color_scheme="dark")` is a `Visit`.

    The test fails if a page it has opened had any trouble, such as an error in the console or a request.
    """
    visitor = Visitor(chromium)
    yield visitor
    trouble = visitor.close()
    assert not trouble, "\n".join(trouble)


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
