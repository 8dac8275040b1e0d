"""The nn.Module faces are the functions with their options remembered."""

import copy

import pytest
import torch
from torch import nn

from cynosure.loss import CrossEntropyLoss, LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy
from tests.loss.cases import REDUCTIONS, make_case

OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "scale": 0.7, "ignore_index": -1, "shift": 1}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("with_class_weight", [False, True])
def test_the_same_as_the_function(with_class_weight, reduction, backend):
    case = make_case(
        lead=(2, 5), bias=True, token_weight=True, class_weight=with_class_weight, reduction=reduction, **OPTIONS
    )
    options = {**case.options, "backend": backend}
    given = {name: options.pop(name) for name in ("bias", "token_weight")}
    if reduction == "mean":
        given["normalizer"] = 4.5
    module = LinearCrossEntropyLoss(**options, chunk_tokens=3)
    ours = module(case.hidden, case.weight, case.target, **given)
    assert torch.equal(
        ours, linear_cross_entropy(case.hidden, case.weight, case.target, **options, **given, chunk_tokens=3)
    )
    logits = nn.functional.linear(case.hidden, case.weight, given.pop("bias"))
    ours = CrossEntropyLoss(**options)(logits, case.target, **given)
    assert torch.equal(ours, cross_entropy(logits, case.target, **options, **given))


@pytest.mark.parametrize("module", [LinearCrossEntropyLoss, CrossEntropyLoss])
def test_it_owns_no_parameter(module):
    assert list(module().parameters()) == []
    assert module().state_dict() == {}


def test_class_weights_move_with_the_module_and_are_kept():
    module = LinearCrossEntropyLoss(class_weight=torch.ones(7))
    assert list(module.parameters()) == []
    moved = copy.deepcopy(module).to("meta")
    assert [buffer.device.type for buffer in moved.buffers()] == ["meta"]


def test_it_trains_inside_a_model(backend):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 5)
            self.criterion = LinearCrossEntropyLoss(shift=1, backend=backend)

        def forward(self, ids):
            return self.criterion(self.embed(ids), self.embed.weight, ids)  # a tied head

    model, ids = Model().double(), torch.randint(7, (2, 6))
    model(ids).backward()
    plain = model.embed.weight.detach().clone().requires_grad_()
    logits = nn.functional.embedding(ids, plain) @ plain.T
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    torch.testing.assert_close(model.embed.weight.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [LinearCrossEntropyLoss, CrossEntropyLoss])
def test_its_print_shows_what_was_asked_for(module):
    assert "label_smoothing=0.1" in repr(module(label_smoothing=0.1, shift=1))
