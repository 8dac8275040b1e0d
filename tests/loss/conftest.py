"""Every test here takes its backends from the package: a new one adds a parameter, and no test."""

import pytest
import torch

from cynosure.loss import devices
from cynosure.loss.backends.registry import backends

FAKE = "fake"


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cpu",
        help="device on which the tests make their tensors: cpu, cuda, ...; fake: as --asynchronous",
    )
    parser.addoption(
        "--asynchronous", action="store_true", help="take the CPU for an asynchronous device: what a GPU's branch does"
    )


def asked_device(config):
    """The device that the tests run on, and whether it is an asynchronous one."""
    name = config.getoption("--device", "cpu")
    asynchronous = config.getoption("--asynchronous", False) or name != "cpu"
    return "cpu" if name == FAKE else name, asynchronous


def pytest_configure(config):
    """Before test modules are imported: what they make for all of their tests is on the device too."""
    name, asynchronous = asked_device(config)
    if asynchronous and name == "cpu":
        devices.SYNCHRONOUS = frozenset()
    if name != "cpu":
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise pytest.UsageError(
                f"--device {name}: torch {torch.__version__} finds no such device: {reason}"
            ) from error
        torch.set_default_device(name)


def pytest_collection_modifyitems(config, items):
    if asked_device(config)[1]:
        for item in items:
            if item.get_closest_marker("cpu_only"):
                item.add_marker(pytest.mark.skip(reason="about the branch of a CPU"))


def backend_params():
    return [
        pytest.param(name, marks=[] if available else pytest.mark.skip(reason=reason))
        for name, available, reason in backends(torch.get_default_device())
    ]


def pytest_generate_tests(metafunc):
    """Not a fixture's own parameters, which would be asked for before the device is known."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backend_params(), scope="session")
