"""A backend is one file that registers itself: written here, dropped beside the others, and found by all that ask."""

import sys

import pytest
import torch

import cynosure
from cynosure.loss import backends as folder
from cynosure.loss import explain, linear_cross_entropy, token_stats
from cynosure.loss.backends import registry
from cynosure.loss.backends.registry import choose_backend
from tests.loss import conftest, oracle
from tests.loss.cases import KINDS, assert_same, evaluate, make_case

pytestmark = pytest.mark.cpu_only
FILE = """
import torch

from cynosure.loss.backends.registry import register
from cynosure.loss.backends.torch_rows import TorchRows
from cynosure.loss.sizes import Sizes

CALLED = []


class ToyRows(TorchRows):
    name, priority, about, in_place = "toy", 10**6, "it is a toy", False
    dtypes = (torch.float64,)

    def unavailable(self, device):
        return None if device.type == "cpu" else f"no toys on {device.type}"

    def sizes(self, device):
        return Sizes(most_tokens=2, min_bytes=0, piece_tokens=5)

    def loss_rows(self, *args):
        CALLED.append("loss_rows")
        return TorchRows.loss_rows(*args)

    def loss_piece(self, *args):
        CALLED.append("loss_piece")
        return TorchRows.loss_piece(*args)

    def stats_piece(self, *args):
        CALLED.append("stats_piece")
        return TorchRows.stats_piece(*args)


register(ToyRows())
"""
EVERYTHING = {
    "bias": True, "class_weight": True, "token_weight": True, "label_smoothing": 0.1, "z_loss": 0.05, "softcap": 2.5,
    "scale": 0.8,
}  # fmt: skip


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """What the new file holds."""
    (tmp_path / "toy_rows.py").write_text(FILE)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "REGISTERED", [*registry.REGISTERED])
    folder.import_all()
    yield folder.toy_rows
    del sys.modules[folder.toy_rows.__name__], folder.toy_rows


def test_it_is_listed_explained_and_chosen(toy):
    assert cynosure.backends()[0] == ("toy", True, "it is a toy")
    assert cynosure.backends("meta")[0] == ("toy", False, "no toys on meta")
    assert conftest.backend_params(None)[0].values == ("toy",)
    assert choose_backend(None)[0] is choose_backend("toy")[0]
    assert choose_backend(None, "meta")[0].name == "torch"
    plan = explain(10, 5, 7)
    assert (plan.backend, plan.reason) == ("toy", "the best here: it is a toy")
    assert (plan.chunk_tokens, plan.n_chunks, plan.scratch_bytes) == (2, 5, 2 * 7 * 4)
    assert explain(10, 5, 7, requires_grad=False).chunk_tokens == 5
    assert explain(10, 5, 7, backend="torch").backend == "torch"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_its_functions_are_the_ones_that_run(toy, reduction, kind):
    case = make_case(kind=kind, reduction=reduction, **EVERYTHING)
    assert_same(evaluate(linear_cross_entropy, case), evaluate(oracle.loss, case))
    assert set(toy.CALLED) == ({"loss_rows"} if reduction == "mean" else {"loss_rows", "loss_piece"})
    assert toy.CALLED.count("loss_rows") > 1
    toy.CALLED.clear()
    evaluate(linear_cross_entropy, case, backend="torch")
    assert toy.CALLED == []


def test_its_statistics_are_the_ones_that_are_given(toy):
    case = make_case(bias=True, softcap=2.5, scale=0.8)
    ours, theirs = case.call(token_stats, topk=3), case.call(token_stats, topk=3, backend="torch")
    for name, x in ours._asdict().items():
        torch.testing.assert_close(x, getattr(theirs, name), rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)
    assert set(toy.CALLED) == {"stats_piece"}


def test_its_reason_is_the_error_where_it_cannot_run(toy):
    with pytest.raises(ValueError, match="backend 'toy' cannot run here: no toys on cuda"):
        choose_backend("toy", "cuda")


def test_an_unknown_name_lists_every_backend(toy):
    with pytest.raises(ValueError, match=r"unknown backend 'train': expected one of 'toy', .*'torch', or None"):
        linear_cross_entropy(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0]), backend="train")


def test_no_two_have_one_name():
    before = [*registry.REGISTERED]
    with pytest.raises(ValueError, match="'torch' is registered already"):
        registry.register(choose_backend("torch")[0])
    assert before == registry.REGISTERED


def test_each_answers_for_every_device_and_the_last_runs_on_all():
    for device in ("cpu", "cuda", "mps", "meta"):
        assert [backend.name for backend in registry.REGISTERED] == [
            status.name for status in cynosure.backends(device)
        ]
        assert cynosure.backends(device)[-1][:2] == ("torch", True)
    assert all(isinstance(backend, registry.Backend) for backend in registry.REGISTERED)
