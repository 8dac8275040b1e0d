"""Divergences of two heads against float64 formulas on full logits, closed forms and TRL."""

import math

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import linear_kl_div
from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.divergence import jobs
from tests.loss import divergence_oracle as oracle
from tests.loss.cases import REDUCTIONS, assert_same
from tests.loss.divergences import DIRECTIONS, Inputs, evaluate, make_models
from tests.loss.probes import assert_three_way, max_error, rms_error
from tests.loss.subclasses import Parted

pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.cpu_only]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)

SETTINGS = {
    "plain": {},
    "capped": {"student_softcap": 2.0, "teacher_softcap": 3.0, "student_scale": 0.7, "teacher_scale": -1.3},
    "tempered": {"bias": True, "temperature": 2.5, "teacher_softcap": 5.0},
    "weighed": {"bias": True, "token_weight": True, "shift": 1},
    "padded": {"bias": True, "padding": 4, "vocab_size": 6, "shift": 2},
}


@pytest.fixture
def on_backend(backend, monkeypatch):
    monkeypatch.setattr(jobs, "choose_backend", lambda name, device: choose_backend(backend, device))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@each_direction
def test_conformance(direction, reduction, setting, on_backend):
    models = make_models(**SETTINGS[setting], direction=direction, reduction=reduction)
    models = models.using(beta=0.3) if direction == "jsd" else models
    assert_same(evaluate(linear_kl_div, models, chunk_tokens=4), evaluate(oracle.kl_div, models))


@pytest.mark.parametrize("lead", [(), (1,), (2, 2, 3), (0,), (3, 0)])
@each_direction
def test_leading_shapes(direction, lead):
    models = make_models(lead, direction=direction, reduction="none")
    ours = evaluate(linear_kl_div, models)
    assert ours.loss.shape == lead
    assert_same(ours, evaluate(oracle.kl_div, models))


@each_direction
def test_a_learned_token_weight_and_a_normalizer(direction):
    models = make_models((4, 6), shift=1, direction=direction, normalizer=7.5)
    models = models.with_tensors(token_weight=torch.rand(4, 6, dtype=torch.float64).round(decimals=1))
    assert_same(evaluate(linear_kl_div, models), evaluate(oracle.kl_div, models))
    mean = models.using(normalizer=None)
    assert_same(evaluate(linear_kl_div, mean), evaluate(oracle.kl_div, mean))


