"""Every test here takes its backends from the package: a new one adds a parameter, and no test."""

import pytest

from cynosure.loss import devices
from cynosure.loss.backends.registry import backends
from tests.loss import interpreter


def pytest_addoption(parser):
    parser.addoption("--backend", help="run only the tests of this backend: those that take it, and its own file")
    parser.addoption(
        "--asynchronous", action="store_true", help="take the CPU for an asynchronous device: what a GPU's branch does"
    )


def pytest_configure(config):
    interpreter.configure(config)
    if config.getoption("--asynchronous", False):
        devices.SYNCHRONOUS = frozenset()


def pytest_collection_modifyitems(config, items):
    """Leave out other backends than the given one, what is the same for all, and what a device does not do."""
    name, asynchronous = config.getoption("--backend", None), config.getoption("--asynchronous", False)
    chosen = [
        item
        for item in items
        if (name is None or is_of(item, name)) and not (asynchronous and item.get_closest_marker("cpu_only"))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def is_of(item, name):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("backend") == name or item.path.name == f"test_{name}.py"


def backend_params():
    return [
        pytest.param(name, marks=[] if available else pytest.mark.skip(reason=reason))
        for name, available, reason in backends()
    ]


def pytest_generate_tests(metafunc):
    """Not a fixture's own parameters, which would be asked for before the device is known."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backend_params(), scope="session")
