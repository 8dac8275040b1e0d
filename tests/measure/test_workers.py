"""Several processes share a run: the same figures, a clean failure when one dies, and a rerun that goes on."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cynosure.measure import Corpus, score
from cynosure.models import load
from cynosure.models.loading import find_device
from cynosure.system.workers import together
from cynosure.text import find_sources
from tests.measure.test_store import OPTIONS, TEXTS, TIMES, figures

DIES = """
import os, signal
from cynosure.measure.storage.store import Store
own, rank, how = Store.write, *os.environ["FAULT"].split()
def write(self, number, *rest):
    own(self, number, *rest)
    if os.environ["RANK"] == rank and number >= 3:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("there is something wrong")
Store.write = write
from cynosure.cli.entry import main
main()
"""

# It keeps the GIL at its end for long enough that a thread of gloo comes to wait for it.
TELLS = """
import atexit, os, sys, time

def end():
    sys.setswitchinterval(10)
    os.environ["ENDS"] = "1"
    until = time.perf_counter() + 0.1
    while time.perf_counter() < until:
        pass

atexit.register(end)
import torch
from cynosure.system.workers import Workers
workers = Workers()
held = torch.distributed.group.WORLD  # as DDP and FSDP2 hold it
assert workers.told("a" if workers.leads else "b") == "a"
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


@pytest.mark.exhaustive
def test_two_processes_are_one(tiny_folder: Path, texts: Path, alone: dict[str, Any]) -> None:
    assert printed(torchrun(["-m", "cynosure"], tiny_folder, texts)) == alone


@pytest.mark.exhaustive
@pytest.mark.each_variant  # the test below goes on with another number of processes too
def test_two_processes_finish_what_one_began(
    tiny_folder: Path, texts: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    model, corpus = load(str(tiny_folder)), Corpus.of_sources(find_sources([str(texts)]))
    left = iter(range(40))
    with pytest.raises(StopIteration):
        score(model, corpus, out=tmp_path, progress=lambda _: next(left) and None, **OPTIONS)
    assert printed(torchrun(["-m", "cynosure"], tiny_folder, texts, "--out", tmp_path)) == alone
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fault", ["1 dies", pytest.param("0 raises", marks=pytest.mark.each_variant)])
@pytest.mark.exhaustive
def test_a_dead_worker_ends_the_run_and_any_number_of_processes_go_on(
    tiny_folder: Path, texts: Path, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    script, folder = tmp_path / "dies.py", tmp_path / "run"
    script.write_text(DIES)
    model, corpus = load(str(tiny_folder)), Corpus.of_sources(find_sources([str(texts)]))
    left = iter(range(40))
    with pytest.raises(StopIteration):  # one process first
        score(model, corpus, out=folder, progress=lambda _: next(left) and None, **OPTIONS)
    begun = {path.name for path in folder.glob("tokens-*.parquet")}
    monkeypatch.setenv("FAULT", fault)
    dead = torchrun([str(script)], tiny_folder, texts, "--out", folder)
    assert dead.returncode == 1  # torchrun's own status, whatever that of its worker
    assert ("exitcode: -9" in " ".join(dead.stderr.split()).replace("exitcode : ", "exitcode: ")) == (fault == "1 dies")
    assert dead.stdout == ""
    assert ("\ncynosure: there is something wrong\n" in f"\n{dead.stderr}") == (fault == "0 raises")
    more = {path.name for path in folder.glob("tokens-*.parquet")}
    assert set() < begun < more
    assert figures(score(model, corpus, out=folder, **OPTIONS)) == alone
    assert more < {path.name for path in folder.glob("tokens-*.parquet")}


@pytest.mark.parametrize(("local", "number"), [(0, 0), (5, 1)])
def test_each_process_has_an_accelerator(monkeypatch: pytest.MonkeyPatch, local: int, number: int) -> None:
    """Planted: a machine of four, and more processes than that."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert find_device("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert find_device("auto") == torch.device("cuda", number)


def test_the_death_of_another_process_is_said_in_one_line() -> None:
    with pytest.raises(ConnectionError, match="another process of this run has ended"), together():
        raise RuntimeError("Connection closed by peer. This is typically caused by a remote worker crashing.")


@pytest.mark.skipif(not shutil.which("gcc") or sys.platform != "linux", reason="no C compiler, or no LD_PRELOAD")
def test_a_process_outlives_the_threads_of_its_last_collective(tmp_path: Path) -> None:
    """They need Python to drop its tensors, and abort the process if Python is shutting down."""
    shim, script = tmp_path / "slow_gloo.so", tmp_path / "tells.py"
    script.write_text(TELLS)
    subprocess.run(["gcc", "-shared", "-fPIC", Path(__file__).with_name("slow_gloo.c"), "-o", shim, "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(shim), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    environment |= {"MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, env=environment | {"RANK": rank})
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port: int = opened.getsockname()[1]
    return port
