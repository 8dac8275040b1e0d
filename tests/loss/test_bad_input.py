"""What bad input gets: one error naming the argument, its value or shape, and what was expected."""

import re

import numpy as np
import pytest
import torch

from cynosure.loss import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    cross_entropy,
    explain,
    linear_cross_entropy,
    token_logprobs,
    token_stats,
)

pytestmark = pytest.mark.cpu_only

NAN, INF = float("nan"), float("inf")


def good():
    torch.manual_seed(0)
    return {"hidden": torch.randn(2, 4, 5), "weight": torch.randn(7, 5), "target": torch.randint(7, (2, 4))}


def dense(*shape, dtype=torch.float32):
    return torch.full(shape, 0.1).to(dtype)


def at(x, place, value):
    x[place] = value
    return x


def meta(*shape):
    return torch.empty(*shape, device="meta")


class Elsewhere(torch.Generator):
    """A generator of a GPU, as far as its device tells."""

    device = torch.device("cuda:0")


# name: what is changed, the error, and what its message must say
BAD = {
    "hidden of another width": ({"hidden": torch.randn(2, 4, 6)}, ValueError, ["hidden", "(2, 4, 6)", "(7, 5)"]),
    "hidden without a dimension": ({"hidden": torch.tensor(1.0)}, ValueError, ["hidden", "()"]),
    "hidden of integers": ({"hidden": torch.ones(2, 4, 5, dtype=torch.long)}, TypeError, ["hidden", "int64", "float"]),
    "hidden no tensor": ({"hidden": [[1.0]]}, TypeError, ["hidden", "list", "tensor"]),
    "weight of one dimension": ({"weight": torch.randn(5)}, ValueError, ["weight", "(5,)", "(V, D)"]),
    "weight of three": ({"weight": torch.randn(1, 7, 5)}, ValueError, ["weight", "(1, 7, 5)", "(V, D)"]),
    "weight of no rows": ({"weight": torch.randn(0, 5)}, ValueError, ["weight", "(0, 5)"]),
    "weight in another dtype": ({"weight": torch.randn(7, 5).bfloat16()}, TypeError, ["weight", "bfloat16", "float32"]),
    "weight elsewhere": ({"weight": meta(7, 5)}, ValueError, ["weight", "meta", "cpu"]),
    "bias of another length": ({"bias": torch.randn(6)}, ValueError, ["bias", "(6,)", "7"]),
    "bias in another dtype": ({"bias": torch.randn(7).double()}, TypeError, ["bias", "float64", "float32"]),
    "bias elsewhere": ({"bias": meta(7)}, ValueError, ["bias", "meta", "cpu"]),
    "target too short": ({"target": torch.zeros(2, 3).long()}, ValueError, ["target", "(2, 3)", "(2, 4)"]),
    "target too flat": ({"target": torch.zeros(8).long()}, ValueError, ["target", "(8,)", "(2, 4)"]),
    "probabilities in the shape of indices": ({"target": dense(2, 4)}, ValueError, ["target", "(2, 4)", "(2, 4, 7)"]),
    "probabilities with classes second": ({"target": dense(2, 7, 4)}, ValueError, ["target", "(2, 7, 4)", "(2, 4, 7)"]),
    "target of booleans": ({"target": torch.ones(2, 4).bool()}, TypeError, ["target", "bool"]),
    "target of complex numbers": ({"target": torch.ones(2, 4).cfloat()}, TypeError, ["target", "complex"]),
    "target no tensor": ({"target": "abc"}, TypeError, ["target", "str"]),
    "target elsewhere": ({"target": meta(2, 4).long()}, ValueError, ["target", "meta", "cpu"]),
    "log-probabilities": (
        {"target": dense(2, 4, 7).log()}, ValueError, ["target[0, 0, 0]", "-2.30259", "log-prob", "target.exp()"],
    ),
    "sparse log-probabilities": (
        {"target": (torch.zeros(2, 4, 3).long(), dense(2, 4, 3).log())}, ValueError,
        ["target probabilities[0, 0, 0]", "-2.30259", "log-prob", "target probabilities.exp()"],
    ),
    "log-probabilities with impossible classes": (
        {"target": at(dense(2, 4, 7).log(), (0, 0, 0), -INF)}, ValueError, ["target[0, 0, 0]", "-inf", "target.exp()"],
    ),
    "logits as probabilities": (
        {"target": at(dense(2, 4, 7), (1, 2, 3), -2.5)}, ValueError, ["target[1, 2, 3]", "-2.5", "target.softmax(-1)"],
    ),
    "probabilities of NaN": (
        {"target": at(dense(2, 4, 7), (0, 1, 6), NAN)}, ValueError, ["target[0, 1, 6]", "nan", "finite"],
    ),
    "probabilities of infinity": (
        {"target": at(dense(2, 4, 7, dtype=torch.bfloat16), (1, 3, 0), INF)}, ValueError, ["target[1, 3, 0]", "inf"],
    ),
    "a shifted target's bad probabilities": (
        {"target": at(dense(2, 4, 7), (1, 2, 3), -2.5), "shift": 1}, ValueError, ["target[1, 2, 3]", "-2.5"],
    ),
    "ignore_index with probabilities": (
        {"target": dense(2, 4, 7), "ignore_index": 3}, ValueError, ["ignore_index=3", "probabilities", "token_weight"],
    ),
    "ignore_index with sparse probabilities": (
        {"target": (torch.zeros(2, 4, 3).long(), dense(2, 4, 3)), "ignore_index": 0},
        ValueError, ["ignore_index=0", "probabilities", "token_weight"],
    ),
    "target of uint8 that torch would take for -100": (
        {"target": torch.full((2, 4), 156, dtype=torch.uint8)}, IndexError, ["target[0, 0]", "156", "7)"],
    ),
    "target of uint64 that wraps to -100": (
        {"target": torch.full((2, 4), -100).to(torch.uint64)}, IndexError, ["target[0, 0]", str(2**64 - 100), "7)"],
    ),
    "target beyond V": ({"target": torch.tensor([[0] * 4, [0, 0, 7, 0]])}, IndexError, ["target", "1, 2", "7)"]),
    "target below it": ({"target": torch.tensor([[0, -5, 0, 0], [0] * 4])}, IndexError, ["target", "0, 1", "-5"]),
    "a pair of one": ({"target": (torch.zeros(2, 4, 3).long(),)}, (TypeError, ValueError), ["target", "pair", "1"]),
    "a pair of unequal shapes": (
        {"target": (torch.zeros(2, 4, 3).long(), dense(2, 4, 2))}, ValueError, ["target", "(2, 4, 2)", "(2, 4, 3)"],
    ),
    "a pair without K": ({"target": (torch.zeros(2, 4).long(), dense(2, 4))}, ValueError, ["target", "(2, 4)", "K"]),
    "a pair of probabilities": ({"target": (dense(2, 4, 3), dense(2, 4, 3))}, TypeError, ["indices", "float32"]),
    "a pair of indices": (
        {"target": (torch.zeros(2, 4, 3).long(), torch.zeros(2, 4, 3).long())}, TypeError, ["probabilities", "int64"],
    ),
    "reduction misspelled": ({"reduction": "avg"}, ValueError, ["reduction", "'avg'", "'mean'", "'sum'", "'none'"]),
    "reduction None": ({"reduction": None}, ValueError, ["reduction", "None", "'none'"]),
    "label_smoothing above one": ({"label_smoothing": 1.5}, ValueError, ["label_smoothing", "1.5", "[0, 1]"]),
    "label_smoothing negative": ({"label_smoothing": -0.1}, ValueError, ["label_smoothing", "-0.1", "[0, 1]"]),
    "label_smoothing NaN": ({"label_smoothing": NAN}, ValueError, ["label_smoothing", "nan"]),
    "label_smoothing in words": ({"label_smoothing": "0.1"}, TypeError, ["label_smoothing", "'0.1'"]),
    "z_loss NaN": ({"z_loss": NAN}, ValueError, ["z_loss", "nan", "finite"]),
    "z_loss infinite": ({"z_loss": INF}, ValueError, ["z_loss", "inf", "finite"]),
    "softcap zero": ({"softcap": 0.0}, ValueError, ["softcap", "0", "positive"]),
    "softcap negative": ({"softcap": -30.0}, ValueError, ["softcap", "-30", "positive"]),
    "softcap NaN": ({"softcap": NAN}, ValueError, ["softcap", "nan"]),
    "softcap infinite": ({"softcap": INF}, ValueError, ["softcap", "inf"]),
    "scale NaN": ({"scale": NAN}, ValueError, ["scale", "nan"]),
    "scale infinite": ({"scale": INF}, ValueError, ["scale", "inf"]),
    "scale a tensor that learns": (
        {"scale": torch.ones((), requires_grad=True)}, (TypeError, ValueError), ["scale", "number"],
    ),
    "class_weight of another length": ({"class_weight": torch.ones(6)}, ValueError, ["class_weight", "(6,)", "7"]),
    "class_weight that requires grad": (
        {"class_weight": torch.ones(7, requires_grad=True)}, ValueError, ["class_weight", "requires_grad"],
    ),
    "class_weight elsewhere": ({"class_weight": meta(7)}, ValueError, ["class_weight", "meta", "cpu"]),
    "class_weight no tensor": ({"class_weight": [1.0] * 7}, TypeError, ["class_weight", "list"]),
    "token_weight of another shape": ({"token_weight": torch.ones(4)}, ValueError, ["token_weight", "(4,)", "(2, 4)"]),
    "token_weight elsewhere": ({"token_weight": meta(2, 4)}, ValueError, ["token_weight", "meta", "cpu"]),
    "token_weight no tensor": ({"token_weight": 0.5}, TypeError, ["token_weight", "float"]),
    "normalizer with sum": ({"normalizer": 3.0, "reduction": "sum"}, ValueError, ["normalizer", "mean", "'sum'"]),
    "normalizer with none": ({"normalizer": 3.0, "reduction": "none"}, ValueError, ["normalizer", "mean", "'none'"]),
    "normalizer NaN": ({"normalizer": NAN}, ValueError, ["normalizer", "nan"]),
    "normalizer negative": ({"normalizer": -2.0}, ValueError, ["normalizer", "-2"]),
    "normalizer of a NaN tensor": ({"normalizer": torch.tensor(NAN)}, ValueError, ["normalizer", "nan"]),
    "normalizer with dimensions": ({"normalizer": torch.ones(2)}, ValueError, ["normalizer", "(2,)", "one element"]),
    "normalizer of a boolean": ({"normalizer": True}, TypeError, ["normalizer", "number", "True"]),
    "normalizer of a true tensor": ({"normalizer": torch.ones(1).bool()}, TypeError, ["normalizer", "tensor([True])"]),
    "normalizer of a boolean of NumPy": ({"normalizer": np.bool_(True)}, TypeError, ["normalizer", "True"]),
    "normalizer complex": ({"normalizer": 1j}, TypeError, ["normalizer", "number", "1j"]),
    "normalizer of no element": ({"normalizer": torch.ones(0)}, ValueError, ["normalizer", "(0,)"]),
    "normalizer beyond a float": ({"normalizer": 10**400}, ValueError, ["normalizer", "finite"]),
    "scale of NaN from NumPy": ({"scale": np.float32("nan")}, ValueError, ["scale", "nan", "finite"]),
    "shift of a boolean": ({"shift": np.bool_(True)}, TypeError, ["shift", "integer", "True"]),
    "shift of two": ({"shift": torch.tensor([1, 2])}, ValueError, ["shift", "(2,)"]),
    "normalizer in words": ({"normalizer": "8"}, TypeError, ["normalizer", "'8'"]),
    "shift negative": ({"shift": -1}, ValueError, ["shift", "-1"]),
    "shift beyond the sequence": ({"shift": 5}, ValueError, ["shift", "5", "4"]),
    "shift a fraction": ({"shift": 0.5}, TypeError, ["shift", "0.5"]),
    "shift of a single row": (
        {"shift": 1, "hidden": torch.randn(5), "target": torch.tensor(1)}, ValueError, ["shift", "1", "sequence"],
    ),
    "ignore_index a fraction": ({"ignore_index": 0.5}, TypeError, ["ignore_index", "0.5"]),
    "chunk_tokens zero": ({"chunk_tokens": 0}, ValueError, ["chunk_tokens", "0", "1"]),
    "chunk_tokens negative": ({"chunk_tokens": -4}, ValueError, ["chunk_tokens", "-4", "1"]),
    "chunk_tokens a fraction": ({"chunk_tokens": 2.5}, TypeError, ["chunk_tokens", "2.5"]),
    "grad_tolerance negative": ({"grad_tolerance": -0.1}, ValueError, ["grad_tolerance", "[0, 1)", "'dtype'", "-0.1"]),
    "grad_tolerance of one": ({"grad_tolerance": 1}, ValueError, ["grad_tolerance", "below 1"]),
    "grad_tolerance above one": ({"grad_tolerance": 1.5}, ValueError, ["grad_tolerance", "[0, 1)", "1.5"]),
    "grad_tolerance NaN": ({"grad_tolerance": NAN}, ValueError, ["grad_tolerance", "[0, 1)", "nan"]),
    "grad_tolerance in other words": ({"grad_tolerance": "foo"}, ValueError, ["grad_tolerance", "'dtype'", "'foo'"]),
    "grad_tolerance None": ({"grad_tolerance": None}, TypeError, ["grad_tolerance", "number", "None"]),
    "grad_tolerance a boolean": ({"grad_tolerance": True}, TypeError, ["grad_tolerance", "number", "True"]),
    "grad_tolerance a tensor that learns": (
        {"grad_tolerance": torch.full((), 0.1, requires_grad=True)}, TypeError, ["grad_tolerance", "requires grad"],
    ),
    "generator a number": ({"generator": 7, "grad_tolerance": 0.1}, TypeError, ["generator", "torch.Generator", "int"]),
    "generator without a tolerance": ({"generator": 7}, TypeError, ["generator", "torch.Generator", "int"]),
    "generator elsewhere": (
        {"generator": Elsewhere()}, ValueError, ["generator", "cuda:0", "torch.Generator(device='cpu')"],
    ),
    "an unknown backend": ({"backend": "cuda"}, ValueError, ["backend", "'cuda'", "'torch'"]),
}  # fmt: skip


