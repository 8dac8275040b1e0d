"""MPS and XPU, faked by the CPU: which backend and sizes they get, and that nothing there needs float64."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cynosure
from cynosure.loss import (
    cross_entropy,
    devices,
    explain,
    linear_cross_entropy,
    logits_token_stats,
    token_logprobs,
    token_stats,
)
from cynosure.loss.backends import torch_rows
from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.devices import has_float64, widest_dtype
from cynosure.loss.sizes import BUDGET, ON_DEVICE
from tests.loss import oracle
from tests.loss.cases import KINDS, REDUCTIONS, evaluate, make_case

pytestmark = pytest.mark.cpu_only
OTHERS = ["mps", "xpu"]


class NoFloat64(TorchDispatchMode):
    """Fails where an operation reads or makes a float64 tensor, as MPS does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if torch.is_tensor(x)]
        if any(x.dtype == torch.float64 for x in tensors):
            raise TypeError(f"{func}: this device has no float64")
        return made


@pytest.fixture
def without_float64(monkeypatch):
    """The CPU as an asynchronous device without float64, on which the vocabulary is taken in several pieces."""
    monkeypatch.setattr(devices, "SYNCHRONOUS", frozenset())
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", frozenset({"cpu"}))
    monkeypatch.setattr(torch_rows, "ON_DEVICE", ON_DEVICE._replace(piece_bytes=4000))


@pytest.mark.parametrize("device", OTHERS)
def test_it_takes_the_torch_rows_in_chunks_for_a_device(device):
    plan = explain(8192, 4096, 128_256, dtype=torch.bfloat16, device=device)
    assert plan.backend == "torch"
    assert plan.reason == "the best here: torch operations run on any device and in any float dtype"
    assert (plan.gemm.provider, plan.chunk_tokens, plan.n_chunks) == ("torch", 4096, 2)
    assert plan.logits_bytes <= BUDGET
    assert choose_backend(None, device)[0].name == choose_backend(None, f"{device}:0")[0].name == "torch"


@pytest.mark.parametrize("device", OTHERS)
def test_every_other_backend_says_why_it_cannot_run_there(device):
    *others, last = cynosure.backends(device)
    assert last == ("torch", True, "torch operations run on any device and in any float dtype")
    for status in others:
        assert not status.available
        assert device in status.reason


def test_which_devices_have_float64(monkeypatch):
    assert [has_float64(torch.device(name)) for name in ("cpu", "cuda", "mps", "meta")] == [True, True, False, True]
    for has in (True, False):
        monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device, has=has: SimpleNamespace(has_fp64=has))
        assert has_float64(torch.device("xpu")) == has
        assert widest_dtype(torch.device("xpu")) == (torch.float64 if has else torch.float32)


OPTIONS = [
    {"bias": True, "token_weight": True},
    {"softcap": 3.0, "scale": 0.5, "label_smoothing": 0.1, "class_weight": True, "z_loss": 1e-2},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_loss_needs_float64(kind, reduction, options, dtype, without_float64):
    case = make_case(lead=(3, 5), v=200, kind=kind, reduction=reduction, shift=1, **options)
    case = case.cast(torch.float32).to(dtype)
    upstream = torch.ones_like(case.call(oracle.loss))
    truth = evaluate(oracle.loss, case.double(), upstream)
    with NoFloat64():
        ours = evaluate(linear_cross_entropy, case, upstream, chunk_tokens=4)
        alone = case.call(linear_cross_entropy)  # without gradients: in pieces of the vocabulary
        logits = torch.nn.functional.linear(case.hidden, case.weight, case.options.get("bias"))
        given = cross_entropy(logits, case.target, **case.without("bias").options)
    if dtype == torch.float32:
        for x in (ours.loss, alone, given):
            torch.testing.assert_close(x.double(), truth.loss, rtol=1e-5, atol=1e-5)
        for name, x in ours.grads.items():
            torch.testing.assert_close(x.double(), truth.grads[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_do_statistics(dtype, without_float64):
    case = make_case(lead=(9,), v=1000, bias=True).cast(torch.float32).to(dtype)
    how = {"topk": 3, "temperatures": [0.5, 2.0]}
    truth = case.double().call(token_stats, **how)
    with NoFloat64():
        ours = case.call(token_stats, **how)
        logits_token_stats(case.hidden @ case.weight.mT, case.target, **how)
        case.call(token_logprobs)
    if dtype == torch.float32:
        for name, x, y in zip(ours._fields, ours, truth, strict=True):
            torch.testing.assert_close(x.to(y.dtype), y, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)


def test_the_mode_can_fail(monkeypatch):
    monkeypatch.setattr(devices, "SYNCHRONOUS", frozenset())
    case = make_case().cast(torch.float32)
    with NoFloat64(), pytest.raises(TypeError, match="this device has no float64"):
        case.call(token_stats, backend="torch")
