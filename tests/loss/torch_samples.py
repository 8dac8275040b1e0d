"""torch's own samples of its cross-entropies, through ours: `python -m tests.loss.torch_samples` prints the outcomes.

They are those of its OpInfo and ModuleInfo, in every float dtype; every probability of a target requires grad. Loss and
gradients are held to float64 three ways. A process of its own, because torch's test utilities change global settings.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from cynosure.loss import cross_entropy, linear_cross_entropy

FUNCTIONS = ("cross_entropy", "linear_cross_entropy")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float64: 1e-12, torch.float32: 4 * 2**-23, torch.bfloat16: 2**-7, torch.float16: 2**-10}
POSITIONAL = {"cross_entropy": ("input", "target"), "linear_cross_entropy": ("input", "linear_weight", "target")}


class Sample(NamedTuple):
    """A call of torch's function, every argument by name."""

    source: str
    function: str
    arguments: dict[str, Any]

    def leaves(self) -> dict[str, Tensor]:
        """What the loss is differentiated by: every float tensor but the class weights."""
        return {
            name: x
            for name, x in self.arguments.items()
            if isinstance(x, Tensor) and x.is_floating_point() and name != "weight"
        }


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """All of them in this dtype."""
    how = {"device": "cpu", "dtype": dtype, "requires_grad": True}
    for op in op_db:
        function = op.name.removeprefix("nn.functional.")
        if function in FUNCTIONS:
            for sample in op.sample_inputs(**how):
                given = dict(zip(POSITIONAL[function], (sample.input, *sample.args), strict=False))
                source = f"{op.name} {op.variant_test_name}".strip()
                yield Sample(source, function, given | sample.kwargs)
    for module in module_db:
        if module.name in ("nn.CrossEntropyLoss", "nn.LinearCrossEntropyLoss"):
            for made in module.module_inputs_func(module, training=True, **how):
                loss = module.module_cls(*made.constructor_input.args, **made.constructor_input.kwargs)
                function, given = called(lambda made=made, loss=loss: loss(*made.forward_input.args))
                yield Sample(module.name, function, given)


def called(call: Any) -> tuple[str, dict[str, Any]]:
    """Which of torch's functions a module's call ends in, and its arguments."""
    found: list[tuple[str, dict[str, Any]]] = []

    def record(function: str) -> Any:
        return lambda *args, **given: found.append(
            (function, dict(zip(POSITIONAL[function], args, strict=False)) | given)
        )

    with patch.multiple(F, **{function: record(function) for function in FUNCTIONS}):
        call()
    return found[0]


def theirs(function: str, arguments: dict[str, Any]) -> Tensor:
    return getattr(F, function)(**arguments)  # type: ignore[no-any-return]


def ours(function: str, arguments: dict[str, Any]) -> Tensor:
    """The same by our functions, whose classes come last, and whose heads are matrices."""
    given = dict(arguments)
    if given.get("ignore_index", 0) is None:
        del given["ignore_index"]
    given["class_weight"] = given.pop("weight", None)
    target, x = given.pop("target"), given.pop("input")
    if function == "linear_cross_entropy":
        head, bias = given.pop("linear_weight"), given.pop("linear_bias", None)
        if head.ndim == 2:
            return linear_cross_entropy(x, head, target, bias=bias, **given)
        bias = None if bias is None else bias.flatten()
        x = F.linear(x, head.flatten(0, -2), bias).unflatten(-1, head.shape[:-1])
    if x.ndim > 1:
        x, target = x.movedim(1, -1), target.movedim(1, -1) if target.is_floating_point() else target
    return cross_entropy(x, target, **given)


def differentiate(loss_of: Any, sample: Sample, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss and gradients of a sample with its float tensors in this dtype, under one arbitrary upstream gradient."""
    arguments = {
        name: x.detach().to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in sample.arguments.items()
        if name != "options"  # in which chunks torch computes it
    }
    leaves = {name: arguments[name].requires_grad_() for name in sample.leaves()}
    loss = loss_of(sample.function, arguments)
    upstream = torch.linspace(0.5, 2.0, loss.numel(), dtype=torch.float64).reshape(loss.shape).to(loss.dtype)
    gradients = torch.autograd.grad(loss, list(leaves.values()), upstream)
    return {"loss": loss.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def verdict(sample: Sample, dtype: torch.dtype) -> str:
    """ "equal", the name of a documented difference, or what is wrong."""
    truth = differentiate(theirs, sample, torch.float64)
    plain = differentiate(theirs, sample, dtype)
    try:
        found = differentiate(ours, sample, dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if truth["loss"].isnan().all():
        nothing = all(bool((x == 0).all()) for x in found.values())
        return "a mean over nothing is 0" if nothing else "a mean over nothing is not 0"
    for name, x in truth.items():
        if found[name].shape != x.shape:
            return f"{name} has shape {tuple(found[name].shape)}, torch's {tuple(x.shape)}"
        error, allowed = ((y.double() - x).abs().max().item() for y in (found[name], plain[name]))
        if not error <= 2 * allowed + ROUNDING[dtype] * x.abs().max().item():
            return f"{name} is off by {error:.1e}, torch by {allowed:.1e}"
    return "equal"


def main() -> None:
    torch.manual_seed(0)
    counts: dict[str, Counter[str]] = {}
    for dtype in DTYPES:
        for sample in samples(dtype):
            given = {name: tuple(x.shape) if isinstance(x, Tensor) else x for name, x in sample.arguments.items()}
            result = verdict(sample, dtype)
            counts.setdefault(sample.source, Counter())[result] += 1
            if result != "equal":
                print(f"{sample.source} {dtype} {given}: {result}", file=sys.stderr)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
