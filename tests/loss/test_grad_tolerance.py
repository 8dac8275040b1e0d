"""When a call samples its backward, where its draws come from, and that compilers and checkpoints repeat them."""

import copy

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from cynosure.loss import (
    LinearCrossEntropyLoss,
    devices,
    functional,
    linear_cross_entropy,
    record_sampling,
    token_logprobs,
)
from cynosure.loss.sampling.options import Sampling, draw_seed
from tests.loss.cases import KINDS, REDUCTIONS, evaluate, make_case
from tests.loss.graphs import Recorder, full_graph
from tests.loss.test_compile import is_leaf

pytestmark = pytest.mark.cpu_only


def inputs(n=32, d=8, v=500, dtype=torch.float32):
    """Hidden states that know their targets: most columns hardly count."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(v, d, generator=generator)
    target = torch.randint(v, (n,), generator=generator)
    hidden = weight[target] * 2
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def gradients(hidden, weight, target, op=linear_cross_entropy, **options):
    return torch.autograd.grad(op(hidden, weight, target, **options).sum(), (hidden, weight))


@pytest.fixture
def jobs(monkeypatch):
    """The jobs of the calls."""
    seen, own = [], functional.apply
    monkeypatch.setattr(functional, "apply", lambda *args: seen.append(args[-1]) or own(*args))
    return seen


def drawn(call):
    """How many seeds a call draws from torch's default generator."""
    before = torch.get_rng_state()
    call()
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    n = 0
    while not torch.equal(torch.get_rng_state(), after):
        draw_seed()
        n += 1
        assert n < 10
    return n


def test_nothing_is_drawn_for_exact_gradients():
    hidden, weight, target = inputs()
    frozen = hidden.detach(), weight.detach(), target
    bias = torch.zeros(len(weight), requires_grad=True)
    given = torch.Generator()
    before = given.get_state()
    for call in (
        lambda: gradients(hidden, weight, target),
        lambda: gradients(hidden, weight, target, generator=given),
        lambda: gradients(hidden, weight, target, grad_tolerance="dtype", generator=given),
        lambda: gradients(hidden.double(), weight.double(), target, grad_tolerance="dtype", generator=given),
        lambda: linear_cross_entropy(*frozen, grad_tolerance=0.1, generator=given),
        lambda: linear_cross_entropy(*frozen, bias=bias, grad_tolerance=0.1, generator=given).backward(),
        lambda: torch.no_grad()(linear_cross_entropy)(hidden, weight, target, grad_tolerance=0.1, generator=given),
        lambda: linear_cross_entropy(*(x.to("meta") for x in inputs()), grad_tolerance=0.1, generator=given),
    ):
        assert drawn(call) == 0
    assert torch.equal(given.get_state(), before)


@pytest.mark.parametrize("op", [linear_cross_entropy, token_logprobs])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_one_seed_is_drawn_a_call(trained, op):
    hidden, weight, target = inputs()
    hidden.requires_grad_(trained[0]), weight.requires_grad_(trained[1])
    call = lambda **options: op(hidden, weight, target, grad_tolerance=0.1, **options).sum().backward()  # noqa: E731
    assert drawn(call) == 1
    given = torch.Generator().manual_seed(3)
    assert drawn(lambda: call(generator=given)) == 0
    same = torch.Generator().manual_seed(3)
    draw_seed(same)
    assert torch.equal(given.get_state(), same.get_state())


@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [
        (torch.float32, None, 0.0),
        (torch.float64, None, 0.0),
        (torch.bfloat16, None, 2**-8),
        (torch.float16, None, 2**-11),
        (torch.float32, torch.bfloat16, 2**-8),
        (torch.float64, torch.bfloat16, 0.0),
    ],
)
def test_the_rounding_of_the_matmuls_dtype(dtype, autocast, tolerance, jobs):
    hidden, weight, target = inputs(dtype=dtype)
    given = torch.Generator().manual_seed(5)
    seed = int(draw_seed(torch.Generator().manual_seed(5)))
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        linear_cross_entropy(hidden, weight, target, grad_tolerance="dtype", generator=given)
    assert jobs[-1].sampling == (Sampling(tolerance, seed) if tolerance else None)
    linear_cross_entropy(hidden, weight, target, grad_tolerance=0.25, generator=given)
    assert jobs[-1].sampling.tolerance == 0.25


