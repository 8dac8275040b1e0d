"""Every test here takes its backends from the package: a new one adds a parameter, and no test."""

import pytest

from cynosure.loss import devices
from cynosure.loss.backends.registry import backends


def pytest_addoption(parser):
    parser.addoption(
        "--asynchronous", action="store_true", help="take the CPU for an asynchronous device: what a GPU's branch does"
    )


def pytest_configure(config):
    if config.getoption("--asynchronous", False):
        devices.SYNCHRONOUS = frozenset()


def pytest_collection_modifyitems(config, items):
    if config.getoption("--asynchronous", False):
        for item in items:
            if item.get_closest_marker("cpu_only"):
                item.add_marker(pytest.mark.skip(reason="about the branch of a CPU"))


def backend_params():
    return [
        pytest.param(name, marks=[] if available else pytest.mark.skip(reason=reason))
        for name, available, reason in backends()
    ]


def pytest_generate_tests(metafunc):
    """Not a fixture's own parameters, which would be asked for before the device is known."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backend_params(), scope="session")
