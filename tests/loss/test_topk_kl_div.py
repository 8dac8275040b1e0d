"""The divergence from a teacher's stored top-k, against float64 formulas on full logits and closed forms."""

import math

import pytest
import torch

from cynosure.loss import linear_kl_div, linear_topk_kl_div, token_stats
from tests.loss import divergence_oracle as oracle
from tests.loss.cases import REDUCTIONS, assert_same
from tests.loss.divergences import evaluate, make_models, make_topk
from tests.loss.probes import Gemms, assert_three_way, rms_error

pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.cpu_only]
each_direction = pytest.mark.parametrize("direction", ["forward", "reverse"])
each_tail = pytest.mark.parametrize("tail", ["bucket", "renormalize"])
SETTINGS = {
    "plain": {},
    "capped": {"bias": True, "student_softcap": 2.0, "student_scale": 0.7, "temperature": 1.7},
    "weighed": {"token_weight": True, "shift": 1},
}


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("setting", SETTINGS)
@each_tail
@each_direction
def test_conformance(direction, tail, setting, k):
    topk = make_topk(k=k, direction=direction, tail=tail, **SETTINGS[setting])
    assert_same(evaluate(linear_topk_kl_div, topk, chunk_tokens=4), evaluate(oracle.topk_kl_div, topk), tol=1e-10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("lead", [(1, 4), (6, 3), (2, 0)])
def test_shapes_and_reductions(lead, reduction):
    topk = make_topk(lead, reduction=reduction, token_weight=True, shift=min(1, lead[-1]))
    assert_same(evaluate(linear_topk_kl_div, topk), evaluate(oracle.topk_kl_div, topk), tol=1e-10)


def test_a_single_row():
    topk = make_topk((1, 1), reduction="sum")
    single = topk.with_tensors(**{x: topk.tensors[x][0, 0] for x in ("student_hidden", "logprobs")})
    ours = single.using(ids=topk.options["ids"][0, 0]).call(linear_topk_kl_div)
    torch.testing.assert_close(ours, topk.call(oracle.topk_kl_div))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_tail
@each_direction
def test_precision(direction, tail, dtype):
    topk = make_topk((2, 17), d=16, v=1003, k=7, direction=direction, tail=tail, reduction="none").to(dtype)
    truth = evaluate(oracle.topk_kl_div, topk.double()).named()
    theirs, ours = evaluate(oracle.topk_kl_div, topk).named(), evaluate(linear_topk_kl_div, topk).named()
    for name, x in ours.items():
        eps = 4 * torch.finfo(torch.float32).eps * truth[name].abs().max().item()
        assert_three_way(x, theirs[name], truth[name], eps=eps, name=name, error=rms_error)


@each_direction
def test_all_classes_are_the_whole_divergence(direction):
    models = make_models((4,), v=9, direction=direction)
    tensors = dict(models.tensors)
    teacher = (tensors.pop("teacher_hidden") @ tensors.pop("teacher_weight").t()).log_softmax(-1)
    whole = linear_topk_kl_div(**tensors, ids=torch.arange(9).expand(4, 9), logprobs=teacher, direction=direction)
    torch.testing.assert_close(whole, models.call(linear_kl_div))


@each_direction
@pytest.mark.parametrize("k", [1, 4])
def test_a_bucket_tells_less_than_all_classes(direction, k):
    models = make_models((40,), v=9, direction=direction, reduction="none")
    tensors, whole = dict(models.tensors), models.call(linear_kl_div)
    teacher = (tensors.pop("teacher_hidden") @ tensors.pop("teacher_weight").t()).log_softmax(-1).topk(k, -1)
    given = {"ids": teacher.indices, "logprobs": teacher.values}
    bucket = linear_topk_kl_div(**tensors, **given, direction=direction, reduction="none")
    assert (bucket > 0).all()
    assert (bucket < whole).all()


def test_of_its_own_statistics_a_model_learns_nothing():
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(50, 8)
    stats = token_stats(hidden.detach(), weight, torch.zeros(20).long(), topk=5, temperatures=None)
    for options in ({}, {"tail": "renormalize"}, {"direction": "reverse"}):
        loss = linear_topk_kl_div(hidden, weight, stats.top_ids, stats.top_logprobs.float(), **options)
        (dhidden,) = torch.autograd.grad(loss, hidden)
        assert loss.abs() < 1e-6
        assert dhidden.abs().max() < 1e-6


def test_one_class():
    hidden, weight = torch.zeros(1, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    loss = linear_topk_kl_div(hidden, weight, torch.tensor([[2]]), torch.tensor([[0.6]]).double().log())
    assert loss.item() == pytest.approx(0.6 * math.log(0.6 / 0.25) + 0.4 * math.log(0.4 / 0.75))
    renormalized = linear_topk_kl_div(hidden, weight, torch.tensor([[2]]), torch.tensor([[-0.5]]), tail="renormalize")
    assert renormalized == 0


@pytest.mark.parametrize("gap", [18.0, 25.0])
def test_a_student_that_is_sure_of_the_class(gap):
    """In float32 1 - p is 0 here; what a student of one class leaves to the rest is still known."""
    weight = torch.tensor([[gap], [0.0], [0.0]])
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = linear_topk_kl_div(hidden, weight, torch.tensor([[0]]), torch.tensor([[0.75]]).log())
    rest = -gap + math.log(2) - math.log1p(2 * math.exp(-gap))
    truth = 0.75 * (math.log(0.75) + math.log1p(2 * math.exp(-gap))) + 0.25 * (math.log(0.25) - rest)
    assert loss.item() == pytest.approx(truth, rel=1e-6)
    (dhidden,) = torch.autograd.grad(loss, hidden)
    assert dhidden.item() == pytest.approx(0.25 * gap, rel=1e-5)


def test_a_teacher_whose_probabilities_add_up_to_a_little_over_one():
    hidden, weight = torch.randn(1, 4, requires_grad=True), torch.randn(9, 4)
    logprobs = torch.tensor([[0.6, 0.40001]]).log()
    loss = linear_topk_kl_div(hidden, weight, torch.tensor([[1, 7]]), logprobs)
    (dhidden,) = torch.autograd.grad(loss, hidden)
    assert loss.isfinite()
    assert dhidden.isfinite().all()
    assert linear_topk_kl_div(hidden, weight, torch.tensor([[1, 7]]), logprobs, direction="reverse") == torch.inf


def test_a_class_that_the_teacher_rules_out():
    hidden, weight = torch.randn(3, 4), torch.randn(9, 4)
    ids, logprobs = torch.tensor([[1, 7]] * 3), torch.tensor([[-0.5, -torch.inf]] * 3)
    for tail in ("bucket", "renormalize"):
        without = linear_topk_kl_div(hidden, weight, ids[:, :1], logprobs[:, :1], tail="bucket")
        loss = linear_topk_kl_div(hidden, weight, ids, logprobs, tail=tail)
        assert loss.isfinite()
        assert tail == "renormalize" or loss > without  # of which the student's bucket has the class too


@each_tail
def test_nan_in_ignored_rows_reaches_nothing(tail):
    topk = make_topk(token_weight=True, tail=tail)
    truth, ignored = evaluate(oracle.topk_kl_div, topk), topk.options["token_weight"] == 0
    poisoned = {x: topk.tensors[x].clone() for x in ("student_hidden", "logprobs")}
    for x in poisoned.values():
        x[ignored] = torch.nan
    ids = topk.options["ids"].clone()
    ids[ignored] = -100
    ours = evaluate(linear_topk_kl_div, topk.with_tensors(**poisoned).using(ids=ids))
    assert_same(ours, truth, tol=1e-10)


def test_nothing_to_average():
    topk = make_topk(token_weight=True)
    topk.options["token_weight"].zero_()
    ours = evaluate(linear_topk_kl_div, topk)
    assert ours.loss == 0
    assert all((x == 0).all() for x in ours.grads.values())


def test_ignored_rows_cost_no_matmul():
    topk = make_topk((8, 1), d=5, v=7, k=1)
    with Gemms() as gemms:
        topk.call(linear_topk_kl_div, token_weight=torch.tensor([[1.0], [0], [0], [0]] * 2))
    assert gemms.count(8, 5, 7) == 0.25


def test_tensors_without_values():
    topk = make_topk(shift=1, reduction="none")
    meta = {name: x.to("meta").requires_grad_() for name, x in topk.tensors.items()}
    loss = topk.with_tensors(**meta).call(linear_topk_kl_div, ids=topk.options["ids"].to("meta"))
    assert loss.shape == (3, 4)
    loss.sum().backward()
    assert all(x.grad.shape == x.shape for x in meta.values())