def test_a_module_takes_both(jobs):
    module = LinearCrossEntropyLoss(grad_tolerance=0.125)
    assert "grad_tolerance=0.125" in repr(module)
    given = torch.Generator().manual_seed(5)
    module(*inputs(), generator=given)
    assert jobs[-1].sampling == Sampling(0.125, int(draw_seed(torch.Generator().manual_seed(5))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_loss_is_exact(reduction, kind):
    case = make_case(lead=(5, 7), kind=kind, reduction=reduction, bias=True, token_weight=True)
    ours = evaluate(linear_cross_entropy, case.using(grad_tolerance=0.3))
    exact = evaluate(linear_cross_entropy, case)
    assert torch.equal(ours.loss, exact.loss)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_backward_repeats_the_first(reduction):
    hidden, weight, target = inputs()
    loss = linear_cross_entropy(hidden, weight, target, reduction=reduction, grad_tolerance=0.2).sum()
    first, second = (torch.autograd.grad(loss, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_same_seed_draws_the_same(reduction):
    def of(seed):
        options = {"reduction": reduction, "grad_tolerance": 0.2, "generator": torch.Generator().manual_seed(seed)}
        return gradients(*inputs(), **options)

    assert all(map(torch.equal, of(1), of(1)))
    assert not all(map(torch.equal, of(1), of(2)))


def test_another_device_is_refused(monkeypatch):
    hidden, weight, target = inputs(dtype=torch.bfloat16)
    monkeypatch.setattr(devices, "SYNCHRONOUS", frozenset())
    for tolerance in (0.1, "dtype"):
        with pytest.raises(NotImplementedError, match="runs on a CPU, but hidden is on cpu: leave grad_tolerance out"):
            linear_cross_entropy(hidden, weight, target, grad_tolerance=tolerance)
    linear_cross_entropy(hidden.float(), weight.float(), target, grad_tolerance="dtype").backward()


class Model(nn.Module):
    def __init__(self, checkpointed=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.drop = nn.Embedding(300, 8), nn.Linear(8, 300), nn.Dropout(0.3)
        self.checkpointed, self.options = checkpointed, options

    def forward(self, ids):
        if self.checkpointed:
            return checkpoint(self.loss, ids, use_reentrant=False)
        return self.loss(ids)

    def loss(self, ids):
        hidden = self.drop(self.embed(ids))
        return linear_cross_entropy(hidden, self.head.weight, ids, shift=1, grad_tolerance=0.2, **self.options).sum()


def step(model, ids, seed=7):
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(ids)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.fixture
def ids():
    return torch.randint(300, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_checkpoint_repeats_its_draw(reduction, ids):
    options = {"reduction": reduction}
    for x, y in zip(step(Model(True, **options), ids), step(Model(**options), ids), strict=True):
        assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)])
def test_a_compiled_step_is_the_same(compiler, reduction, checkpointed, ids):
    """Inductor has random numbers of its own: its dropout and its columns differ from those of eager mode."""
    model = Model(checkpointed, reduction=reduction)
    compiled = full_graph(model, compiler)
    ours = step(compiled, ids)
    assert all(map(torch.equal, ours, step(compiled, ids)))
    if compiler != "inductor" and not checkpointed:
        for x, y in zip(ours, step(model, ids), strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.filterwarnings("ignore")  # of torch's own, about its checks
@pytest.mark.parametrize("tolerance", [0.1, "dtype"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_seed_is_in_the_graph(reduction, tolerance):
    """Of the backward operator too, which recomputes for any upstream gradient."""
    hidden, weight, target = inputs(dtype=torch.bfloat16)
    options = {"reduction": reduction, "grad_tolerance": tolerance}
    graph = make_fx(lambda: gradients(hidden, weight, target, **options))()
    with Recorder() as recorder:
        graph()
    seeds = [x for _, args in recorder.calls for x in args if is_seed(x)]
    assert len(seeds) == len(recorder.calls) == (1 if reduction == "mean" else 2)
    assert all(torch.equal(x, seeds[0]) for x in seeds)
    for operator, args in recorder.calls:
        args = [x.detach() if torch.is_tensor(x) else x for x in args]
        leaves = [x.requires_grad_() if is_leaf(i, x, operator) else x for i, x in enumerate(args)]
        torch.library.opcheck(operator, tuple(leaves))
    with torch.no_grad(), Recorder() as recorder:
        make_fx(lambda: linear_cross_entropy(hidden, weight, target, **options))()()
    assert not any(is_seed(x) for _, args in recorder.calls for x in args)


def is_seed(x):
    return torch.is_tensor(x) and x.dtype == torch.int64 and x.ndim == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own
def test_an_exported_program_is_exact(ids):
    exported = torch.export.export(copy.deepcopy(Model()).eval(), (ids,))
    (call,) = [n for n in exported.graph.nodes if n.target is torch.ops.cynosure.cross_entropy.default]
    assert call.args[8] is None
    assert not any("rand" in str(node.target) for node in exported.graph.nodes)
    exact = Model().eval()
    exact.options["reduction"] = "mean"
    assert drawn(lambda: exported.module()(ids)) == 0
    torch.testing.assert_close(exported.module()(ids), exact(ids))


@pytest.mark.filterwarnings("ignore")  # of torch's own, about the graph break
def test_a_generator_breaks_the_graph():
    """Dynamo has no proxy for one."""
    hidden, weight, target = inputs()
    given = torch.Generator()

    def call(h):
        options = {"grad_tolerance": 0.2, "generator": given.manual_seed(1)}
        return 2 * linear_cross_entropy(h * 1, weight, target, **options)

    eager = torch.autograd.grad(call(hidden), hidden)
    compiled = torch.compile(call, backend="eager")
    assert all(map(torch.equal, torch.autograd.grad(compiled(hidden), hidden), eager))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="without a generator"):
        torch.compile(
            lambda h: linear_cross_entropy(h, weight, target, grad_tolerance=0.2, generator=given),
            backend="eager", fullgraph=True,
        )(hidden)  # fmt: skip
    with pytest.raises(NotImplementedError, match="no generator"):
        make_fx(lambda h: linear_cross_entropy(h, weight, target, grad_tolerance=0.2, generator=given))(hidden)


def test_a_graph_checks_the_tolerance():
    hidden, weight, target = inputs()
    for tolerance in (-0.1, float("nan"), 1.5):
        compiled = full_graph(linear_cross_entropy)
        with pytest.raises(RuntimeError, match=r"grad_tolerance must be in \[0, 1\)"):
            compiled(hidden, weight, target, grad_tolerance=tolerance)
    compiled = torch.compile(linear_cross_entropy, backend="eager")
    with pytest.raises(ValueError, match="grad_tolerance must be 'dtype' or a number"):
        compiled(hidden, weight, target, grad_tolerance="foo")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_record_of_every_backward(reduction):
    with record_sampling() as records:
        gradients(*inputs(), reduction=reduction)
        assert records == []
        gradients(*inputs(), reduction=reduction, grad_tolerance=0.2)
    (record,) = records
    assert record.n_tokens == 32
    assert 0 < record.columns_kept < 1
    assert 0 < record.dhidden_error < 0.5
    assert 0 < record.dweight_error < 0.5


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_graph_samples_as_eager_mode_does(reduction):
    def of(op):
        torch.manual_seed(3)
        with record_sampling() as records:
            found = gradients(*inputs(), op, reduction=reduction, grad_tolerance=0.2)
        return found, records

    ours, eager = of(full_graph(linear_cross_entropy)), of(linear_cross_entropy)
    assert ours[1] == eager[1]
    for x, y in zip(ours[0], eager[0], strict=True):
        torch.testing.assert_close(x, y)
