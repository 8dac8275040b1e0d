"""Divergences of ugly inputs: nothing to average, NaN, infinities, frozen parts; and what they cost."""

import pytest
import torch

from cynosure.loss import linear_kl_div
from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.divergence import jobs
from tests.loss import divergence_oracle as oracle
from tests.loss.cases import assert_same
from tests.loss.divergences import DIRECTIONS, evaluate, make_models
from tests.loss.probes import Allocations, Gemms

pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.cpu_only]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
INF, NAN = torch.inf, torch.nan


@pytest.fixture
def on_backend(backend, monkeypatch):
    monkeypatch.setattr(jobs, "choose_backend", lambda name, device: choose_backend(backend, device))


def of_logits(student, teacher, **options):
    """The divergences of given rows of logits, which are biases: a matmul would turn infinities into NaN."""
    zeros, eye = torch.zeros(1, 1), torch.zeros(len(student[0]), 1)
    biases = [
        {"student_bias": torch.tensor(s), "teacher_bias": torch.tensor(t)}
        for s, t in zip(student, teacher, strict=True)
    ]
    rows = [linear_kl_div(zeros, eye, zeros, eye, **both, **options).item() for both in biases]
    return torch.tensor(rows)


@each_direction
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_to_average(reduction, direction):
    models = make_models((6,), direction=direction, reduction=reduction, token_weight=True)
    models.options["token_weight"].zero_()
    ours = evaluate(linear_kl_div, models)
    assert ours.loss == 0
    assert all((x == 0).all() for x in ours.grads.values())
    empty = evaluate(linear_kl_div, make_models((2, 0), direction=direction, reduction=reduction))
    assert empty.loss == 0
    assert (empty.grads["student_weight"] == 0).all()


def test_a_normalizer_of_zero():
    ours = evaluate(linear_kl_div, make_models((6,), normalizer=0))
    assert ours.loss == 0
    assert (ours.grads["student_hidden"] == 0).all()


@each_direction
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nan_in_ignored_rows_reaches_nothing(reduction, direction, on_backend):
    models = make_models(direction=direction, reduction=reduction, token_weight=True, shift=1)
    ignored = models.options["token_weight"].roll(-1, -1) == 0
    ignored[:, -1] = True  # the positions that shift drops
    poisoned = {x: models.tensors[x].clone() for x in ("student_hidden", "teacher_hidden")}
    for hidden in poisoned.values():
        hidden[ignored] = NAN
    assert_same(evaluate(linear_kl_div, models.with_tensors(**poisoned)), evaluate(oracle.kl_div, models))


@each_direction
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(value, direction, on_backend):
    models = make_models((6,), v=40, direction=direction, reduction="none")
    hidden = models.tensors["teacher_hidden"].clone()
    hidden[2] = value
    ours, truth = evaluate(linear_kl_div, models.with_tensors(teacher_hidden=hidden)), evaluate(oracle.kl_div, models)
    others = torch.arange(6) != 2
    assert ours.loss[2].isnan()
    assert ours.grads["student_hidden"][2].isnan().all()
    torch.testing.assert_close(ours.loss[others], truth.loss[others])
    torch.testing.assert_close(ours.grads["student_hidden"][others], truth.grads["student_hidden"][others])


def test_impossible_classes(on_backend):
    student = [[0.0, 0.0, -INF], [0.0, -INF, 0.0], [0.0, 0.0, 0.0]]
    teacher = [[0.0, 0.0, -INF], [0.0, 0.0, -INF], [0.0, 0.0, -INF]]
    forward, reverse, jsd = (of_logits(student, teacher, direction=x) for x in DIRECTIONS)
    ln_2 = torch.tensor(2.0).log()
    assert forward.tolist() == [0.0, INF, pytest.approx((torch.tensor(3.0).log() - ln_2).item())]
    assert reverse.tolist() == [0.0, INF, INF]
    assert jsd[0] == 0
    torch.testing.assert_close(jsd[1], ln_2 / 2)
    assert jsd[2].isfinite()


@each_direction
def test_the_gradient_of_impossible_classes_is_zero(direction, on_backend):
    models = make_models((4,), v=9, bias=True, direction=direction).freeze("teacher_bias", "student_bias")
    for name in ("student_bias", "teacher_bias"):
        models.tensors[name][3] = -INF
    ours = evaluate(linear_kl_div, models)
    kept = [i for i in range(9) if i != 3]
    names = "student_weight", "teacher_weight", "student_bias", "teacher_bias"
    truth = evaluate(oracle.kl_div, models.with_tensors(**{x: models.tensors[x][kept] for x in names}))
    torch.testing.assert_close(ours.loss, truth.loss)
    for name in ("student_weight", "teacher_weight"):
        assert (ours.grads[name][3] == 0).all()
        torch.testing.assert_close(ours.grads[name][kept], truth.grads[name])


