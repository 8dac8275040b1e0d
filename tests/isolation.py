"""Isolate tests from each other: each starts from the same state, and its changes are undone."""

import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

Restore = Callable[[], None]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGALRM)
STREAMS = ("stdin", "stdout", "stderr", "argv", "excepthook")
LOGGERS = ("cynosure", "transformers", "accelerate", "datasets", "peft", "trl")
OPTIONS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    (lambda: torch.get_autocast_dtype("cpu"), lambda dtype: torch.set_autocast_dtype("cpu", dtype)),
    (lambda: torch.utils.deterministic.fill_uninitialized_memory, lambda on: set_fill(on)),
    (lambda: default_device(), torch.set_default_device),
)


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    with isolated():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Create shared fixtures from the same state too, whichever test comes first."""
    if fixturedef.scope == "function":
        return (yield)
    seed()
    try:
        return (yield)
    finally:
        reset()


@contextmanager
def isolated() -> Iterator[None]:
    """Enter the block with a fixed process state, and restore what it changes."""
    restores = [keep() for keep in (environment, directory, signals, streams, loggers, options, progress, providers)]
    reset()
    seed()
    try:
        yield
    finally:
        reset()
        for restore in reversed(restores):
            restore()


def seed() -> None:
    random.seed(0)
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats the stack for each kind of accelerator
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)


def reset() -> None:
    """Clear state that libraries keep for the life of the process, without importing any of them."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if theirs := sys.modules.get("transformers.utils.logging"):
        theirs.warning_once.cache_clear()
        theirs.info_once.cache_clear()
    if trials := sys.modules.get("cynosure.loss.matmul.trials"):
        trials.fastest.cache_clear()
    if cpu := sys.modules.get("cynosure.models.cpu"):
        cpu.torch_is_slow.cache_clear()
    if common := sys.modules.get("cynosure.cli.common"):
        common.settings = common.Settings()


def environment() -> Restore:
    """Restore the environment, except the name of the test that pytest keeps there."""
    before, pytests = dict(os.environ), "PYTEST_CURRENT_TEST"

    def restore() -> None:
        for name in os.environ.keys() - before.keys() - {pytests}:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if name != pytests})

    return restore


def directory() -> Restore:
    before = Path.cwd()
    return lambda: os.chdir(before)


def signals() -> Restore:
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore


def streams() -> Restore:
    before, path = {name: getattr(sys, name) for name in STREAMS}, list(sys.path)

    def restore() -> None:
        for name, value in before.items():
            setattr(sys, name, value)
        sys.path[:] = path

    return restore


def loggers() -> Restore:
    """Restore level, handlers and propagation of our logger, of imported libraries' loggers and of the root."""
    kept = [logging.getLogger(name) for name in LOGGERS if name in sys.modules] + [logging.getLogger()]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate, logger.disabled) for logger in kept]

    def restore() -> None:
        for logger, level, handlers, propagate, disabled in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate, logger.disabled = propagate, disabled

    return restore


def options() -> Restore:
    """Restore torch's options, each only if it has changed: setting one can start threads or leave a mode."""
    before = [get() for get, _ in OPTIONS]

    def restore() -> None:
        for (get, put), value in zip(OPTIONS, before, strict=True):
            if get() != value:
                put(value)

    return restore


def default_device() -> torch.device | None:
    """Return the default device; None if none was set, as `torch.set_default_device` expects."""
    device = torch.get_default_device()
    return None if device == torch.device("cpu") else device


def set_fill(on: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = on


def progress() -> Restore:
    """Restore whether transformers shows progress bars."""
    theirs = sys.modules.get("transformers.utils.logging")
    before = theirs is None or theirs.is_progress_bar_enabled()

    def restore() -> None:
        if (now := sys.modules.get("transformers.utils.logging")) and now.is_progress_bar_enabled() != before:
            (now.enable_progress_bar if before else now.disable_progress_bar)()

    return restore


def providers() -> Restore:
    """Restore the settled matmul providers."""
    choice = sys.modules.get("cynosure.loss.matmul.choice")
    before = dict(choice.SETTLED) if choice else {}

    def restore() -> None:
        if choice := sys.modules.get("cynosure.loss.matmul.choice"):
            choice.SETTLED.clear()
            choice.SETTLED.update(before)

    return restore
