"""Every test here takes its backends from the package: a new one adds a parameter, and no test."""

import pytest
import torch

from cynosure.loss import devices
from cynosure.loss.backends.registry import backends
from tests.loss import interpreter

# It has no doctests, and imports torch's test utilities, which take seconds and change global settings.
collect_ignore = ["torch_samples.py"]

FAKE = "fake"  # the CPU, taken for an asynchronous device: what a GPU's branch does, with values that can be read


def pytest_addoption(parser):
    parser.addoption("--backend", help="run only the tests of this backend: those that take it, and its own file")
    parser.addoption(
        "--device", default="cpu", help="device on which the tests make their tensors: cpu, cuda, ..., fake"
    )


def pytest_configure(config):
    """Before test modules are imported: what they make for all of their tests is on the device too."""
    interpreter.configure(config)
    name = config.getoption("--device", "cpu")
    if name == FAKE:
        devices.SYNCHRONOUS = frozenset()
    elif name != "cpu":
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise pytest.UsageError(
                f"--device {name}: torch {torch.__version__} finds no such device: {reason}"
            ) from error
        torch.set_default_device(name)


def pytest_collection_modifyitems(config, items):
    """Leave out other backends than the given one, what is the same for all, and what a device does not do."""
    backend, on_cpu = config.getoption("--backend", None), config.getoption("--device", "cpu") == "cpu"
    chosen = [
        item
        for item in items
        if (backend is None or is_of(item, backend)) and (on_cpu or not item.get_closest_marker("cpu_only"))
    ]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def is_of(item, backend):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("backend") == backend or item.path.name == f"test_{backend}.py"


def backend_params(named):
    """The backends that can run on the device, and the one that `--backend` names."""
    return [
        pytest.param(name, marks=[] if available else pytest.mark.skip(reason=reason))
        for name, available, reason in backends(torch.get_default_device())
        if available or name == named
    ]


def pytest_generate_tests(metafunc):
    """Not a fixture's own parameters, which would be asked for before the device is known."""
    if "backend" in metafunc.fixturenames:
        params = backend_params(metafunc.config.getoption("--backend", None))
        metafunc.parametrize("backend", params, scope="session")
