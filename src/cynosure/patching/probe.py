"""Run a few tokens through a model to verify a patch; restore the model's state afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cynosure.loss import is_plain, parts_of
from cynosure.patching.heads import head_layers, is_fsdp, release
from cynosure.patching.inputs import CACHE_OPTIONS, Inputs, input_device, probe_inputs
from cynosure.system.upstream import parametrized_values, tree_map_only

MOST_KEPT = 2**20  # elements of the largest buffer that is restored: statistics are small, quantized weights are not


def probe(model: Any, given: Inputs) -> Any:
    """Return the model's output for a copy of these inputs, without dropout and gradients."""
    given = tree_map_only(torch.Tensor, torch.clone, given)
    try:
        with torch.inference_mode(False), torch.no_grad(), untouched(model):
            return model(**given)
    finally:
        release(model)


def own_probe(model: Any, example: Inputs | None = None) -> tuple[Inputs, Any]:
    """Return `example`, or guessed inputs that the model's own forward accepts, and its output for them.

    Raises ValueError if it returns no loss for any of them.
    """
    reasons = []
    for given in probe_inputs(model) if example is None else [example]:
        for options in CACHE_OPTIONS:
            try:
                output = probe(model, given | options)
            except Exception as error:
                reasons.append(f"its own forward fails on {' and '.join(given)}: {' '.join(str(error).split())}")
                continue
            if getattr(output, "loss", None) is not None:
                return given | options, output
            reasons.append(f"its own forward gives no loss for {' and '.join(given)}")
    reason = reasons[0] if reasons else "its forward takes no input_ids"
    raise ValueError(f"{reason.removesuffix('.')}. {way_out(model, reason)}" if example is None else reason)


def way_out(model: Any, reason: str) -> str:
    """Return advice for a model that gives no loss for any guessed inputs."""
    dtypes = {str(x.dtype).removeprefix("torch.") for x in model.parameters() if x.is_floating_point()}
    if "dtype" in reason and len(dtypes) > 1 and not torch.is_autocast_enabled(input_device(model).type):
        return f"Its weights are in {' and '.join(sorted(dtypes))}: patch it within the autocast that it trains under"
    if any(map(is_fsdp, model.modules())) and not is_fsdp(model):
        return "FSDP gathers some of its weights outside of it: patch the module that was passed to fully_shard"
    example = "give patch an example: patch(model, example=batch)"
    if not head_layers(model):
        return f"It names no output embeddings: patch a model that predicts the tokens of a text. If it does, {example}"
    return example.capitalize()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and exact gradients; restore what was set, gradients, buffers and the random generators."""
    training = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    kept = [x for x in plain_parts(*model.buffers()) if x.numel() <= MOST_KEPT]
    before = [bytes_of(x).clone() for x in kept]
    patches = {patch: patch.grad_tolerance for module in training if (patch := vars(module).get("_cynosure_patch"))}
    devices = {parameter.device for parameter in gradients if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices, key=str)), uncached():
        model.eval()
        for patch in patches:
            patch.grad_tolerance = 0.0
        try:
            yield
        finally:
            for patch, tolerance in patches.items():
                patch.grad_tolerance = tolerance
            for module, mode in training.items():
                module.training = mode
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            with torch.no_grad():
                for x, values in zip(kept, before, strict=True):
                    if not torch.equal(bytes_of(x), values):
                        x.copy_(values.view(x.dtype).view(x.shape))


@contextmanager
def uncached() -> Iterator[None]:
    """Hide the weights cached by `parametrize.cached`, and drop those of a probe, which have no gradient."""
    kept = dict(parametrized_values())
    parametrized_values().clear()
    try:
        yield
    finally:
        parametrized_values().clear()
        parametrized_values().update(kept)


def plain_parts(*tensors: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that hold the values of these: themselves or their parts, without unreadable ones."""
    for x in tensors:
        if parts := parts_of(x):
            yield from plain_parts(*parts.values())
        elif is_plain(x):
            yield x


def bytes_of(x: Tensor) -> Tensor:
    """View a tensor as bytes, so that NaN is equal to itself."""
    return x.detach().contiguous().view(-1).view(torch.uint8)
