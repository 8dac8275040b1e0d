"""A patched model in bfloat16 whose head computes in float32: the logits of its losses are never rounded."""

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from trl.trainer.utils import add_fused_lm_head

from cynosure.patching import model as patched_model
from cynosure.patching import patch, unpatch
from tests.loss.probes import Gemms, assert_three_way, rms_error
from tests.patching.test_patch import batch, family

HALF = torch.bfloat16
CAPS = {"Gemma 2": 3.0}
SCALES = {"Cohere": 0.25, "Granite": 1 / 3.0}


def half(name: str) -> Any:
    return family(name).to(HALF)


def states(model: Any) -> Tensor:
    """The hidden states (B, T - 1, D) that predict labels."""
    given = {name: x for name, x in batch().items() if name != "labels"}
    hidden: Tensor = model.base_model(**given).last_hidden_state
    return hidden[:, :-1]


def logits_of(model: Any, name: str, dtype: torch.dtype, weight: Tensor) -> Tensor:
    """The logits (B, T - 1, V) that predict labels, by their formula, of the model's own hidden states."""
    head, cap = model.get_output_embeddings(), CAPS.get(name)
    bias = None if head.bias is None else head.bias.to(dtype)
    z = F.linear(states(model).to(dtype), weight.to(dtype), bias) * SCALES.get(name, 1.0)
    return z if cap is None else cap * torch.tanh(z / cap)


def results(model: Any, loss: Tensor) -> tuple[Tensor, Tensor]:
    weight = model.get_output_embeddings().weight
    return loss.detach(), torch.autograd.grad(loss, weight)[0]


@pytest.mark.parametrize("name", ["Llama", "Llama, tied", "Gemma 2", "Cohere", "Phi, biased"])
def test_the_logits_are_not_rounded(name: str) -> None:
    model, target = half(name), batch()["labels"][:, 1:].flatten()
    weight = model.get_output_embeddings().weight

    def by_formula(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return results(model, F.cross_entropy(logits_of(model, name, dtype, weight).flatten(0, 1), target))

    truth, plain = by_formula(torch.float64), by_formula(torch.float32)
    with patch(model, head_dtype=torch.float32) as patched:
        assert patched.head_dtype == torch.float32
        ours = results(model, model(**batch()).loss)
        assert patched.made_by == []
        with torch.no_grad():  # from statistics, as in evaluation
            evaluated = model(**batch()).loss
        output = model(**batch())
        assert output.logits.dtype == torch.float32
        torch.testing.assert_close(output.logits[:, :-1], logits_of(model, name, torch.float32, weight))
    assert ours[1].dtype == HALF
    torch.testing.assert_close(evaluated, ours[0])
    for x, own, exact in zip(ours, plain, truth, strict=True):
        eps = torch.finfo(torch.float32).eps * (1 + float(exact.abs().max()))
        assert_three_way(x, own, exact, eps=eps, name=name, error=rms_error)
    rounded = results(model, model(**batch()).loss)[0]  # what the model itself computes
    assert abs(rounded - truth[0]) > 20 * abs(ours[0] - truth[0])


@pytest.mark.parametrize("kept_in_float32", [False, True], ids=["patch", "TRL"])
def test_values_of_tokens_under_autocast(kept_in_float32: bool) -> None:
    """Of a model in float32, whose hidden states and head autocast rounds; with TRL's own option too."""
    model, labels = family("Llama"), batch()["labels"][:, 1:]
    add_fused_lm_head(model, cast_lm_head_to_fp32=kept_in_float32, outputs=("log_probs", "entropy"))
    weight = model.lm_head.weight
    with torch.autocast("cpu", HALF):
        hidden = states(model)
        with patch(model, head_dtype=None if kept_in_float32 else torch.float32):
            with Gemms() as gemms:
                output = model(**batch(), fused_lm_head=True)
            gradient = torch.autograd.grad(output.log_probs.sum() + output.entropy.sum(), weight)[0]
            loss = model(**batch()).loss.detach()
    assert torch.float32 in gemms.dtypes
    log_p = F.linear(hidden.float(), weight).log_softmax(-1)
    counted = labels != -100
    log_probs = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].where(counted, 0.0)
    entropy = -(log_p.exp() * log_p).sum(-1).where(counted, 0.0)
    torch.testing.assert_close((output.log_probs, output.entropy), (log_probs, entropy), rtol=1e-5, atol=1e-5)
    truth = torch.autograd.grad(log_probs.sum() + entropy.sum(), weight)[0]
    torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-4)
    exact = float((loss + log_probs.detach().sum() / counted.sum()).abs()) < 1e-5
    assert exact == (not kept_in_float32)  # TRL's option is about the values of tokens only


def test_it_stays_and_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In copies too, and when the model is patched again; a dtype that fails to verify leaves the one before."""
    model = half("Llama")
    own = model(**batch()).loss
    with patch(model, head_dtype=torch.float32) as patched:
        exact = model(**batch()).loss
        with patch(model):
            assert patched.head_dtype == torch.float32
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(**batch()).loss, exact)
        with patch(model, head_dtype=HALF):
            torch.testing.assert_close(model(**batch()).loss, own, rtol=1e-3, atol=0)
        with monkeypatch.context() as context:
            context.setattr(patched_model, "verify", failing)
            with pytest.raises(ValueError, match="cannot be patched: for a reason"):
                patch(model, head_dtype=torch.float64)
        assert patched.head_dtype == HALF
        ids = batch()["input_ids"]
        assert model(ids).logits.dtype == HALF  # without labels nothing changes
    unpatch(model)
    assert torch.equal(model(**batch()).loss, own)
    with patch(model) as again:
        assert again.head_dtype is None


def failing(_: Any) -> None:
    raise ValueError("Llama cannot be patched: for a reason")


@pytest.mark.parametrize("wrong", [torch.int64, torch.float8_e4m3fn, "float32"])
@pytest.mark.parametrize("was_patched", [False, True])
def test_a_bad_dtype_is_refused_at_once(wrong: Any, was_patched: bool) -> None:
    model = family("Llama")
    with patch(model) if was_patched else nullcontext():
        before = dict(vars(model))
        with pytest.raises(TypeError, match=r"head_dtype must be None or torch\.float16"):
            patch(model, head_dtype=wrong)
        assert vars(model) == before
