"""Tensors that are not plain memory: served as their plain copies are, or refused in one sentence; never a crash."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from cynosure.loss import cross_entropy, explain, gemm, linear_cross_entropy, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.layouts import Float8, Opened

ROOT = Path(__file__).parents[2]


def program(*command):
    """What it prints, where it ends well."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.splitlines()


def test_every_argument_in_every_layout():
    *faults, n = program("tests.loss.layouts")
    assert not faults, "\n".join(faults[:20])
    assert int(n) > 3000


def test_dtensors_of_two_processes():
    lines = program("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.loss.meshes")
    assert lines.count("right") == 2, lines


def gradients(loss, hidden, weight, target, bias, **options):
    """The loss, and the gradients of three times it for hidden and bias."""
    leaves = [x.clone().requires_grad_() for x in (hidden, bias)]
    value = loss(leaves[0], weight, target, bias=leaves[1], **options)
    return value.detach(), *torch.autograd.grad(3 * value, leaves)


@pytest.mark.usefixtures("poison_empty")
@pytest.mark.parametrize("kind", [Float8, Opened])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_head_that_multiplies_itself_at_its_true_size(kind, dtype):
    """Products of 1.2 GFLOP, in two chunks: those that OpenBLAS and our own kernel do."""
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=dtype) for shape in ((600, 400), (5003, 400), (5003,)))
    weight, target = kind(weight / 20), torch.randint(5003, (600,))
    ours = gradients(linear_cross_entropy, hidden, weight, target, bias, chunk_tokens=300)
    theirs = gradients(oracle.loss, hidden, weight.read(), target, bias)
    truth = gradients(oracle.loss, hidden.double(), weight.read().double(), target, bias.double())
    for name, x, y, z in zip(("loss", "dhidden", "dbias"), ours, theirs, truth, strict=True):
        error, same = ((a.double() - z).abs().max() for a in (x, y))
        assert error <= 2 * same + (2e-3 if dtype == torch.bfloat16 else 1e-6) * z.abs().max(), name


def test_head_that_multiplies_itself_must_be_frozen():
    weight = Opened(torch.randn(7, 5)).requires_grad_()
    given = torch.randn(3, 5), weight, torch.tensor([0, 6, 2])
    with pytest.raises(NotImplementedError, match=r"weight is a Opened that requires grad.*freeze it"):
        linear_cross_entropy(*given)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*given), oracle.loss(given[0], weight.read(), given[2]))


def shapes(kind):
    """What the operations give for tensors without values."""
    hidden, weight = (x.requires_grad_() for x in (kind(torch.randn(2, 4, 5)), kind(torch.randn(7, 5))))
    target = kind(torch.zeros(2, 4, dtype=torch.long))
    loss = linear_cross_entropy(hidden, weight, target, shift=1, normalizer=kind(torch.tensor(3.0)))
    loss.backward()
    assert (hidden.grad.shape, weight.grad.shape) == (hidden.shape, weight.shape)
    stats = token_stats(hidden, weight, target, topk=3, shift=1)
    results = [
        *(loss, linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), target, reduction="none")),
        *(cross_entropy(hidden, target, token_weight=kind(torch.ones(2, 4))), token_logprobs(hidden, weight, target)),
        *(stats.nll, stats.rank, stats.top_ids),
    ]
    return [(tuple(x.shape), x.dtype) for x in results]


SHAPES = [
    *(((), torch.float32), ((2, 4), torch.float32), ((), torch.float32), ((2, 4), torch.float32)),
    *(((2, 3), torch.float32), ((2, 3), torch.int64), ((2, 3, 3), torch.int64)),
]


def test_tensors_without_values_give_shapes():
    fake = FakeTensorMode()
    assert shapes(lambda x: x.to("meta")) == shapes(fake.from_tensor) == SHAPES
    with fake:
        assert shapes(lambda x: x) == SHAPES
    with FakeTensorMode(), pytest.raises(ValueError, match=r"target .*\(3,\)"):
        cross_entropy(torch.randn(4, 5), torch.zeros(3, dtype=torch.long))


def test_a_plan_is_made_on_real_tensors():
    gemm.fastest.cache_clear()
    with FakeTensorMode(), patch.object(gemm, "remembered", dict), patch.object(gemm, "remember"):
        assert explain(1000, 600, 5000).gemm.provider in gemm.PROVIDERS


@pytest.mark.usefixtures("poison_empty")
def test_buffers_are_where_the_tensors_are():
    given = torch.randn(6, 5), torch.randn(7, 5), torch.tensor([0, 6, 2, 3, 3, 1])
    with torch.device("meta"):
        ours, stats = linear_cross_entropy(*given), token_stats(*given, temperatures=[0.5])
    torch.testing.assert_close(ours, oracle.loss(*given))
    torch.testing.assert_close(stats.nll.mean(), ours)


@pytest.mark.parametrize("make", [torch._neg_view, lambda x: x[:1].expand(6)])
@pytest.mark.parametrize("operation", [cross_entropy, token_logprobs])
def test_an_upstream_gradient_is_no_plain_tensor_either(operation, make):
    x, target = torch.randn(6, 7, requires_grad=True), torch.tensor([0, 6, 2, 3, 3, 1])
    given = (x, target) if operation is cross_entropy else (x, torch.eye(7), target)
    options = {"reduction": "none"} if operation is cross_entropy else {}
    upstream = make(torch.randn(6))
    sign = 1 if operation is cross_entropy else -1
    (ours,) = torch.autograd.grad(operation(*given, **options), x, upstream)
    (truth,) = torch.autograd.grad(oracle.loss_of_logits(x, target, reduction="none"), x, sign * upstream.resolve_neg())
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("tracing_mode", ["real", "fake"])
def test_tracing_into_a_graph_is_refused(tracing_mode):
    with pytest.raises(NotImplementedError, match="cannot be traced into a graph"):
        make_fx(lambda z: cross_entropy(z, torch.tensor([0, 1])), tracing_mode=tracing_mode)(torch.randn(2, 3))


@pytest.mark.parametrize("make", [lambda x: x, lambda x: torch._neg_view(-x), Opened])
def test_no_tokens_at_all(make):
    hidden, target = torch.randn(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.long)
    loss = linear_cross_entropy(hidden, make(torch.randn(7, 5)), target)
    loss.backward()
    assert loss == 0
    assert hidden.grad.shape == (0, 5)
