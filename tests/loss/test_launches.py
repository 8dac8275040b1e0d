"""How many kernels a GPU is given for a chunk: counted on the meta device, where nothing can be read or computed."""

from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cynosure.loss import explain
from cynosure.loss.backends.torch_rows import TorchRows
from cynosure.loss.batch import CountedBatch
from cynosure.loss.chunked import LossJob, Wanted, compute
from cynosure.loss.forward import compute_loss
from cynosure.loss.linear import HeadWeights
from cynosure.loss.matmul import weight_sum
from cynosure.loss.options import RowOptions
from cynosure.loss.pieces import LossPart
from cynosure.loss.targets import Target

N, D, V = 8192, 4096, 128_256  # Llama-3-8B
META = torch.device("meta")
NO_KERNEL = {"view", "_unsafe_view", "t", "transpose", "slice", "select", "detach", "alias", "unsqueeze", "expand"}


class Launches(TorchDispatchMode):
    """Counts the operations that launch a kernel: all but views and allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in NO_KERNEL and "empty" not in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Fused(TorchRows):
    """A backend whose every call is one launch, as a fused kernel's is."""

    dtypes, in_place = (torch.bfloat16, torch.float16, torch.float32), True
    strides: ClassVar[set[int]] = set()  # between rows of the logits of the last test

    def loss_rows(self, z, target, options, upstream=None):
        self.strides.add(z.stride(0))
        return z.new_zeros(len(z), dtype=torch.float32)

    def loss_piece(self, z, piece, target, options):
        self.strides.add(z.stride(0))
        parts = z.new_zeros(4, len(z), dtype=torch.float64)
        return LossPart(*(parts[i] for i in range(4)))


def batch(n_tokens, shift=False):
    """Every token has a class; some are not counted."""
    row, place = torch.empty(n_tokens, device=META), torch.empty(n_tokens, dtype=torch.long, device=META)
    shape, targets = torch.Size((n_tokens,)), place if shift else None
    counted = torch.empty(n_tokens, dtype=torch.bool, device=META)
    target = Target(place[:, None], None, None)
    return CountedBatch(target, n_tokens, shape, shape, None, targets, None, counted, row, row)


def launches(n_tokens, kernel, bias=True, dtype=torch.bfloat16, gradients=True, vocab_size=V):
    made = batch(n_tokens, shift=True)
    job = LossJob(made, RowOptions(), kernel, dtype, dtype, chunk_tokens=4096)
    hidden = torch.empty(n_tokens, D, dtype=dtype, device=META)
    weight = torch.empty(vocab_size, D, dtype=dtype, device=META)
    head = HeadWeights(weight, torch.empty(vocab_size, dtype=dtype, device=META) if bias else None)
    with Launches() as seen:
        if gradients:
            compute(job, hidden, head, made.weight, Wanted(True, True, bias, False))
        else:
            compute_loss(job, hidden, head)
    return seen.names


def of_a_chunk(kernel, **how):
    """What one chunk more launches."""
    two, three = (launches(n * 4096, kernel, **how) for n in (2, 3))
    return len(three) - len(two), two


@pytest.fixture
def adds(monkeypatch):
    """A device whose matmuls add to float32 matrices; the meta device has no such operation."""
    monkeypatch.setattr(weight_sum, "adds_in_float32", lambda device, dtype: True)
    monkeypatch.setattr(weight_sum, "add_in_float32", lambda total, a, b, beta=1: total.mul_(beta))


@pytest.mark.parametrize("vocab_size", [1000, V, 1_000_003])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_a_chunk_is_at_most_twelve_launches(bias, dtype, vocab_size, adds):
    n, names = of_a_chunk(Fused(), bias=bias, dtype=dtype, vocab_size=vocab_size)
    assert n <= 12, names


def test_without_gradients_fewer(adds):
    n, names = of_a_chunk(Fused(), gradients=False)
    assert n <= 30, names


@pytest.mark.parametrize("gradients", [False, True])
def test_rows_of_any_vocabulary_are_aligned(gradients, monkeypatch, adds):
    monkeypatch.setattr(Fused, "strides", set())
    n, names = of_a_chunk(Fused(), bias=False, gradients=gradients, vocab_size=50_257)
    assert Fused.strides == {50_272}
    assert n <= 30, names


def test_where_matmuls_cannot_add_in_float32_the_weights_gradient_is_added_in_large_parts(monkeypatch):
    monkeypatch.setattr(weight_sum, "adds_in_float32", lambda device, dtype: False)
    n, names = of_a_chunk(Fused())
    assert n <= 20, names


def test_a_chunk_fills_the_budget_of_the_device():
    plan = explain(N, D, V, dtype=torch.bfloat16, device="cuda", backend="torch")
    assert (plan.chunk_tokens, plan.n_chunks) == (4096, 2)
    assert plan.logits_bytes <= 2**30
    assert explain(N, D, 1_000_003, dtype=torch.bfloat16, device="cuda", backend="torch").chunk_tokens == 1024
    assert explain(N, D, V, dtype=torch.bfloat16, device="cuda", backend="torch", chunk_tokens=100).chunk_tokens == 100


def test_what_adds_to_the_weights_gradient_is_asked_of_the_device_once(monkeypatch):
    asked = []

    def add(total, a, b, beta=1):
        asked.append(beta)
        raise NotImplementedError

    monkeypatch.setattr(weight_sum, "add_in_float32", add)
    weight_sum.adds_in_float32.cache_clear()
    assert not any(weight_sum.adds_in_float32(torch.device("cpu"), torch.bfloat16) for _ in range(3))
    assert asked == [1]
    weight_sum.adds_in_float32.cache_clear()