@pytest.mark.parametrize("size", [1e4, 3e9, 1e30])
@each_direction
def test_finite_logits_of_any_size(direction, size, on_backend):
    models = make_models((20,), v=301, std=size, direction=direction, reduction="none", student_scale=1 / 3)
    ours = evaluate(linear_kl_div, models.to(torch.float32))
    assert ours.loss.isfinite().all()
    assert all(x.isfinite().all() for x in ours.grads.values())


@pytest.mark.parametrize("frozen", [
    ("teacher_hidden", "teacher_weight", "teacher_bias"), ("student_hidden", "student_weight", "student_bias"),
    ("student_weight", "teacher_hidden", "teacher_bias"), ("student_hidden", "student_bias", "teacher_weight"),
])  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "none"])
@each_direction
def test_frozen_parts(direction, reduction, frozen):
    models = make_models(bias=True, direction=direction, reduction=reduction).freeze(*frozen)
    ours = evaluate(linear_kl_div, models, chunk_tokens=2)
    assert len(ours.grads) == 3
    assert_same(ours, evaluate(oracle.kl_div, models))


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_backward_twice_and_the_second_derivative(reduction):
    models = make_models((8,), reduction=reduction, direction="jsd")
    leaf = models.tensors["student_hidden"].requires_grad_()
    loss = models.call(linear_kl_div)
    up = torch.ones_like(loss)
    first, second = (torch.autograd.grad(loss, leaf, scale * up, retain_graph=True)[0] for scale in (1, 3))
    torch.testing.assert_close(3 * first, second)
    (d,) = torch.autograd.grad(loss, leaf, up, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        d.sum().backward()


def gemms(models, trained, **options):
    for name in trained:
        models.tensors[name].requires_grad_()
    with Gemms() as counted:
        loss = models.call(linear_kl_div, **options)
        if trained:
            loss.sum().backward()
    return counted.count(8, 5, 7)


@pytest.mark.parametrize(("trained", "mean", "none"), [
    ((), 2, 2), (("student_hidden", "student_weight"), 4, 6), (("student_hidden",), 3, 5),
    (("student_hidden", "student_weight", "teacher_hidden", "teacher_weight"), 6, 8),
])  # fmt: skip
def test_matmuls(trained, mean, none):
    assert gemms(make_models((8,), d=5, e=5), trained) == mean
    assert gemms(make_models((8,), d=5, e=5), trained, reduction="none") == none


def test_ignored_rows_cost_no_matmul():
    models = make_models((8,), d=5, e=5)
    assert gemms(models, ("student_hidden", "student_weight"), token_weight=torch.tensor([1.0, 0, 0, 0] * 2)) == 1


@pytest.mark.parametrize("trained", [("student_weight",), ("student_weight", "teacher_weight")])
def test_memory_is_flat_in_the_rows(trained):
    """Two buffers of logits, and gradients of the weights, whatever the number of rows."""

    def n_large(n_rows):
        models = make_models((n_rows,), d=3, e=3, v=1000).to(torch.float32)
        for name in trained:
            models.tensors[name].requires_grad_()
        with Allocations(*models.tensors.values(), large=2000) as found:
            models.call(linear_kl_div, chunk_tokens=4).backward()
        return len(found.kept), found.largest

    (few, largest), (many, largest_of_many) = n_large(16), n_large(80)
    assert many <= few
    assert largest_of_many == largest


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_tensors_without_values(reduction):
    models = make_models((2, 5), shift=1, reduction=reduction)
    meta = {name: x.to("meta").requires_grad_() for name, x in models.tensors.items()}
    loss = models.with_tensors(**meta).call(linear_kl_div)
    assert loss.is_meta
    assert loss.shape == (() if reduction == "mean" else (2, 4))
    loss.sum().backward()
    assert all(x.grad.shape == x.shape for x in meta.values())


def test_under_autocast_the_matmuls_are_narrow():
    models = make_models((6,), v=40).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Gemms() as counted:
        ours = evaluate(linear_kl_div, models)
    assert counted.dtypes == {torch.bfloat16}
    assert {x.dtype for x in ours.grads.values()} == {torch.float32}
    torch.testing.assert_close(ours.loss, evaluate(linear_kl_div, models).loss, rtol=0.1, atol=0.05)


def test_it_refuses_transforms():
    models = make_models((4,))
    hidden = models.tensors.pop("student_hidden")
    with pytest.raises(NotImplementedError, match="linear_kl_div"):
        torch.func.grad(lambda x: linear_kl_div(x, **models.tensors))(hidden)