def fails(call, error, fragments):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    missing = [f for f in fragments if not re.search(re.escape(f), message)]
    assert not missing, f"{missing} not in: {message}"
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("name", BAD)
def test_linear_cross_entropy(name):
    change, error, fragments = BAD[name]
    fails(lambda: linear_cross_entropy(**{**good(), **change}), error, fragments)


@pytest.mark.parametrize("name", BAD)
def test_modules_say_the_same(name):
    change, error, fragments = BAD[name]
    call = {**good(), **change}
    given = ("hidden", "weight", "target", "bias", "token_weight", "normalizer", "generator")
    options = {k: call.pop(k) for k in list(call) if k not in given}
    fails(lambda: LinearCrossEntropyLoss(**options)(**call), error, fragments)


OF_HEADS = {"hidden", "weight", "bias", "chunk_tokens", "grad_tolerance", "generator"}
OF_LOGITS = [n for n, (change, *_) in BAD.items() if not OF_HEADS & set(change)]
SAMPLED = [n for n, (change, *_) in BAD.items() if {"grad_tolerance", "generator"} & set(change)]


@pytest.mark.parametrize("name", OF_LOGITS)
def test_cross_entropy(name):
    change, error, fragments = BAD[name]
    call = {"logits": torch.randn(2, 4, 7), "target": good()["target"], **change}
    fails(lambda: cross_entropy(**call), error, fragments)


