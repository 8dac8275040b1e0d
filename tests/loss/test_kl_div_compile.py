"""The divergences in graphs: the values and gradients of eager calls, in one graph for all shapes."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from cynosure.loss import linear_kl_div, linear_topk_kl_div
from tests.loss.cases import assert_same
from tests.loss.divergences import evaluate, make_models, make_topk
from tests.loss.graphs import Recorder, full_graph
from tests.loss.subclasses import Named

pytestmark = pytest.mark.cpu_only
LEARNED = {"bias": True, "shift": 1, "temperature": 1.7, "student_softcap": 3.0, "student_scale": 0.7}
OPERATIONS = {"linear_kl_div": (linear_kl_div, make_models), "linear_topk_kl_div": (linear_topk_kl_div, make_topk)}
each_operation = pytest.mark.parametrize("name", OPERATIONS)


def learned(inputs):
    """The weights of tokens as a leaf, and a normalizer if there is a mean."""
    weights = inputs.options.pop("token_weight")
    mean = inputs.options.get("reduction") == "mean"
    return inputs.with_tensors(token_weight=weights).using(**({"normalizer": 7.0} if mean else {}))


SLOW = pytest.mark.exhaustive
DIRECTIONS = [("linear_kl_div", "jsd"), ("linear_topk_kl_div", "bucket")]
DIRECTIONS += [
    pytest.param(name, x, marks=SLOW)
    for name, x in [("linear_kl_div", "forward"), ("linear_kl_div", "reverse"), ("linear_topk_kl_div", "renormalize")]
]


@pytest.mark.parametrize("reduction", ["mean", pytest.param("sum", marks=SLOW), "none"])
@pytest.mark.parametrize(("name", "which"), DIRECTIONS)
def test_every_gradient(name, which, reduction):
    """Of learned token weights and of heads padded to different sizes too."""
    op, make = OPERATIONS[name]
    of_heads = {"direction": which, "padding": 3, "vocab_size": 6}
    how = of_heads if op is linear_kl_div else {"direction": "reverse", "tail": which}
    inputs = make(**how, **LEARNED, reduction=reduction, token_weight=True)
    for case in (inputs, learned(inputs)):
        ours, eager = (evaluate(call, case, chunk_tokens=4) for call in (full_graph(op), op))
        assert_same(ours, eager)
        same = [name for name, x in ours.named().items() if torch.equal(x, eager.named()[name])]
        assert op is linear_topk_kl_div or set(same) >= ours.named().keys() - {"dtoken_weight"}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@SLOW
@each_operation
def test_narrow_gradients(name, reduction):
    """Of float16, which must not underflow on the way."""
    op, make = OPERATIONS[name]
    inputs = learned(make((512,), std=0.01, reduction=reduction, token_weight=True)).to(torch.float16)
    ours, eager = (evaluate(call, inputs) for call in (full_graph(op, "aot_eager"), op))
    assert_same(ours, eager, 2e-3)
    assert (ours.grads["student_hidden"] != 0).any()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@SLOW
@pytest.mark.each_variant
@pytest.mark.parametrize("reduction", ["mean", "none"])
@each_operation
def test_inductor(name, reduction):
    op, make = OPERATIONS[name]
    inputs = make(reduction=reduction, token_weight=True, **LEARNED)
    assert_same(*(evaluate(call, inputs) for call in (full_graph(op, "inductor"), op)), 1e-10)


@each_operation
def test_one_graph_for_all_shapes(name):
    op, make = OPERATIONS[name]
    counter = CompileCounter()
    compiled = full_graph(op, counter, dynamic=True)
    for lead in [(2, 6), (3, 9), (4, 5)]:
        inputs = make(lead, shift=1, token_weight=True)
        for x in inputs.tensors.values():
            x.requires_grad_()
        torch.testing.assert_close(inputs.call(compiled), inputs.call(op))
    assert counter.frame_count == 1


@SLOW
@each_operation
def test_under_autocast(name):
    op, make = OPERATIONS[name]
    inputs = make((9,)).to(torch.float32)

    def narrow(**given):
        with torch.autocast("cpu", torch.bfloat16):
            return op(**given)

    ours, eager = (evaluate(call, inputs) for call in (full_graph(narrow, "aot_eager"), narrow))
    assert_same(ours, eager, 1e-2)
    assert torch.equal(ours.loss, eager.loss)


@pytest.mark.parametrize("reduction", [pytest.param("mean", marks=SLOW), "none"])
@each_operation
def test_make_fx_and_opcheck(name, reduction):
    op, make = OPERATIONS[name]
    inputs = make(reduction=reduction, token_weight=True, shift=1)
    graph = make_fx(lambda: tuple(evaluate(op, learned(inputs)).named().values()))()
    with Recorder() as recorder:
        graph()
    n_operators = 3 if op is linear_topk_kl_div else 1 + (reduction == "none")
    assert len({operator for operator, _ in recorder.calls}) == n_operators
    for operator, args in recorder.calls:
        n_leaves = {"kl_div": 7, "token_logprobs": 3}.get(operator._opname, 0)
        leaves = [x.detach().requires_grad_(i < n_leaves) if torch.is_tensor(x) else x for i, x in enumerate(args)]
        torch.library.opcheck(operator, tuple(leaves))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own
@SLOW
@each_operation
def test_export(name):
    op, make = OPERATIONS[name]
    inputs = make(token_weight=True)

    class Criterion(torch.nn.Module):
        def forward(self, student_hidden):
            return inputs.with_tensors(student_hidden=student_hidden).call(op)

    hidden = inputs.tensors["student_hidden"]
    program = torch.export.export(Criterion(), (hidden,)).module()
    results = []
    for call in (program, Criterion()):
        leaf = (2 * hidden).requires_grad_()
        loss = call(leaf)
        results += [loss.detach(), *torch.autograd.grad(loss, leaf)]
    torch.testing.assert_close(results[:2], results[2:])


@pytest.mark.parametrize(("name", "n_gemms"), [("linear_kl_div", 4), ("linear_topk_kl_div", 4)])
def test_flops_are_counted_in_a_graph(name, n_gemms):
    op, make = OPERATIONS[name]
    inputs = make((8,), d=4, token_weight=True).freeze("teacher_hidden", "teacher_weight", "logprobs")
    graph = make_fx(lambda: evaluate(op, inputs).loss)()
    with FlopCounterMode(display=False) as counter:
        graph()
    n_counted = int((inputs.options["token_weight"] != 0).sum())
    assert counter.get_total_flops() == n_gemms * 2 * n_counted * inputs.tensors["student_weight"].numel()


@pytest.mark.parametrize(("name", "options", "message"), [
    ("linear_kl_div", {"direction": "backward"}, "direction must be one of 'forward', 'reverse', 'jsd', got"),
    ("linear_kl_div", {"vocab_size": 8}, "vocab_size=8, but student_weight has only 7 rows"),
    ("linear_kl_div", {"teacher_weight": torch.randn(8, 4).double()}, "student_weight has 7 rows and teacher_weight 8"),
    ("linear_topk_kl_div", {"tail": "drop"}, "tail must be 'bucket' or 'renormalize', got 'drop'"),
    ("linear_topk_kl_div", {"ids": torch.zeros(3, 5, dtype=torch.long)}, r"ids must have shape \(3, 5, K\)"),
    ("linear_topk_kl_div", {"ids": torch.full((3, 5, 3), 9)}, r"ids\[0, 0, 0\] is 9, but it must be in \[0, 9\)"),
])  # fmt: skip
def test_errors_say_what_is_wrong(name, options, message):
    op, make = OPERATIONS[name]
    inputs = make()
    with pytest.raises((RuntimeError, IndexError), match=message):
        full_graph(op)(**{**inputs.tensors, **inputs.options, **options})


@each_operation
def test_a_second_derivative_is_refused(name):
    op, make = OPERATIONS[name]
    inputs = make((6,))
    hidden = inputs.tensors["student_hidden"].requires_grad_()
    (dhidden,) = torch.autograd.grad(inputs.call(full_graph(op)), hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dhidden.square().sum().backward()


@pytest.mark.filterwarnings("ignore")  # of torch's own, about the graph break
@SLOW
@each_operation
def test_other_weights_break_the_graph(name):
    op, make = OPERATIONS[name]
    inputs = make((6,))
    weight = inputs.tensors.pop("student_weight").as_subclass(Named)
    call = partial(inputs.call, op, student_weight=weight)
    torch.testing.assert_close(torch.compile(lambda: 2 * call(), backend="eager")(), 2 * call())
    with pytest.raises(torch._dynamo.exc.Unsupported, match="plain tensors and Python numbers"):
        full_graph(call)()
