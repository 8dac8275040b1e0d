"""Every loss against its formula in float64: values, gradients, reductions, dtypes, masks."""

import pytest
import torch

from cynosure import losses
from tests.losses.cases import ALL, REDUCED, SEQUENCES, TOKENS, TRAINED

pytestmark = pytest.mark.usefixtures("poison_empty")


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def gradients(loss, arguments, upstream=None):
    trained = [value for name, value in arguments.items() if name in TRAINED]
    return torch.autograd.grad(loss, trained, upstream, retain_graph=True)


def assert_close(ours, truth, tolerance=1e-12):
    torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)


@each(ALL)
def test_value_and_gradients_are_those_of_the_formula(case):
    arguments = case.draw()
    ours, truth = case.call(arguments), case.formula(arguments)
    assert_close(ours, truth)
    for _ in range(2):  # backward twice
        for mine, other in zip(gradients(3 * ours, arguments), gradients(3 * truth, arguments), strict=True):
            assert_close(mine, other)


@each([case for case in [*SEQUENCES, *TOKENS, *REDUCED] if case.loss is not losses.grpo_loss])
def test_without_a_reduction_each_loss_is_in_its_place(case):
    arguments = case.draw()
    ours, truth = case.call(arguments, reduction="none"), case.formula(arguments, reduction="none")
    assert_close(ours, truth)
    upstream = torch.linspace(-1, 2, truth.numel(), dtype=torch.float64).view(truth.shape)
    for mine, other in zip(gradients(ours, arguments, upstream), gradients(truth, arguments, upstream), strict=True):
        assert_close(mine, other)


@each([case for case in ALL if case.options.get("estimator") != "k1"])  # whose gradient is not that of its value
def test_gradcheck(case):
    arguments = case.draw()
    names = [name for name in arguments if name in TRAINED]

    def loss(*values):
        return case.call(arguments | dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(loss, [arguments[name] for name in names])


@each(ALL)
@pytest.mark.parametrize("spread", [1.0, pytest.param(30.0, marks=pytest.mark.exhaustive)])
def test_float32_is_as_exact_as_plain_torch(case, spread):
    narrow = case.draw(torch.float32, spread)
    exact = {name: value.detach().double() if value.is_floating_point() else value for name, value in narrow.items()}
    exact = {name: value.requires_grad_() if name in TRAINED else value for name, value in exact.items()}
    results = [case.call(narrow), case.formula(narrow), case.formula(exact)]
    assert results[0].dtype == torch.float32
    wanted = [results[2], *gradients(results[2], exact)]
    ours, plain = ([result, *gradients(result, narrow)] for result in results[:2])
    for mine, other, truth in zip(ours, plain, wanted, strict=True):
        if not truth.isfinite().all():
            continue  # the formula on probabilities overflows, even in float64
        eps = torch.finfo(torch.float32).eps * max(1.0, truth.abs().max().item())
        error = (mine - truth).abs().max().item()
        assert error <= 2 * (other - truth).abs().nan_to_num(nan=torch.inf).max().item() + 4 * eps


@each(ALL)
def test_half_precision_is_computed_in_float32(case):
    arguments = case.draw(torch.bfloat16)
    loss = case.call(arguments)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in arguments.items()}
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, case.call(wide), rtol=0, atol=0)
    assert all(grad.dtype == torch.bfloat16 for grad in gradients(loss, arguments))


@each([*TOKENS, *REDUCED])
@pytest.mark.parametrize("filler", [torch.nan, -torch.inf, torch.inf, 5.0])
def test_what_is_masked_reaches_nothing(case, filler):
    arguments = case.draw()
    mask = arguments["mask"]
    filled = {}
    for name, value in arguments.items():
        if value.is_floating_point() and value.shape == mask.shape:
            value = value.detach().masked_fill(~mask, filler)
        filled[name] = value.requires_grad_() if name in TRAINED else value
    loss = case.call(filled)
    assert_close(loss, case.call(arguments), 0.0)
    for mine, other in zip(gradients(loss, filled), gradients(case.call(arguments), arguments), strict=True):
        assert_close(mine, other, 0.0)
        assert (mine[~mask] == 0).all()


@each([*TOKENS, *REDUCED])
@pytest.mark.parametrize("shape", [(4, 5), (0, 5), (3, 0)])
def test_nothing_to_average_is_zero_with_a_graph(case, shape):
    arguments = {}
    for name in case.arguments:
        size = shape[:1] if name == "advantages" and case.options.get("advantages_of") != "tokens" else shape
        value = torch.zeros(size, dtype=torch.bool) if name == "mask" else torch.full(size, -1.0)
        arguments[name] = value.requires_grad_() if name in TRAINED else value
    loss = case.call(arguments)
    if case.loss is losses.rloo_loss:  # its unit is a text: one without tokens has a ratio of 1
        loss = loss * 0 if shape[0] else loss
    assert loss.item() == 0
    loss.backward()
    assert (arguments["logprobs"].grad == 0).all()


@each(SEQUENCES)
def test_no_sequences_cost_nothing(case):
    arguments = case.draw()
    none = {name: value[:0].detach().requires_grad_(name in TRAINED) for name, value in arguments.items()}
    loss = case.call(none)
    assert loss.item() == 0
    loss.backward()


@each([*TOKENS, *REDUCED])
def test_a_mask_of_numbers_is_a_mask(case):
    arguments = case.draw()
    for dtype in (torch.int64, torch.float32, torch.uint8):
        assert_close(case.call(arguments | {"mask": arguments["mask"].to(dtype)}), case.call(arguments), 0.0)


@each(ALL)
def test_constants_get_no_gradient(case):
    arguments = case.draw()
    constants = [value.requires_grad_() for value in arguments.values() if value.is_floating_point()]
    case.call(arguments).backward()
    wanted = [name in TRAINED for name, value in arguments.items() if value.is_floating_point()]
    assert [value.grad is not None for value in constants] == wanted


@each(ALL)
def test_under_transforms_and_without_values(case):
    arguments = case.draw()
    first = next(iter(case.arguments))
    derivative = torch.func.grad(lambda x: case.call(arguments | {first: x}))(arguments[first].detach())
    assert_close(derivative, gradients(case.call(arguments), arguments)[0])
    assert case.call({name: value.to("meta") for name, value in arguments.items()}).shape == ()


def test_the_baseline_of_kto_is_at_least_zero():
    [case, *_] = [case for case in SEQUENCES if case.loss is losses.kto_loss]
    arguments = case.draw()
    for shift in (-1.0, 1.0):
        arguments |= {
            "kl_logprobs": arguments["kl_logprobs"] - 2,
            "ref_kl_logprobs": arguments["kl_logprobs"] - 2 + shift,
        }
        assert_close(case.call(arguments), case.formula(arguments))


def test_the_sum_and_the_mean_of_a_sequence():
    logprobs = torch.tensor([[-1.0, -2.0, torch.nan], [-4.0, torch.inf, -6.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    assert losses.sequence_logprobs(logprobs, mask).tolist() == [-3, -10, 0]
    assert losses.sequence_logprobs(logprobs, mask, average=True).tolist() == [-1.5, -5, 0]
    logprobs.requires_grad_()
    losses.sequence_logprobs(logprobs, mask, average=True).sum().backward()
    assert logprobs.grad.tolist() == [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0, 0]]
