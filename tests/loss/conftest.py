"""Every test here takes its backends from the package: a new one adds a parameter, and no test."""

import pytest

from cynosure.loss.backends.registry import backends
from tests.loss import interpreter


def pytest_addoption(parser):
    parser.addoption("--backend", help="run only the tests of this backend: those that take it, and its own file")


def pytest_configure(config):
    interpreter.configure(config)


def pytest_collection_modifyitems(config, items):
    """Leave out what is the same for every backend, and the other backends."""
    name = config.getoption("--backend", None)
    if name is None:
        return
    chosen = [item for item in items if is_of(item, name)]
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


@pytest.fixture(params=backend_params(), scope="session")
def backend(request):
    return request.param
