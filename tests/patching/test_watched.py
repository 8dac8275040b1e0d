"""Whoever waits for the gradient of a patched model's logits has it, as of the model that is not patched."""

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cynosure.patching import patch
from cynosure.patching.labelled import Objective
from cynosure.patching.pending import PendingLogits
from tests.patching.test_patch import FAMILIES, assert_same, batch, family

Use = Callable[[Any], Any]


def retained(output: Any) -> Any:
    output.logits.retain_grad()
    output.loss.backward()
    return output.logits.grad


def hooked(output: Any) -> Any:
    seen: list[Tensor] = []
    output.logits.register_hook(lambda dlogits: seen.append(dlogits.clone()))
    (3 * output.loss).backward()
    return seen[0]


def changed(output: Any) -> Any:
    output.logits.register_hook(lambda dlogits: dlogits.clamp(-1e-3, 1e-3))
    output.loss.backward()


def twice(output: Any) -> Any:
    output.logits.retain_grad()
    output.loss.backward(retain_graph=True)
    output.loss.backward()
    return output.logits.grad


def two_losses(output: Any) -> Any:
    output.logits.retain_grad()
    (output.loss + output.logits.float().logsumexp(-1).square().mean()).backward()
    return output.logits.grad


def scaled_in_place(output: Any) -> Any:
    output.logits.retain_grad()
    output.loss *= 0.25
    output.loss.backward()
    return output.logits.grad


def asked(output: Any) -> Any:
    return torch.autograd.grad(output.loss, output.logits)[0]


def removed(output: Any) -> Any:
    output.logits.register_hook(lambda dlogits: 0 * dlogits).remove()
    output.loss.backward()


def run(model: Any, use: Use) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the gradient of a patched model's logits was requested")
        warnings.filterwarnings("ignore", ".* is patched, but")
        found = use(model(**batch()))
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.each_value
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("use", [retained, hooked, changed, twice, two_losses, scaled_in_place, asked, removed])
def test_a_gradient_that_is_waited_for_comes(name: str, use: Use) -> None:
    model = family(name)
    own, own_gradients = run(model, use)
    with patch(model):
        assert isinstance(model(**batch()).logits, PendingLogits)
        found, gradients = run(model, use)
    assert (found is None) == (own is None)
    if own is not None:
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-7)
    assert_same((torch.zeros(()), own_gradients), (torch.zeros(()), gradients))


def test_it_is_said_once_and_only_there() -> None:
    model = family("Llama")
    with patch(model):
        output = model(**batch())
        assert output.logits.requires_grad
        assert not output.logits.is_leaf
        with pytest.warns(UserWarning, match="its backward materializes the full logits") as said:
            output.logits.retain_grad()
        assert output.logits.grad is None
        assert len(said) == 1
        output.loss.backward()
        model(**batch()).loss.backward()  # nobody waits: nothing is said, which would be an error


def test_a_learned_factor_after_the_logits_has_its_gradient() -> None:
    """What stands between the logits that are watched and the loss."""

    class Tempered(type(family("Llama"))):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> Any:
            labels = inputs.pop("labels")
            output = super().forward(**inputs)
            tempered = output.logits * self.factor
            output.loss = self.loss_function(tempered, labels, vocab_size=self.config.vocab_size)
            return output

    model = family("Llama")
    model.__class__ = Tempered
    model.factor = nn.Parameter(torch.tensor(1.5))
    own, own_gradients = run(model, retained)
    with patch(model):
        found, gradients = run(model, retained)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-7)
    assert_same((torch.zeros(()), own_gradients), (torch.zeros(()), gradients))


def test_a_second_gradient_is_refused() -> None:
    model = family("Llama")
    with patch(model):
        output = model(**batch())
        with pytest.warns(UserWarning, match="was requested"):
            output.logits.retain_grad()
        with pytest.raises(RuntimeError, match="has no second derivative: leave out create_graph"):
            output.loss.backward(create_graph=True)


def test_within_autocast() -> None:
    model = family("Llama")

    def use(output: Any) -> Any:
        return retained(output)

    with torch.autocast("cpu", torch.bfloat16):
        own_output = model(**batch())
    own = use(own_output)
    with patch(model):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**batch())
            with pytest.warns(UserWarning, match="was requested"):
                output.logits.retain_grad()
        output.loss.backward()
    torch.testing.assert_close(output.logits.grad, own, rtol=0.02, atol=1e-4)


def test_logits_go_when_nobody_holds_them() -> None:
    model = family("Llama")
    with patch(model):
        output = model(**batch())
        logits, loss = weakref.ref(output.logits), output.loss
        gc.disable()
        try:
            del output
            assert logits() is None
        finally:
            gc.enable()
        loss.backward()


def test_what_is_minimised_beside_the_cross_entropy_stays() -> None:
    model = family("Llama")
    with patch(model) as patched:
        patched.objective = Objective(z_loss=1e-2, label_smoothing=0.1)
        _, fused = run(model, lambda output: output.loss.backward())
        _, through_logits = run(model, retained)
    assert_same((torch.zeros(()), fused), (torch.zeros(()), through_logits))


def begun(dlogits: Tensor) -> Tensor:
    """As DeepSpeed's, which divides by the number of accumulated steps."""
    return dlogits / 4


begun.__module__ = "deepspeed.runtime.utils"


def own_loss(logits: Any) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch()["labels"][:, 1:].flatten())


def mean_of_lse(logits: Any) -> Tensor:
    return logits.logsumexp(-1).mean()


@pytest.mark.parametrize("loss", [own_loss, mean_of_lse])
@pytest.mark.parametrize("is_retained", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Phi, biased"])
def test_hooks_of_deepspeed_on_all_outputs(name: str, is_retained: bool, loss: Callable[[Any], Tensor]) -> None:
    def use(output: Any) -> Any:
        output.logits.register_hook(begun)
        if is_retained:
            output.logits.retain_grad()
        loss(output.logits).backward()
        return output.logits.grad if is_retained else None

    model = family(name)
    own, own_gradients = run(model, use)
    with patch(model) as patched:
        ours, gradients = run(model, use)
        assert patched.made_by == [] or is_retained or loss is mean_of_lse
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-7)
    assert_same((torch.zeros(()), own_gradients), (torch.zeros(()), gradients))