def compare(models, error=rms_error, **how):
    """Ours and plain torch in one dtype, each against float64 on the same rounded inputs."""
    truth = evaluate(oracle.kl_div, models.double()).named()
    theirs, ours = evaluate(oracle.kl_div, models).named(), evaluate(linear_kl_div, models, **how).named()
    each = models.using(reduction="none")
    truth["rows"], theirs["rows"] = each.double().call(oracle.kl_div), each.call(oracle.kl_div)
    ours["rows"] = each.call(linear_kl_div, **how)
    for name, x in ours.items():
        eps = torch.finfo(torch.float32).eps * truth[name].abs().max().item()
        if name == "loss":  # one number, in which torch may be lucky: no more than its rows are off
            eps = max(eps, rms_error(theirs["rows"], truth["rows"]) * (x / truth["rows"].mean()).item())
        assert_three_way(x, theirs[name], truth[name], eps=eps, name=name, error=error)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("std", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_direction
def test_precision(direction, dtype, std, offset, on_backend):
    models = make_models((2, 17), d=16, e=8, v=1003, std=std, bias=True, direction=direction, temperature=1.5)
    biases = {name: models.tensors[name] + offset for name in ("student_bias", "teacher_bias")}
    compare(models.with_tensors(**biases).to(dtype), chunk_tokens=5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("error", [max_error, rms_error], ids=["max", "rms"])
@pytest.mark.parametrize("v", [1, 2, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_direction
def test_precision_of_vocabularies(direction, dtype, v, error):
    compare(make_models((11,), d=16, e=8, v=v, std=4.0, direction=direction).to(dtype), error=error)


@pytest.mark.many_rows
@each_direction
def test_precision_of_many_chunks(direction):
    models = make_models((256,), d=16, e=8, v=200, std=3.0, direction=direction, reduction="sum")
    compare(models.to(torch.bfloat16), chunk_tokens=3)


@pytest.mark.parametrize("student", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@each_direction
def test_each_model_has_its_own_dtype(direction, teacher, student, on_backend):
    models = make_models((2, 9), v=37, direction=direction).to(student, "student_hidden", "student_weight")
    models = models.to(teacher, "teacher_hidden", "teacher_weight")
    ours, truth = evaluate(linear_kl_div, models), evaluate(oracle.kl_div, models.double())
    assert ours.loss.dtype == (torch.float64 if torch.float64 in (student, teacher) else torch.float32)
    narrowest = max((student, teacher), key=lambda dtype: torch.finfo(dtype).eps)
    for name, x in ours.grads.items():
        assert x.dtype == models.tensors[name].dtype
        torch.testing.assert_close(x.double(), truth.grads[name], rtol=0, atol=4 * torch.finfo(narrowest).eps)


def test_small_upstream_gradients_in_float16_are_not_lost():
    models = make_models((64,), v=50, reduction="sum").to(torch.float16).freeze("teacher_hidden", "teacher_weight")
    upstream = torch.tensor(2.0**-16)
    truth, ours = (evaluate(op, x, upstream) for op, x in ((oracle.kl_div, models.double()), (linear_kl_div, models)))
    for name, x in ours.grads.items():
        assert rms_error(x, truth.grads[name]) < 0.02 * truth.grads[name].square().mean().sqrt(), name


@pytest.mark.parametrize("of", ["student", "teacher"])
@each_direction
def test_a_weight_with_its_own_matmul(direction, of):
    models = make_models((6,), v=9, direction=direction).to(torch.float32).freeze(f"{of}_weight")
    weight = Parted.of(models.tensors[f"{of}_weight"])
    truth = evaluate(linear_kl_div, models.with_tensors(**{f"{of}_weight": weight.dequantize()}))
    tensors = {name: x for name, x in models.tensors.items() if name != f"{of}_weight"}
    own = Inputs(tensors, {**models.options, f"{of}_weight": weight})
    ours = evaluate(linear_kl_div, own)
    for name, x in ours.named().items():
        torch.testing.assert_close(x, truth.named()[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match=f"{of}_weight is a Parted, whose first 8 rows cannot be multiplied"):
        own.call(linear_kl_div, vocab_size=8)
    trained = Inputs(tensors, {**own.options, f"{of}_weight": weight.requires_grad_()})
    with pytest.raises(NotImplementedError, match=f"^{of}_weight is a Parted that requires grad"):
        trained.call(linear_kl_div)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each_direction
def test_equal_models_have_no_divergence_and_no_gradient(direction, dtype, on_backend):
    models = make_models((40,), d=6, e=6, v=101, std=5.0, direction=direction, temperature=0.7).to(dtype)
    hidden, weight = models.tensors["student_hidden"], models.tensors["student_weight"]
    ours = evaluate(linear_kl_div, models.with_tensors(teacher_hidden=hidden, teacher_weight=weight))
    assert ours.loss == 0
    assert all((x == 0).all() for x in ours.grads.values())


@each_direction
def test_a_divergence_is_never_negative(direction, on_backend):
    models = make_models((64,), d=6, e=6, v=101, std=3.0, direction=direction, reduction="none").to(torch.float32)
    close = models.tensors["student_weight"] * (1 + 1e-6)
    models = models.with_tensors(teacher_hidden=models.tensors["student_hidden"], teacher_weight=close)
    assert (models.call(linear_kl_div) >= 0).all()


def two_classes(p, direction, **options):
    """A student that gives two classes 1 / 2 each, and a teacher that gives them p and 1 - p."""
    eye, log_p = torch.eye(2, dtype=torch.float64), torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    return linear_kl_div(torch.zeros_like(log_p), eye, log_p, eye, direction=direction, **options).item()


def test_two_classes():
    p = 0.2
    assert two_classes(p, "forward") == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert two_classes(p, "reverse") == pytest.approx(-0.5 * math.log(2 * p) - 0.5 * math.log(2 * (1 - p)))
    m, beta = 0.25 * p + 0.75 * 0.5, 0.25
    of_t = p * math.log(p / m) + (1 - p) * math.log((1 - p) / (1 - m))
    of_s = 0.5 * math.log(0.5 / m) + 0.5 * math.log(0.5 / (1 - m))
    assert two_classes(p, "jsd", beta=beta) == pytest.approx(beta * of_t + (1 - beta) * of_s)


def test_directions_mirror_each_other():
    models = make_models((7,), d=4, e=4)
    swapped = models.with_tensors(**{
        f"{a}_{x}": models.tensors[f"{b}_{x}"]
        for a, b in (("student", "teacher"), ("teacher", "student"))
        for x in ("hidden", "weight")
    })  # fmt: skip
    for here, there in (
        ({"direction": "forward"}, {"direction": "reverse"}),
        ({"direction": "jsd", "beta": 0.2}, {"direction": "jsd", "beta": 0.8}),
    ):
        torch.testing.assert_close(models.call(linear_kl_div, **here), swapped.call(linear_kl_div, **there))


def test_jsd_of_disjoint_distributions_is_the_entropy_of_the_mixture(on_backend):
    eye, far = torch.eye(2), torch.tensor([[200.0, 0.0]])
    assert linear_kl_div(far, eye, -far, eye, direction="jsd").item() == pytest.approx(math.log(2))
    for beta in (1e-9, 0.1):
        entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        jsd = linear_kl_div(far, eye, -far, eye, direction="jsd", beta=beta)
        assert jsd.item() == pytest.approx(entropy, rel=1e-5)


def test_the_cross_entropy_of_a_teacher_is_its_entropy_more():
    models = make_models((8,), reduction="sum")
    t = F.linear(models.tensors["teacher_hidden"], models.tensors["teacher_weight"]).softmax(-1)
    logits = F.linear(models.tensors["student_hidden"], models.tensors["student_weight"])
    truth = F.cross_entropy(logits, t, reduction="sum") + (t * t.log()).sum()
    torch.testing.assert_close(models.call(linear_kl_div), truth)


@pytest.mark.exhaustive
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("direction", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.3), ("jsd", 0.5)])
def test_equal_to_trl(direction, beta, temperature, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    models = make_models((2, 20), d=16, e=8, v=300, bias=True, std=2.0, reduction="none").to(torch.float32)
    models = models.freeze("teacher_hidden", "teacher_weight", "teacher_bias").using(temperature=temperature)

    def of_trainer(temperature, reduction, **x):
        student, teacher = (
            F.linear(*(x[f"{of}_{y}"] for y in ("hidden", "weight", "bias"))) for of in ("student", "teacher")
        )
        loss = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="none")
        return loss.sum(-1)

    def of_kernel(temperature, reduction, **x):
        inputs = [
            x[f"{of}_{y}"].flatten(0, -2) if y == "hidden" else x[f"{of}_{y}"]
            for of in ("student", "teacher") for y in ("hidden", "weight", "bias")
        ]  # fmt: skip
        return ChunkedDivergenceFunction.apply(*inputs, beta, temperature)[0].view(2, 20)

    ours = evaluate(linear_kl_div, models.using(direction=direction, **({"beta": beta} if direction == "jsd" else {})))
    for theirs in (evaluate(of_trainer, models), evaluate(of_kernel, models)):
        for name, x in ours.named().items():
            torch.testing.assert_close(x, theirs.named()[name], rtol=1e-5, atol=1e-6)
