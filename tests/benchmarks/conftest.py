"""A tiny head, prepared once; and the command line of the benchmark."""

from collections.abc import Callable, Iterator

import pytest

from benchmarks.commands import app
from benchmarks.loss.inputs import prepare
from benchmarks.loss.prepared import Prepared
from cynosure.cli.app import main

HEAD = "synthetic:900x24"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Prepared]:
    """A cache directory, and files of 256, 300 and 600 tokens in it."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:  # for the time that it takes: other tests have the cache of the session
        patch.setenv("CYNOSURE_CACHE", cache)
        return cache, prepare(HEAD, ["float32", "bfloat16"], [256, 300, 600], lambda line: None)


@pytest.fixture(scope="module")
def prepared(made: tuple[str, Prepared]) -> Iterator[Prepared]:
    """These files, in the cache directory that workers find too."""
    cache, files = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a tiny head gains nothing from more
        patch.setenv("CYNOSURE_CACHE", cache)
        yield files


Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs `python -m benchmarks loss`, or another command: exit status, stdout, stderr."""

    def started(*arguments: str, command: str = "loss") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["benchmarks", command, *arguments])
        with pytest.raises(SystemExit) as done:
            main(app, "python -m benchmarks")
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return started
