"""Several processes share a run: the same figures, a clean failure when one dies, and a rerun that goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cynosure.measure import Corpus, score
from cynosure.models import load
from cynosure.text import find_sources
from tests.lm.test_store import OPTIONS, TEXTS, TIMES, figures

DIES = """
import os
from cynosure.measure.store import Store
own = Store.write
def write(self, number, *rest):
    own(self, number, *rest)
    if os.environ["RANK"] == "1" and number >= 3:
        os._exit(9)
Store.write = write
from cynosure.cli.entry import main
main()
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, texts: Path) -> dict[str, Any]:
    """The figures of one process."""
    return figures(score(load(str(tiny_folder)), Corpus.of_sources(find_sources([str(texts)])), **OPTIONS))


def torchrun(script: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2` of a script, or of `-m` and a module."""
    options = ["--window", 32, "--batch-tokens", 64, "--format", "json", "--quiet"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*run, *script, "score", *arguments, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment, check=False, timeout=240)


def printed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {key: value for key, value in json.loads(done.stdout).items() if key not in TIMES}


def test_two_processes_are_one(tiny_folder: Path, texts: Path, alone: dict[str, Any]) -> None:
    assert printed(torchrun(["-m", "cynosure"], tiny_folder, texts)) == alone


def test_a_dead_worker_ends_the_run_and_the_rerun_goes_on(
    tiny_folder: Path, texts: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    script, folder = tmp_path / "dies.py", tmp_path / "run"
    script.write_text(DIES)
    dead = torchrun([str(script)], tiny_folder, texts, "--out", folder)
    assert dead.returncode != 0
    assert dead.stdout == ""
    shards = {path.name for path in folder.glob("tokens-*.parquet")}
    assert shards
    assert printed(torchrun(["-m", "cynosure"], tiny_folder, texts, "--out", folder)) == alone
    assert shards < {path.name for path in folder.glob("tokens-*.parquet")}
