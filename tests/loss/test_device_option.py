"""`pytest tests/loss --device NAME`: how the suite runs on a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.loss import conftest
from tests.loss.cases import make_case, upstream_like

pytestmark = [pytest.mark.cpu_only, pytest.mark.exhaustive]
ROOT = Path(__file__).parents[2]


def suite(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a run of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *arguments]
    environment = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_branch_of_a_device_without_one():
    code, said = suite("tests/loss/test_modules.py", "tests/loss/test_default_device.py", "-v", "--device", "fake")
    assert code == 0, said
    assert "test_modules.py ." in said
    assert "test_default_device.py" not in said  # which is about a CPU
    assert " skipped" not in said  # what cannot run there is left out, unless it is named
    said = suite("tests/loss/test_modules.py", "--device", "fake", "--backend", "native-portable")[1]
    assert "it needs tensors on the CPU" in said
    assert " passed" not in said


class Config:
    """pytest's, for what the conftest asks it."""

    def __init__(self, **options: object) -> None:
        self.options = options

    def getoption(self, name: str, default: object) -> object:
        return self.options.get(name.strip("-"), default)

    def addinivalue_line(self, name: str, line: str) -> None: ...


def test_tensors_are_made_on_the_device():
    conftest.pytest_configure(Config(device="meta"))
    case = make_case(kind="sparse", bias=True, token_weight=True)
    upstream = upstream_like(torch.zeros(3))
    torch.set_default_device(None)
    tensors = [case.hidden, case.weight, *case.target, *case.options.values(), upstream]
    assert {x.device.type for x in tensors} == {"meta"}


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        pytest.UsageError, match=f"--device cuda: torch {re.escape(torch.__version__)} finds no such device"
    ):
        conftest.pytest_configure(Config(device="cuda"))
