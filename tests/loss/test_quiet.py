"""On an asynchronous device no call waits for the host: the device's branch, on the CPU, with every wait forbidden."""

import subprocess
import sys
from itertools import product

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cynosure.loss import (
    cross_entropy,
    devices,
    linear_cross_entropy,
    linear_kl_div,
    linear_topk_kl_div,
    logits_token_logprobs,
    logits_token_stats,
    logprob_operators,
    operators,
    token_logprobs,
    token_stats,
)
from cynosure.loss.divergence import operators as divergence_operators
from cynosure.loss.matmul import weight_sum
from tests.loss import divergence_oracle, divergences, oracle
from tests.loss.cases import KINDS, REDUCTIONS, assert_same, evaluate, ids_case, joined, make_case, upstream_like
from tests.loss.graphs import Recorder
from tests.loss.probes import Gemms, assert_three_way

WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "equal", "unique_dim",
    "_unique", "_unique2", "unique_consecutive", "bincount", "argwhere", "is_pinned",
}  # fmt: skip


class Quiet(TorchDispatchMode):
    """Fails where an operation would wait for its device, its shape depends on a value, or a factor is rounded."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        indices = tree_leaves(args[1]) if name.startswith(("index", "_index")) else []
        if name in WAITS or any(torch.is_tensor(i) and i.dtype in (torch.bool, torch.uint8) for i in indices):
            raise AssertionError(f"{func} waits for its device")
        if name in ("mul", "mul_", "div", "div_") and torch.is_tensor(args[1]) and args[1].ndim == 0 < args[0].ndim:
            assert args[1].dtype.itemsize <= args[0].dtype.itemsize, f"{func} rounds its factor on a GPU"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def asynchronous(monkeypatch):
    monkeypatch.setattr(devices, "SYNCHRONOUS", frozenset())
    for name in ("tolist", "numpy", "cpu"):  # read memory, which no mode sees
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a value is read"))


OPTIONS = [
    {},
    {"bias": True, "token_weight": True},
    {"softcap": 3.0, "scale": 0.5, "label_smoothing": 0.1},
    {"z_loss": 1e-3, "class_weight": True, "bias": True},
    {"label_smoothing": 0.2, "class_weight": True, "token_weight": True, "z_loss": 1e-2},
]


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_call_waits(kind, reduction, options, shift, dtype, asynchronous):
    case = make_case(lead=(3, 5), kind=kind, reduction=reduction, shift=shift, **options)
    truth = evaluate(oracle.loss, case.to(dtype).double())
    with Quiet():
        ours = evaluate(linear_cross_entropy, case.to(dtype), backend="torch", chunk_tokens=4)
    if dtype in (torch.float64, torch.float32):
        for (name, x), y in zip(ours.named().items(), truth.named().values(), strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shift", [0, 1])
def test_nor_does_one_with_given_logits(kind, reduction, shift, asynchronous):
    case = make_case(lead=(3, 5), kind=kind, reduction=reduction, shift=shift, token_weight=True)
    logits = case.hidden @ case.weight.mT

    def given(op):
        x = logits.clone().requires_grad_()
        loss = op(x)
        return loss.detach(), *torch.autograd.grad(loss.sum(), x)

    truth = given(lambda x: oracle.loss_of_logits(x, case.target, **case.options))
    with Quiet():
        ours = given(lambda x: cross_entropy(x, case.target, **case.options, backend="torch"))
    for x, y in zip(ours, truth, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 1])
def test_nor_do_statistics(shift, asynchronous, monkeypatch):
    case = make_case(lead=(3, 5), shift=shift)
    how = {"topk": 2, "temperatures": [2.0, 0.5, 1.0], "backend": "torch"}
    with Quiet():
        quiet = case.call(token_stats, **how, chunk_tokens=4)
        given = logits_token_stats(case.hidden @ case.weight.mT, case.target, shift=shift, **how)
        logprobs = case.call(token_logprobs, backend="torch")
    monkeypatch.undo()
    usual = case.call(token_stats, **how, chunk_tokens=4)
    for name, x, y, z in zip(usual._fields, quiet, usual, given, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, msg=name)
        torch.testing.assert_close(z, y, equal_nan=True, msg=name)
    torch.testing.assert_close(logprobs, -usual.nll.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("make", [make_case, ids_case], ids=["class indices", "given ids"])
def test_nor_do_given_ids_and_the_entropy(make, shift, dtype, asynchronous):
    """A NaN in a row without any id reaches nothing; a class outside the vocabulary makes its row NaN."""
    case = make(lead=(3, 5), bias=True, shift=shift, softcap=2.0)
    upstream = upstream_like(case.call(joined(oracle.logprobs_of_hidden)))
    truth = evaluate(joined(oracle.logprobs_of_hidden), case, upstream)
    first = case.target[..., 0] if case.target.dim() == 3 else case.target
    nothing = first.view(-1).eq(-100).nonzero()[0] if make is make_case else torch.tensor([1])
    case.hidden.view(15, 5)[nothing - shift] = torch.nan
    both = joined(token_logprobs, backend="torch", chunk_tokens=4)
    with Quiet():
        ours = evaluate(both, case.to(dtype), upstream)
        on_logits = joined(logits_token_logprobs, backend="torch")(
            case.hidden @ case.weight.mT, case.target, shift=shift
        )
    assert on_logits.isfinite().all()
    if dtype == torch.float64:
        assert_same(ours, truth)
    case.target.view(15, -1)[4, 0] = 7
    assert evaluate(both, case, upstream).grads["hidden"].view(15, 5)[4 - shift].isnan().all()


@pytest.mark.parametrize("normalizer", [7, torch.tensor(7.0), torch.tensor([0])])
def test_a_normalizer_is_not_read(normalizer, asynchronous):
    case = make_case(normalizer=normalizer)
    with Quiet():
        ours = evaluate(linear_cross_entropy, case, backend="torch")
    truth = evaluate(oracle.loss, case)
    if float(normalizer) == 0:
        assert all((x == 0).all() for x in ours.named().values())
    else:
        assert_same(ours, truth)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("extra", [0, 3, 100])
def test_the_number_that_counts_leaves_out_the_others(reduction, shift, extra, asynchronous, monkeypatch):
    """A number that is too large gives the same values."""
    case = make_case(lead=(3, 7), ignored=0.6, reduction=reduction, shift=shift)
    n_counted = int((case.target[..., shift:] != -100).sum()) + extra
    with Quiet(), Gemms() as gemms:
        ours = evaluate(linear_cross_entropy, case, backend="torch", n_counted=n_counted)
    n_matmuls = 4 if reduction == "none" else 3
    assert gemms.count(min(n_counted, 21), 5, 7) == n_matmuls
    assert_same(ours, evaluate(oracle.loss, case))


@pytest.mark.cpu_only  # on a GPU the assertion that fails would end the process
def test_too_small_a_number_gives_nan(asynchronous):
    case = make_case(ignored=0.0)
    with Quiet():
        ours = evaluate(linear_cross_entropy, case, backend="torch", n_counted=8)
    assert all(x.isnan().any() for x in ours.named().values())


@pytest.mark.cpu_only
def test_on_a_cpu_too_small_a_number_is_refused():
    with pytest.raises(ValueError, match="n_counted=8, but 9 targets count: pass their number, or more"):
        make_case(ignored=0.0).call(linear_cross_entropy, n_counted=8)


@pytest.mark.cpu_only  # likewise
@pytest.mark.parametrize("bad", [7, -1, 2**40])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_class_outside_the_vocabulary_gives_nan(bad, reduction, asynchronous):
    case = make_case(reduction=reduction, ignored=0.0)
    case.target[4] = bad
    with Quiet():
        ours = evaluate(linear_cross_entropy, case, backend="torch")
        stats = case.without("reduction").call(token_stats, backend="torch")
    assert ours.grads["hidden"][4].isnan().all()
    assert ours.grads["weight"].isnan().any()
    assert stats.nll[4].isnan()
    assert int(stats.rank[4]) == -1
    if reduction == "none":
        kept = torch.arange(9) != 4
        assert ours.loss[4].isnan()
        assert ours.loss[kept].isfinite().all()
        assert ours.grads["hidden"][kept].isfinite().all()
    else:
        assert ours.loss.isnan()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_in_an_ignored_row_reaches_nothing(reduction, asynchronous):
    case = make_case(reduction=reduction, bias=True)
    truth = evaluate(oracle.loss, case)
    case.hidden[case.target == -100] = torch.nan
    with Quiet():
        ours = evaluate(linear_cross_entropy, case, backend="torch")
    assert_same(ours, truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("chunk_tokens", [5, 40])
def test_the_weights_gradient_is_summed_in_float32(chunk_tokens, adds, dtype, asynchronous, poison_empty, monkeypatch):
    """With and without matmuls that add to a float32 matrix, whose memory holds NaN at first."""

    def add(total, a, b, beta=1):
        made = a.float() @ b.float()
        total.copy_(made if beta == 0 else total + made)

    monkeypatch.setattr(weight_sum, "adds_in_float32", lambda device, dtype: adds)
    monkeypatch.setattr(weight_sum, "add_in_float32", add)
    case = make_case(lead=(40,), d=24, v=301, dtype=dtype)
    with Quiet():
        ours = evaluate(linear_cross_entropy, case, backend="torch", chunk_tokens=chunk_tokens).grads["weight"]
    theirs, truth = (evaluate(oracle.loss, x).grads["weight"] for x in (case, case.double()))
    assert_three_way(ours, theirs, truth, eps=1e-6, name="dweight")


@pytest.mark.cpu_only
def test_the_mode_can_fail():
    """The branch of the CPU reads values."""
    with Quiet(), pytest.raises(AssertionError, match="waits for its device"):
        make_case().call(linear_cross_entropy, backend="torch")


OUT_OF_RANGE = """
import torch
from cynosure.loss import linear_cross_entropy
hidden, weight = torch.ones(2, 8, device="cuda"), torch.ones(5, 8, device="cuda")
linear_cross_entropy(hidden, weight, torch.tensor([1, 5], device="cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_a_class_outside_the_vocabulary_is_an_error_at_the_next_synchronisation():
    done = subprocess.run([sys.executable, "-c", OUT_OF_RANGE], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "assert" in done.stderr


@pytest.mark.parametrize(
    ("name", "kind", "reduction"),
    [
        *product(["linear_cross_entropy", "cross_entropy"], KINDS, REDUCTIONS),
        ("token_stats", "indices", "mean"),
        *product(["divergences"], ["indices"], ["mean", "none"]),
    ],
)
def test_nor_does_an_operator_in_a_graph(name, kind, reduction, asynchronous):
    """Its implementation called directly, since a mode sees the operator as one operation."""
    case = make_case(lead=(3, 5), kind=kind, reduction=reduction, token_weight=True, shift=1, dtype=torch.float16)

    def step():
        if name == "divergences":
            how = {"reduction": reduction, "token_weight": True, "shift": 1}
            models, topk = divergences.make_models(**how).to(torch.float16), divergences.make_topk(**how)
            return divergences.evaluate(linear_kl_div, models), divergences.evaluate(linear_topk_kl_div, topk)
        if name == "token_stats":
            return token_stats(case.hidden, case.weight, torch.zeros(3, 5, dtype=torch.long), topk=2)
        op = linear_cross_entropy
        if name == "cross_entropy":
            op = lambda h, w, *args, **options: cross_entropy(h @ w.mT, *args, **options)  # noqa: E731
        return evaluate(op, case)

    recorded = Recorder()
    graph = make_fx(step)()
    with recorded:
        graph()
    implementations = {
        "cross_entropy": operators.forward, "cross_entropy_backward": operators.backward,
        "token_stats": operators.statistics, "token_logprobs": logprob_operators.forward,
        "token_logprobs_backward": logprob_operators.backward, "kl_div": divergence_operators.forward,
        "kl_div_backward": divergence_operators.backward, "topk_ids": divergence_operators.topk_ids,
    }  # fmt: skip
    assert recorded.calls
    for operator, args in recorded.calls:
        with torch.no_grad(), Quiet():
            results = implementations[operator._opname](*args)
        assert all(x.is_contiguous() for x in tree_leaves(results))  # as for fake tensors


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("direction", divergences.DIRECTIONS)
def test_divergences(direction, reduction, asynchronous):
    """The NaN of ignored rows, which are not left out, reaches nothing."""
    models = divergences.make_models(direction=direction, reduction=reduction, token_weight=True, shift=1, bias=True)
    truth = divergences.evaluate(divergence_oracle.kl_div, models)
    ignored = models.options["token_weight"].roll(-1, -1) == 0
    ignored[:, -1] = True
    for name in ("student_hidden", "teacher_hidden"):
        models.tensors[name].masked_fill_(ignored[..., None], torch.nan)
    with Quiet():
        ours = divergences.evaluate(linear_kl_div, models, chunk_tokens=4)
    assert_same(ours, truth)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_divergences_from_a_stored_teacher(tail, direction, asynchronous):
    topk = divergences.make_topk(token_weight=True, shift=1, tail=tail, direction=direction)
    truth = divergences.evaluate(divergence_oracle.topk_kl_div, topk)
    ignored = topk.options["token_weight"].roll(-1, -1)[..., None] == 0
    ignored[:, -1] = True
    for name in ("student_hidden", "logprobs"):
        topk.tensors[name].masked_fill_(ignored, torch.nan)
    topk.options["ids"].masked_fill_(ignored, -100)
    with Quiet():
        ours = divergences.evaluate(linear_topk_kl_div, topk)
    assert_same(ours, truth, tol=1e-10)