@pytest.mark.parametrize(
    ("logits", "error", "fragments"),
    [
        (torch.tensor(1.0), ValueError, ["logits", "()"]),
        (torch.randn(3, 0), ValueError, ["logits", "(3, 0)"]),
        (torch.ones(3, 7).long(), TypeError, ["logits", "int64"]),
        ("abc", TypeError, ["logits", "str"]),
    ],
)
def test_logits(logits, error, fragments):
    fails(lambda: cross_entropy(logits, torch.zeros(3).long()), error, fragments)


@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 7, 5, 2), (1, 2, 4)])
def test_logits_with_their_classes_second(shape):
    """torch's layout; a target (N, C) of logits (N, C, C) does not tell the two apart."""
    target = torch.zeros(shape[0], *shape[2:]).long()
    fragments = [str(shape), "dimension 1", "logits.movedim(1, -1)"]
    fails(lambda: cross_entropy(torch.randn(shape), target, class_weight=torch.ones(shape[1])), ValueError, fragments)
    moved = torch.randn(shape).movedim(1, -1)
    assert cross_entropy(moved, target).isfinite()


OF_TOKENS = (
    "hidden",
    "weight",
    "bias",
    "target",
    "shift",
    "scale",
    "softcap",
    "ignore_index",
    "backend",
    "chunk_tokens",
)
OF_INDICES = [
    name
    for name, (change, *_) in BAD.items()
    if set(change) <= set(OF_TOKENS) and not ("pair" in name or "probabilities" in name or "requires grad" in name)
]


