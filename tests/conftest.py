"""Fixtures and hooks shared by all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

from tests.covering import mark_the_rest

# Annotations of these modules are checked at run time. Public operations check types themselves.
BELOW = ("reference", "chunked", "backends.torch_rows", "autograd")
install_import_hook([f"cynosure.loss.{module}" for module in BELOW], "beartype.beartype")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that `make test` skips; `make test-all` runs every case."""
    mark_the_rest(items)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wrap output, unless a test sets the width."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def poison_empty() -> Iterator[None]:
    """Fill uninitialized memory of torch with NaN (floats) or the largest value (integers), not lucky zeros.

    Torch does this itself in deterministic mode, for `empty` and its kin in Python and inside its own operations.
    """
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])


@pytest.fixture(scope="session")
def smollm2() -> Any:
    from cynosure.models import load  # importing transformers takes seconds, which tests of the loss can avoid

    return load("smollm2", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model and its tokenizer."""
    from tests.tiny import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that changes the model shared by the session; a test may change a copy."""
    if "smollm2" not in request.fixturenames:
        yield
        return
    model = request.getfixturevalue("smollm2").model
    before = traits(model)
    yield
    changed = [name for name, trait in traits(model).items() if trait != before.get(name)]
    assert not changed, f"the test has changed the session's model: {changed[:5]}"


def traits(model: Any) -> dict[str, Any]:
    """Return what a test could change in each module and parameter: mode, hooks, attributes, weights, gradients."""
    values: dict[str, Any] = {"config": model.config.to_dict(), "class": type(model)}
    for name, module in model.named_modules():
        own = {key: value if isinstance(value, bool) else id(value) for key, value in vars(module).items()}
        hooks = [sorted(value) for key, value in vars(module).items() if key.endswith("_hooks")]
        values[f"module {name}"] = (own, hooks)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        values[name] = (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.requires_grad, tensor.grad is None)
    return values


@pytest.fixture(autouse=True)
def _no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process make no report at their end, which takes a second, except in tests of reports."""
    if "report" in request.node.nodeid:
        return
    for name in ("score", "compare", "train"):
        if (module := sys.modules.get(f"cynosure.cli.{name}")) is not None:
            monkeypatch.setattr(module, "add_report", lambda *_: None)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process draw no curves at their end, which takes a second, except those that tests share."""
    if (module := sys.modules.get("cynosure.training.run")) is not None:
        monkeypatch.setattr(module, "draw_curves", lambda _: None)
