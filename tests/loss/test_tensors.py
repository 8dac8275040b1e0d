"""Tensors that are not plain memory: the right value, or one sentence. In processes of their own, which may not end."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.cpu_only


def run(module: str, *arguments: str) -> list[str]:
    """The lines that a program of the tests prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", f"tests.loss.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.exhaustive
def test_every_argument_in_every_layout() -> None:
    *faults, n_cases = run("layouts")
    assert faults == []
    assert int(n_cases) > 4000


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
@pytest.mark.exhaustive
def test_two_processes(placement: str) -> None:
    assert run("two_processes", placement) == ["0 same", "1 same"]
