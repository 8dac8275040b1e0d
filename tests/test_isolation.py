"""What a test changes in the process is restored before the next test, in any order."""

import logging
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from cynosure.cli import common
from cynosure.loss.matmul import choice, trials
from cynosure.loss.matmul.rivals import Gemm
from tests.isolation import isolated

# name: (function that reads the state, function that changes it)
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "environment, a variable more": (lambda: dict(os.environ), lambda: os.environ.update(CYNOSURE_LEFT="1")),
    "environment, a variable less": (lambda: dict(os.environ), lambda: os.environ.pop("PATH")),
    "working directory": (Path.cwd, lambda: os.chdir("/")),
    "signal handler": (lambda: signal.getsignal(signal.SIGTERM), lambda: signal.signal(signal.SIGTERM, print)),
    "stdin": (lambda: sys.stdin, lambda: setattr(sys, "stdin", None)),
    "stdout": (lambda: sys.stdout, lambda: setattr(sys, "stdout", None)),
    "arguments": (lambda: sys.argv, lambda: setattr(sys, "argv", ["x"])),
    "import path": (lambda: list(sys.path), lambda: sys.path.append("/left")),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
    "gradients": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "anomaly mode": (torch.is_anomaly_enabled, lambda: torch.set_anomaly_enabled(True)),
    "determinism": (torch.get_deterministic_debug_mode, lambda: torch.use_deterministic_algorithms(True)),
    "fill of memory": (
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    ),
    "precision": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.set_autocast_enabled("cpu", True)),
    "autocast's dtype": (
        lambda: torch.get_autocast_dtype("cpu"), lambda: torch.set_autocast_dtype("cpu", torch.float16),
    ),
    "autocast's cache": (torch.is_autocast_cache_enabled, lambda: torch.set_autocast_cache_enabled(False)),
    "level of our log": (
        lambda: logging.getLogger("cynosure").level, lambda: logging.getLogger("cynosure").setLevel(7),
    ),
    "handlers and propagation of our log": (
        lambda: [list(logging.getLogger("cynosure").handlers), logging.getLogger("cynosure").propagate],
        lambda: common.show_notes(quiet=True),
    ),
    "transformers' level": (transformers.logging.get_verbosity, transformers.logging.set_verbosity_debug),
    "transformers' bars": (transformers.logging.is_progress_bar_enabled, transformers.logging.disable_progress_bar),
    "Accelerate's state": (
        lambda: [state._shared_state for state in (AcceleratorState, PartialState, GradientState)] == [{}, {}, {}],
        lambda: Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3),
    ),
    "process group": (
        dist.is_initialized,
        lambda: dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore()),
    ),
    "provider of products": (
        lambda: dict(choice.SETTLED), lambda: choice.SETTLED.update({torch.float32: Gemm("torch", "left")}),
    ),
    "remembered provider": (
        lambda: trials.fastest.cache_info().currsize, lambda: trials.fastest(torch.float32, torch.get_num_threads()),
    ),
    "settings of the command line": (lambda: common.settings.debug, lambda: common.set_debug(True)),
}  # fmt: skip


@pytest.mark.parametrize(("read", "change"), CHANGES.values(), ids=CHANGES)
def test_what_is_changed_is_put_back(read: Callable[[], Any], change: Callable[[], Any]) -> None:
    before = read()
    with isolated():
        change()
        assert read() != before
    assert read() == before


def test_what_fails_is_put_back_too() -> None:
    def fail() -> None:
        with isolated():
            torch.set_default_dtype(torch.float64)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_default_dtype() == torch.float32


def drawn() -> list[float]:
    return [random.random(), np.random.random(), torch.rand(()).item()]


def test_every_test_draws_the_same_numbers() -> None:
    with isolated():
        first, second = drawn(), drawn()
    with isolated():
        assert drawn() == first != second


PAIR = """
import os
import pytest
import torch

@pytest.fixture(scope="module")
def shared():
    return torch.rand(())

def test_one(shared):
    leave(shared)

class TestOther:
    def test_two(self, shared):
        leave(shared)

def leave(shared):
    '''
    >>> import torch
    >>> torch.set_default_dtype(torch.float64)
    '''
    assert torch.get_default_dtype() == torch.float32
    assert "LEFT" not in os.environ
    assert shared == {shared}
    torch.set_default_dtype(torch.float64)
    os.environ["LEFT"] = "1"
    torch.rand(5)
"""


@pytest.mark.parametrize("plugins", [["-p", "tests.isolation"], []], ids=["isolated", "as pytest does"])
@pytest.mark.parametrize(
    "order", [["::test_one", "::TestOther", "::{name}.leave"], ["::{name}.leave", "::TestOther", "::test_one"]]
)
def test_tests_that_change_the_same_state_pass_in_either_order(
    pytester: pytest.Pytester, plugins: list[str], order: list[str]
) -> None:
    with isolated():
        value = torch.rand(()).item()
        file = pytester.makepyfile(PAIR.format(shared=repr(value)))
        names = [f"{file.name}{place.format(name=file.stem)}" for place in order]
        result = pytester.runpytest_inprocess("-p", "no:randomly", "--doctest-modules", *plugins, *names)
    if plugins:
        result.assert_outcomes(passed=3)
    else:
        assert result.parseoutcomes().get("failed"), "the tests do not hinder each other"