@pytest.mark.parametrize("function", [token_logprobs, token_stats])
@pytest.mark.parametrize("target", [dense(2, 4, 7), (torch.zeros(2, 4, 3).long(), dense(2, 4, 3))])
def test_a_distribution_has_no_one_token(target, function):
    fails(lambda: function(**{**good(), "target": target}), TypeError, ["target", "class indices"])


@pytest.mark.parametrize("function", [token_logprobs, token_stats])
@pytest.mark.parametrize("name", OF_INDICES)
def test_per_token_operations(name, function):
    change, error, fragments = BAD[name]
    fails(lambda: function(**{**good(), **change}), error, fragments)


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_logprobs(name):
    change, error, fragments = BAD[name]
    fails(lambda: token_logprobs(**{**good(), **change}), error, fragments)


@pytest.mark.parametrize(
    ("change", "error", "fragments"),
    [
        ({"topk": 8}, ValueError, ["topk", "8", "7"]),
        ({"topk": -1}, ValueError, ["topk", "-1"]),
        ({"topk": True}, TypeError, ["topk", "True"]),
        ({"temperatures": [True]}, TypeError, ["temperatures", "True"]),
        ({"topk": 1.5}, (TypeError, ValueError), ["topk", "1.5"]),
        ({"temperatures": [1.0, 0.0]}, ValueError, ["temperatures", "0"]),
        ({"temperatures": [-2.0]}, ValueError, ["temperatures", "-2"]),
        ({"temperatures": [NAN]}, ValueError, ["temperatures", "nan"]),
        ({"temperatures": [INF]}, ValueError, ["temperatures", "inf"]),
    ],
)
def test_token_stats(change, error, fragments):
    fails(lambda: token_stats(**good(), **change), error, fragments)


