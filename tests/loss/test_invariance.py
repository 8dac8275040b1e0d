"""The same loss and gradients however the work is cut: into chunks, by padding, over micro-batches, over ranks."""

import pytest
import torch

from cynosure.loss import linear_cross_entropy
from tests.loss import oracle
from tests.loss.cases import KINDS, REDUCTIONS, Case, Result, assert_same, evaluate, make_case

F64 = torch.float64
EVERYTHING = {"bias": True, "class_weight": True, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "scale": 0.7}
ONE = torch.tensor(1.0)


def plus(*parts):
    """Losses and gradients summed, as accumulation and all-reduce do. Rows of hidden are laid end to end instead."""
    result = {name: sum(p.named()[name] for p in parts) for name in parts[0].named() if name != "dhidden"}
    return {**result, "dhidden": torch.cat([p.grads["hidden"].flatten(0, -2) for p in parts])}


def assert_whole(parts, whole):
    summed, expected = plus(*parts), plus(whole)
    for name, x in summed.items():
        torch.testing.assert_close(x, expected[name], rtol=1e-12, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 13, 14, 10_000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_chunks(reduction, kind, chunk_tokens, backend):
    case = make_case(lead=(14,), kind=kind, reduction=reduction, token_weight=True, shift=1, **EVERYTHING)
    ours = evaluate(linear_cross_entropy, case, backend=backend, chunk_tokens=chunk_tokens)
    assert_same(ours, evaluate(linear_cross_entropy, case, backend=backend))
    assert_same(ours, evaluate(oracle.loss, case))


def padded(case, side, n=4):
    """Padding that would be seen: NaN hidden states, ignored targets."""
    b, t, d = case.hidden.shape
    hidden = torch.full((b, t + n, d), float("nan"), dtype=F64)
    target = torch.full((b, t + n), -100)
    place = slice(n, None) if side == "left" else slice(0, t)
    hidden[:, place], target[:, place] = case.hidden, case.target
    return Case(hidden, case.weight, target, case.options), place


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shift", [0, 1])
def test_padding(side, shift, backend):
    case = make_case(lead=(3, 6), shift=shift, **EVERYTHING)
    case.target[:, :shift] = -100  # no hidden state predicts them; behind left padding one would
    whole = evaluate(linear_cross_entropy, case, ONE, backend=backend)
    bigger, place = padded(case, side)
    ours = evaluate(linear_cross_entropy, bigger, ONE, backend=backend, chunk_tokens=5)
    for name, x in ours.named().items():
        y = whole.named()[name]
        torch.testing.assert_close(x[:, place] if name == "dhidden" else x, y, rtol=1e-12, atol=1e-13)


def split(case, sizes, **options):
    """Consecutive sequences of a batch."""
    parts = zip(case.hidden.split(sizes), case.target.split(sizes), strict=True)
    return [Case(h, case.weight, t, {**case.options, **options}) for h, t in parts]


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("sizes", [[3, 3], [1, 4, 1], [1] * 6])
def test_micro_batches_with_one_normalizer(sizes, as_tensor, backend):
    case = make_case(lead=(6, 5), shift=1, **EVERYTHING)
    counted = case.target[:, 1:][case.target[:, 1:] != -100]
    normalizer = case.options["class_weight"][counted].sum()
    normalizer = normalizer if as_tensor else normalizer.item()
    micro = split(case, sizes, normalizer=normalizer)
    parts = [evaluate(linear_cross_entropy, part, ONE, backend=backend) for part in micro]
    assert_whole(parts, evaluate(linear_cross_entropy, case, ONE, backend=backend))


def test_micro_batches_of_which_one_is_all_padding(backend):
    case = make_case(lead=(4, 5))
    case.target[1] = -100
    normalizer = (case.target != -100).sum()  # an integer tensor, as a collator counts
    micro = split(case, [1] * 4, normalizer=normalizer)
    parts = [evaluate(linear_cross_entropy, part, ONE, backend=backend) for part in micro]
    assert_whole(parts, evaluate(linear_cross_entropy, case, ONE, backend=backend))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_average_their_gradients(world_size, backend):
    """Data parallelism means over ranks: each divides by the global count over the world size."""
    case = make_case(lead=(6, 5), token_weight=True, **EVERYTHING)
    whole = evaluate(linear_cross_entropy, case.freeze("token_weight"), ONE, backend=backend)
    tau = torch.where(case.target == -100, 0.0, case.options["token_weight"])
    k = case.options["class_weight"][case.target.clamp(min=0)]
    parts = []
    for rank in range(world_size):
        mine = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
        options = {"token_weight": case.options["token_weight"][mine], "normalizer": (tau * k).sum() / world_size}
        part = Case(case.hidden[mine], case.weight, case.target[mine], {**case.options, **options}, ("token_weight",))
        parts.append(evaluate(linear_cross_entropy, part, torch.tensor(1 / world_size, dtype=F64), backend=backend))
    mean = torch.stack([p.loss for p in parts]).mean()
    torch.testing.assert_close(mean, whole.loss, rtol=1e-12, atol=1e-13)
    summed, expected = plus(*parts), plus(whole)
    for name in ("dweight", "dbias", "dhidden"):
        torch.testing.assert_close(summed[name], expected[name], rtol=1e-12, atol=1e-13)


def test_order_of_tokens(backend):
    case = make_case(lead=(14,), reduction="none", **EVERYTHING)
    order = torch.randperm(14)
    mixed = Case(case.hidden[order], case.weight, case.target[order], case.options)
    one = torch.ones(14)
    ours = evaluate(linear_cross_entropy, mixed, one, backend=backend, chunk_tokens=4)
    truth = evaluate(linear_cross_entropy, case, one, backend=backend, chunk_tokens=4)
    assert_same(ours, Result(truth.loss[order], {**truth.grads, "hidden": truth.grads["hidden"][order]}))


@pytest.mark.parametrize("shift", [1, 2])
def test_shift_is_slicing(shift, backend):
    case = make_case(lead=(2, 3, 7), token_weight=True, reduction="none", **EVERYTHING)
    ours = evaluate(linear_cross_entropy, case.using(shift=shift), torch.ones(2, 3, 7 - shift), backend=backend)
    tau = case.options["token_weight"][..., shift:]
    cut = Case(
        case.hidden[..., :-shift, :], case.weight, case.target[..., shift:], {**case.options, "token_weight": tau}
    )
    truth = evaluate(linear_cross_entropy, cut, torch.ones(2, 3, 7 - shift), backend=backend)
    assert ours.loss.shape == (2, 3, 7 - shift)
    torch.testing.assert_close(ours.loss, truth.loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours.grads["hidden"][..., :-shift, :], truth.grads["hidden"], rtol=1e-12, atol=1e-13)
    assert (ours.grads["hidden"][..., -shift:, :] == 0).all()
    torch.testing.assert_close(ours.grads["weight"], truth.grads["weight"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        ours.grads["token_weight"][..., shift:], truth.grads["token_weight"], rtol=1e-12, atol=1e-13
    )
    assert (ours.grads["token_weight"][..., :shift] == 0).all()


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "reversed storage": lambda x: x.flip(0).clone().flip(0),
    "offset": lambda x: torch.cat([torch.full_like(x[:1], float("nan")), x])[1:],
    "rows of a wider buffer": lambda x: torch.cat([x, torch.full_like(x, float("nan"))], -1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0, 1])
def test_layout(layout, kind, shift, backend):
    """Views are leaves of their own here, so that each keeps its strides."""
    lay = LAYOUTS[layout]
    case = make_case(lead=(3, 4), kind=kind, token_weight=True, shift=shift, **EVERYTHING)
    leaves = {name: x.detach() for name, x in case.leaves().items()}
    for name in ("hidden", "weight", "token_weight"):
        leaves[name] = lay(leaves[name])
        assert torch.equal(leaves[name], case.leaves()[name])
    target = tuple(lay(x.double()).to(x.dtype) for x in case.target) if kind == "sparse" else case.target
    target = lay(target) if kind == "dense" else target
    odd = Case(leaves["hidden"], leaves["weight"], target, {**case.options, "token_weight": leaves["token_weight"]})
    inputs = [x.requires_grad_() for x in odd.leaves().values()]
    loss = odd.call(linear_cross_entropy, backend=backend, chunk_tokens=5)
    grads = torch.autograd.grad(loss, inputs, torch.ones_like(loss) * 1.7)
    truth = evaluate(oracle.loss, case, torch.tensor(1.7, dtype=F64))
    torch.testing.assert_close(loss.detach(), truth.loss, rtol=1e-12, atol=1e-13)
    for name, grad in zip(odd.leaves(), grads, strict=True):
        torch.testing.assert_close(grad, truth.grads[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shift", [0, 1])
def test_expanded_inputs(shift, backend):
    """One hidden state, one weight row, one distribution seen many times: gradients go back to the one."""
    torch.manual_seed(0)
    row, head = torch.randn(1, 1, 5, dtype=F64), torch.randn(1, 5, dtype=F64)
    bias, dense = torch.randn(7, dtype=F64), torch.randn(7, dtype=F64).softmax(-1)
    tau = torch.full((1, 1), 0.5, dtype=F64)

    def run(op, **how):
        leaves = [x.clone().requires_grad_() for x in (row, head, bias, tau)]
        h, w, b, t = leaves
        loss = op(
            h.expand(2, 4, 5), w.expand(7, 5), dense.expand(2, 4, 7), bias=b, token_weight=t.expand(2, 4),
            reduction="sum", shift=shift, **how,
        )  # fmt: skip
        return loss, *torch.autograd.grad(loss, leaves)

    for x, y in zip(run(linear_cross_entropy, backend=backend, chunk_tokens=3), run(oracle.loss), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
