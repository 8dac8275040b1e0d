"""The reference of the divergences, by autograd; and every row kernel against it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.divergence import reference
from cynosure.loss.divergence.options import DivergenceOptions
from cynosure.loss.divergence.reference import ModelLogits
from cynosure.loss.divergence.rows import LogitsPair, Overwritten, divergence_rows
from cynosure.loss.options import RowOptions
from tests.loss import divergence_oracle as oracle
from tests.loss.divergences import DIRECTIONS

pytestmark = pytest.mark.cpu_only
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
F64 = torch.float64


def make_logits(n, v, std, seed=0, scale=1.0, softcap=None):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=generator, dtype=F64) * std
    return ModelLogits(logits, scale, softcap)


@each_direction
def test_the_reference_is_the_derivative_of_itself(direction):
    student, teacher = make_logits(3, 5, 2.0, 1, 0.7, 3.0), make_logits(3, 5, 2.0, 2)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=F64)

    def forward(s, t):
        return reference.forward(student._replace(logits=s), teacher._replace(logits=t), direction, 0.3, 1.7)

    leaves = [x.logits.clone().requires_grad_() for x in (student, teacher)]
    assert torch.autograd.gradcheck(forward, leaves)
    by_autograd = torch.autograd.grad(forward(*leaves), leaves, upstream)
    by_hand = reference.backward(student, teacher, upstream, direction, 0.3, 1.7)
    for x, y in zip(by_hand, by_autograd, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@each_direction
def test_the_reference_is_the_oracle(direction):
    student, teacher = make_logits(4, 6, 2.0, 1, 0.7, 3.0), make_logits(4, 6, 2.0, 2)
    eye = torch.eye(6, dtype=F64)
    truth = oracle.kl_div(
        student.logits, eye, teacher.logits, eye, direction=direction, beta=0.3, temperature=1.7, reduction="none",
        student_scale=0.7, student_softcap=3.0,
    )  # fmt: skip
    torch.testing.assert_close(reference.forward(student, teacher, direction, 0.3, 1.7), truth, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    direction=st.sampled_from(DIRECTIONS),
    n=st.integers(1, 4),
    v=st.sampled_from([1, 2, 15, 16, 17, 511, 512, 513, 1100]),
    std=st.sampled_from([0.01, 1.0, 30.0]),
    beta=st.sampled_from([0.01, 0.3, 0.9]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    softcap=st.none() | st.sampled_from([2.0, 30.0]),
    scale=st.sampled_from([1.0, -0.7]),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, F64, torch.bfloat16])] * 2),
    overwritten=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 9),
)
def test_row_kernels(direction, n, v, std, beta, temperature, softcap, scale, dtypes, overwritten, seed, backend):
    """Logits of any two types, in rows with space between them; gradients are rounded to the logits' type."""
    student, teacher = make_logits(n, v, std, seed, scale, softcap), make_logits(n, v, std, seed + 10)
    stored = [torch.full((n, v + 3), 7.0, dtype=dtype) for dtype in dtypes]
    for x, y in zip(stored, (student, teacher), strict=True):
        x[:, :v] = y.logits
    before = LogitsPair(*(x[:, :v].clone() for x in stored))
    student, teacher = (
        student._replace(logits=before.student.double()),
        teacher._replace(logits=before.teacher.double()),
    )
    kernel = choose_backend(backend)[0]
    pair = LogitsPair(*(x[:, :v] for x in stored))
    if kernel.name == "torch":
        pair = LogitsPair(*(x.to(pair.dtype) for x in pair))
    options = DivergenceOptions(direction, beta, temperature, RowOptions(scale=scale, softcap=softcap), RowOptions())
    upstream = torch.linspace(-1, 2, n, dtype=pair.dtype)
    found = divergence_rows(kernel, pair, options, upstream, Overwritten(*overwritten))
    truth = reference.forward(student, teacher, direction, beta, temperature)
    tol = 1e-11 if pair.dtype == F64 else 1e-5
    torch.testing.assert_close(found.double(), truth, rtol=tol, atol=tol * (1 + std))
    dz = reference.backward(student, teacher, upstream.double(), direction, beta, temperature)
    for x, old, d, is_overwritten in zip(pair, before, dz, overwritten, strict=True):
        if not is_overwritten:
            assert kernel.name == "torch" or torch.equal(x, old)
            continue
        eps = torch.finfo(x.dtype).eps
        torch.testing.assert_close(x.double(), d, rtol=2 * eps, atol=20 * tol * (1 + std) * (1 + abs(scale)))
    assert all((x[:, v:] == 7).all() for x in stored)
