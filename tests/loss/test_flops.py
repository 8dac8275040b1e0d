"""What counters and profilers see of the loss: each product once, whoever does it, and nothing of our self-checks."""

import os
import subprocess
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cynosure.loss import LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy, token_logprobs, token_stats
from cynosure.loss.matmul import rivals
from cynosure.loss.matmul.choice import VARIABLE
from cynosure.loss.matmul.rivals import RIVALS, why_missing

pytestmark = pytest.mark.cpu_only

N, KEPT, D, V = 130, 100, 32, 3000
GEMM = 2 * KEPT * D * V


def batch(dtype, bias=False):
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D).to(dtype).requires_grad_(), torch.randn(V, D).to(dtype).requires_grad_()
    target = torch.randint(V, (N,))
    target[KEPT:] = -100
    return hidden, weight, target, {"bias": torch.randn(V).to(dtype).requires_grad_()} if bias else {}


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter


@pytest.fixture(params=["torch", "openblas", "native"])
def provider(request, monkeypatch):
    if request.param != "torch" and (why := why_missing(request.param)):
        pytest.skip(why)
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_tokens", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_product_is_counted_once(dtype, chunk_tokens, bias, provider):
    hidden, weight, target, options = batch(dtype, bias)
    options["chunk_tokens"] = chunk_tokens

    def loss(**more):
        return linear_cross_entropy(hidden, weight, target, **options, **more)

    with torch.no_grad():
        assert counted(loss).get_total_flops() == GEMM
        assert counted(lambda: token_stats(hidden, weight, target, **options)).get_total_flops() == GEMM
    assert counted(lambda: loss().backward()).get_total_flops() == 3 * GEMM
    assert counted(lambda: loss(reduction="none").sum().backward()).get_total_flops() == 4 * GEMM
    whole = counted(lambda: token_logprobs(hidden, weight, target, **options).sum().backward())
    assert whole.get_total_flops() == 4 * GEMM
    frozen = counted(
        lambda: linear_cross_entropy(hidden, weight.detach(), target, chunk_tokens=chunk_tokens).backward()
    )
    assert frozen.get_total_flops() == 2 * GEMM
    assert hidden.grad.isfinite().all()


def test_logits_that_are_there_cost_no_product():
    logits = torch.randn(9, 50, requires_grad=True)
    assert counted(lambda: cross_entropy(logits, torch.arange(9)).backward()).get_total_flops() == 0


@pytest.mark.parametrize("dtype", RIVALS)
def test_our_own_products_give_the_same_while_counted(dtype, monkeypatch):
    if why := why_missing(RIVALS[dtype]):
        pytest.skip(why)
    monkeypatch.setenv(VARIABLE, RIVALS[dtype])
    found = []
    for count in (False, True):
        hidden, weight, target, _ = batch(dtype)
        run = lambda h=hidden, w=weight, t=target: linear_cross_entropy(h, w, t, chunk_tokens=30).backward()  # noqa: E731
        if count:
            names = {str(name) for name in counted(run).get_flop_counts()["Global"]}
            assert names == {"cynosure.gemm"}
        else:
            run()
        found.append((hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_modules_are_told_apart(provider):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Linear(D, D), torch.nn.Linear(D, V)
            self.criterion = LinearCrossEntropyLoss()

        def forward(self, x, target):
            return self.criterion(self.body(x), self.head.weight, target)

    model, (hidden, _, target, _) = Model(), batch(torch.float32)
    counts = counted(lambda: model(hidden.detach(), target).backward()).get_flop_counts()
    assert sum(counts["Model.criterion"].values()) == 3 * GEMM
    assert sum(counts["Model"].values()) == 3 * GEMM + 2 * N * D * D
    assert sum(counts["Global"].values()) == 3 * GEMM + 2 * 2 * N * D * D  # and the body's dW


ASIDE = """
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from cynosure.loss.matmul.rivals import RIVALS
from cynosure.loss.matmul.trials import fastest
class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(func)
class Called(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError(func)
for dtype in RIVALS:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, Seen(), Called():
        told = fastest(dtype, 1)
    assert counter.get_total_flops() == 0
    print(told.provider)
"""


def test_choosing_a_provider_is_seen_by_no_mode(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop(VARIABLE, None)
    done = subprocess.run([sys.executable, "-W", "error", "-c", ASIDE], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"torch", "openblas", "native"}


@pytest.mark.parametrize("dtype", RIVALS)
def test_the_profiler_shows_the_loss_and_its_products_by_name(dtype, monkeypatch):
    if why := why_missing(RIVALS[dtype]):
        pytest.skip(why)
    monkeypatch.setenv(VARIABLE, RIVALS[dtype])
    hidden, weight, target, _ = batch(dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile:
        linear_cross_entropy(hidden, weight, target).backward()
        token_stats(hidden, weight, target)
    events = {event.key: event.count for event in profile.key_averages()}
    assert events["cynosure::linear_cross_entropy"] == events["cynosure::token_stats"] == 1
    assert events["cynosure::gemm"] == 4


def test_without_an_onlooker_no_operation_is_called(monkeypatch):
    if why := why_missing("openblas"):
        pytest.skip(why)
    monkeypatch.setenv(VARIABLE, "openblas")
    monkeypatch.setattr(rivals.torch.ops.cynosure, "gemm", None)
    hidden, weight, target, _ = batch(torch.float32)
    linear_cross_entropy(hidden, weight, target).backward()
    assert weight.grad.isfinite().all()


def test_other_modes_leave_the_loss_as_it_is(provider):
    class Idle(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    hidden, weight, target, _ = batch(torch.float32)
    plain = linear_cross_entropy(hidden, weight, target)
    with Idle(), Idle(), Functions():
        assert torch.equal(linear_cross_entropy(hidden, weight, target), plain)
