"""A model that calls the loss, trained plainly and under torch.compile."""

import io
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from cynosure.loss import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    cross_entropy,
    linear_cross_entropy,
    logits_token_logprobs,
    logits_token_stats,
    token_logprobs,
    token_stats,
)
from tests.loss import oracle
from tests.loss.cases import KINDS, REDUCTIONS, assert_same, evaluate, ids_case, joined, make_case
from tests.loss.graphs import Recorder, full_graph
from tests.loss.subclasses import Float8, Named


class LanguageModel(nn.Module):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.loss = loss

    def forward(self, ids, labels):
        hidden = torch.tanh(self.body(self.embed(ids)))
        return 2 * self.loss(hidden, self.head.weight, labels, bias=self.head.bias, shift=1)


def step(model, *batch):
    model.zero_grad()
    loss = model(*batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.many_rows
def test_training_falls_as_with_torch(backend):
    """Thirty steps of AdamW on a toy model: the two curves are the same."""

    def train(loss):
        model = LanguageModel(loss).double()
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
        ids = (torch.arange(8)[:, None] + torch.arange(7)) % 11  # every next token is sure
        losses = []
        for _ in range(30):
            optimiser.zero_grad()
            losses.append(model(ids, ids))
            losses[-1].backward()
            optimiser.step()
        return torch.stack(losses).detach()

    ours = train(lambda *args, **how: linear_cross_entropy(*args, **how, backend=backend, chunk_tokens=5))
    torch.testing.assert_close(ours, train(oracle.loss), rtol=1e-9, atol=1e-9)
    assert ours[-1] < 0.5 * ours[0]


COMPILERS = ["eager", "aot_eager", "inductor"]
HEAVY = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)]
INDUCTORS_OWN = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@INDUCTORS_OWN
@pytest.mark.each_value
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compile(compiler, backend):
    """The same loss and gradients, for a second shape too, and with rows ignored (which peers got wrong)."""
    model = LanguageModel(lambda *args, **how: linear_cross_entropy(*args, **how, backend=backend))
    plain = LanguageModel(oracle.loss)
    compiled = full_graph(model, compiler)
    for lead in [(2, 6), (2, 6), (3, 9)]:
        ids = torch.randint(11, lead)
        labels = torch.where(torch.rand(lead) < 0.5, -100, ids)
        for x, y in zip(step(compiled, ids, labels), step(plain, ids, labels), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    ids = torch.randint(11, (2, 6))
    assert step(compiled, ids, torch.full((2, 6), -100))[0] == 0


def of_logits(op, **more):
    def call(hidden, weight, target, bias=None, **options):
        return op(F.linear(hidden, weight, bias), target, **options, **more)

    return call


STATS = {"topk": 2, "temperatures": [2.0, 0.5]}
OPERATIONS = {
    "linear_cross_entropy": linear_cross_entropy,
    "cross_entropy": of_logits(cross_entropy),
    "token_logprobs": token_logprobs,
    "logits_token_logprobs": of_logits(logits_token_logprobs),
    "token_stats": partial(token_stats, **STATS),
    "logits_token_stats": of_logits(logits_token_stats, **STATS),
    "LinearCrossEntropyLoss": LinearCrossEntropyLoss(),
    "CrossEntropyLoss": of_logits(CrossEntropyLoss()),
}


@INDUCTORS_OWN
@pytest.mark.each_value
@pytest.mark.parametrize("compiler", HEAVY)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_in_the_graph(name, compiler):
    case = make_case(lead=(9,), dtype=torch.float32)
    for trained in (False, True):
        hidden = case.hidden.clone().requires_grad_(trained)
        call = partial(OPERATIONS[name], hidden, case.weight, case.target)
        ours = full_graph(OPERATIONS[name], compiler)(hidden, case.weight, case.target)
        torch.testing.assert_close(ours, call(), equal_nan=True)
        if trained and "stats" not in name:
            gradients = [torch.autograd.grad(loss.sum(), hidden) for loss in (ours, call())]
            torch.testing.assert_close(*gradients)


@INDUCTORS_OWN
@pytest.mark.parametrize("compiler", HEAVY)
@pytest.mark.parametrize("name", ["token_logprobs", "logits_token_logprobs"])
def test_given_ids_and_the_entropy_are_in_the_graph(name, compiler):
    both = joined(OPERATIONS[name])
    for case in (ids_case(lead=(3, 5), shift=1, softcap=2.0, temperature=0.7), make_case(lead=(3, 5), bias=True)):
        assert_same(evaluate(full_graph(both, compiler), case), evaluate(both, case))
    case = ids_case(lead=(3, 5))
    assert_same(*(evaluate(op, case) for op in (full_graph(OPERATIONS[name], compiler), OPERATIONS[name])))


def test_a_temperature_is_in_the_graph():
    """Also one that changes between calls."""
    case = make_case(lead=(9,))
    compiled = full_graph(lambda t: case.call(token_logprobs, temperature=t))
    for temperature in (0.5, 1.5, 2.5):
        torch.testing.assert_close(compiled(temperature), case.call(token_logprobs, temperature=temperature))


OPTIONS = [
    {"bias": True, "token_weight": True},
    {"class_weight": True, "bias": True, "z_loss": 1e-3, "softcap": 3.0, "scale": 0.5},
    {"label_smoothing": 0.1, "token_weight": True, "class_weight": True, "shift": 1},
]


@pytest.mark.parametrize("name", ["linear_cross_entropy", "cross_entropy"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient(kind, reduction, options, name):
    """Of every option and target, token weights and probabilities that are learned too."""
    case = make_case(lead=(3, 5), kind=kind, reduction=reduction, **options)
    ours, eager = (evaluate(op, case) for op in (full_graph(OPERATIONS[name]), OPERATIONS[name]))
    assert_same(ours, eager)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_narrow_gradients(reduction, dtype):
    """Scaled for float16 by a large upstream gradient, which must not overflow or vanish on the way."""
    case = make_case(lead=(512,), reduction=reduction, bias=True, std=1e-4, token_weight=True).to(dtype)
    upstream = torch.tensor(1.0).expand(512) if reduction == "none" else torch.tensor(2.0**17)
    ours, eager = (evaluate(op, case, upstream) for op in (full_graph(linear_cross_entropy), linear_cross_entropy))
    assert_same(ours, eager, 2e-3 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_under_autocast(compiler):
    """The graph may run outside of autocast, as AOTAutograd's does: its dtype is a part of the graph."""
    case = make_case(lead=(9,), bias=True, dtype=torch.float32)

    def loss(*args, **options):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(*args, **options)

    for reduction in REDUCTIONS:
        ours, eager = (evaluate(op, case.using(reduction=reduction)) for op in (full_graph(loss, compiler), loss))
        assert_same(ours, eager, 1e-2)
        assert torch.equal(ours.loss, eager.loss)


@pytest.mark.parametrize("name", ["linear_cross_entropy", "cross_entropy", "token_logprobs", "token_stats", "entropy"])
def test_one_graph_for_all_shapes(name):
    counter, op = CompileCounter(), OPERATIONS.get(name, joined(token_logprobs))
    compiled = full_graph(lambda *args: op(*args, shift=1), counter, dynamic=True)
    for lead in [(2, 6), (3, 9), (4, 5)]:
        case = make_case(lead=lead, dtype=torch.float32)
        ours, eager = compiled(case.hidden, case.weight, case.target), case.call(op, shift=1)
        torch.testing.assert_close(ours, eager, equal_nan=True)
    assert counter.frame_count == 1


@pytest.mark.parametrize("normalizer", [7, 7.0, torch.tensor(7.0)])
def test_numbers_that_change_between_calls(normalizer):
    case = make_case(lead=(9,))
    compiled = full_graph(lambda n, s: case.call(linear_cross_entropy, normalizer=n, scale=s))
    for i in range(3):
        ours = compiled(normalizer + i, 1.0 + i)
        torch.testing.assert_close(ours, case.call(linear_cross_entropy, normalizer=normalizer + i, scale=1.0 + i))


def test_errors_say_what_is_wrong():
    case = make_case(lead=(9,))
    compiled = full_graph(linear_cross_entropy)
    with pytest.raises(IndexError, match=r"target\[0\] is 7, but"):
        compiled(case.hidden, case.weight, torch.full((9,), 7))
    with pytest.raises(RuntimeError, match=r"label_smoothing must be in \[0, 1\]"):
        compiled(case.hidden, case.weight, case.target, label_smoothing=2.0)
    with pytest.raises(RuntimeError, match=r"hidden must have shape \(\.\.\., D\)"):
        compiled(case.hidden, case.weight.T, case.target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_derivative_is_refused(reduction):
    case = make_case(lead=(9,), reduction=reduction)
    hidden = case.hidden.requires_grad_()
    loss = full_graph(linear_cross_entropy)(hidden, case.weight, case.target, reduction=reduction).sum()
    (dhidden,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dhidden.square().sum().backward()


@pytest.mark.filterwarnings("ignore")  # of torch's own, about the graph break
@pytest.mark.parametrize("change", [lambda w: Float8(w), lambda w: w.as_subclass(Named)])
def test_other_weights_break_the_graph(change):
    case = make_case(lead=(9,), dtype=torch.float32)
    weight = change(case.weight)
    compiled = torch.compile(lambda h: 2 * linear_cross_entropy(h.tanh(), weight, case.target), backend="eager")
    torch.testing.assert_close(compiled(case.hidden), 2 * linear_cross_entropy(case.hidden.tanh(), weight, case.target))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="plain tensors and Python numbers"):
        full_graph(lambda h: linear_cross_entropy(h, weight, case.target))(case.hidden)


def export(model, *args, **how):
    return torch.export.export(model, args, **how)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    """With a batch of any size; trained like the model; saved and loaded."""
    model = LanguageModel(linear_cross_entropy)
    ids = torch.randint(11, (2, 6))
    batch = torch.export.Dim("batch", min=2)
    exported = export(model, ids, ids, strict=strict, dynamic_shapes=({0: batch}, {0: batch}))
    (call,) = [n for n in exported.graph.nodes if n.target is torch.ops.cynosure.cross_entropy.default]
    assert not any(call.args[-1])  # an exported program mostly runs without gradients
    saved = io.BytesIO()
    torch.export.save(exported, saved)
    saved.seek(0)
    for program in (exported, torch.export.load(saved), exported.run_decompositions()):
        ids = torch.randint(11, (3, 6))
        for x, y in zip(step(program.module(), ids, ids), step(model, ids, ids), strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_make_fx(name, pre_dispatch):
    case = make_case(lead=(9,))
    graph = make_fx(lambda h: OPERATIONS[name](h, case.weight, case.target), pre_dispatch=pre_dispatch)(case.hidden)
    ours, eager = graph(2 * case.hidden), OPERATIONS[name](2 * case.hidden, case.weight, case.target)
    torch.testing.assert_close(ours, eager, equal_nan=True)
    assert any(node.target.namespace == "cynosure" for node in graph.graph.nodes if hasattr(node.target, "namespace"))


@pytest.mark.parametrize(
    ("name", "n_gemms"),
    [("linear_cross_entropy", 3), ("token_logprobs", 4), ("token_stats", 1), ("logits_token_logprobs", 0), ("ids", 4)],
)
def test_flops_are_counted_in_a_graph(name, n_gemms):
    """Those of the rows that count, in the forward and in the backward."""
    case = make_case(lead=(9,), d=7, dtype=torch.float32)
    op = logits_token_logprobs if n_gemms == 0 else OPERATIONS.get(name, joined(token_logprobs))

    def step(hidden, weight):
        leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        result = op(leaves[0], case.target) if n_gemms == 0 else op(*leaves, case.target)
        return torch.autograd.grad(result.sum(), leaves, allow_unused=True)[0] if n_gemms != 1 else result.nll

    graph = make_fx(step)(case.hidden, case.weight)
    with FlopCounterMode(display=False) as counter:
        graph(case.hidden, case.weight)
    assert counter.get_total_flops() == n_gemms * 2 * int((case.target != -100).sum()) * case.weight.numel()


@pytest.mark.filterwarnings("ignore")  # of torch's own, about its checks
@pytest.mark.parametrize(
    ("name", "kind", "reduction"),
    [
        *product(["linear_cross_entropy", "cross_entropy"], KINDS, ["mean", "none"]),
        ("token_stats", "indices", "mean"),
        ("token_logprobs", "ids", "none"),
        ("logits_token_logprobs", "ids", "none"),
    ],
)
def test_opcheck(name, kind, reduction):
    if name == "token_stats":
        case = make_case(lead=(3, 5), bias=True, ignored=0)  # an ignored row's NaN is not equal to itself
        run = lambda: case.call(OPERATIONS["token_stats"])  # noqa: E731
    elif name.endswith("logprobs"):
        case = ids_case(lead=(3, 5), shift=1)
        run = lambda: evaluate(joined(OPERATIONS[name]), case)  # noqa: E731
    else:
        dtype = torch.bfloat16 if reduction == "mean" else torch.float64
        case = make_case(lead=(3, 5), kind=kind, reduction=reduction, token_weight=True, bias=True, shift=1).to(dtype)
        run = lambda: evaluate(OPERATIONS[name], case)  # noqa: E731
    compiled = make_fx(run)()
    with Recorder() as recorder:
        compiled()
    assert recorder.calls
    for operator, args in recorder.calls:
        leaves = [x.detach().requires_grad_() if is_leaf(i, x, operator) else x for i, x in enumerate(args)]
        torch.library.opcheck(operator, tuple(leaves))


def is_leaf(i, x, operator):
    is_forward = operator._opname in ("cross_entropy", "token_logprobs")
    return torch.is_tensor(x) and x.is_floating_point() and i < 5 and is_forward