@pytest.mark.parametrize(
    ("change", "error", "fragments"),
    [
        ({"backend": "cuda"}, ValueError, ["'cuda'", "'torch'"]),
        ({"chunk_tokens": 0}, ValueError, ["chunk_tokens", "0"]),
        ({"reduction": "avg"}, ValueError, ["reduction", "'avg'"]),
    ],
)
def test_explain(change, error, fragments):
    fails(lambda: explain(10, 5, 7, **change), error, fragments)


@pytest.mark.parametrize("sizes", [(-1, 5, 7), (10, -5, 7), (10, 5, 0)])
def test_explain_sizes(sizes):
    with pytest.raises(ValueError, match=str(min(sizes))):
        explain(*sizes)


@pytest.mark.parametrize("module", [LinearCrossEntropyLoss, CrossEntropyLoss])
def test_a_module_refuses_what_it_does_not_know_when_it_is_made(module):
    for options in ({"reduction": "avg"}, {"label_smothing": 0.1}, {"softcap": -1.0}, {"grad_tolerance": 2}):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            module(**options)


def test_a_zero_normalizer_is_a_zero_loss():
    """A micro-batch of a batch in which nothing counts: 0.0 as with the default, never a division by zero."""
    assert linear_cross_entropy(**good(), normalizer=0) == 0
