"""What the public operations become in a graph: calls of the operators of `operators.py`."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import cynosure.loss.divergence.operators
import cynosure.loss.logprob_operators
import cynosure.loss.operators  # noqa: F401  (registers them)
from cynosure.loss.divergence.topk import TopkArguments
from cynosure.loss.jobs import autocasts, matmul_dtype
from cynosure.loss.logprobs import TokenLogprobs, names_ids
from cynosure.loss.options import check_shift
from cynosure.loss.sampling.options import OF_DTYPE, draw_seed
from cynosure.loss.shifts import by_shift
from cynosure.loss.stats import TokenStats
from cynosure.system.upstream import FAKE_TENSORS, FUNCTIONAL_TENSORS, is_transforming

SPECIAL = {FAKE_TENSORS: "FakeTensor", FUNCTIONAL_TENSORS: "FunctionalTensor"}

NEEDED = {
    "hidden", "logits", "weight", "student_hidden", "student_weight", "teacher_hidden", "teacher_weight", "ids",
    "logprobs",
}  # fmt: skip
NUMBERS = (
    "ignore_index", "reduction", "label_smoothing", "z_loss", "softcap", "scale", "shift", "shift_weight", "n_counted",
    "backend", "chunk_tokens", "head_dtype",
)  # fmt: skip


def trace(function: Callable[..., Any], arguments: dict[str, Any], untraced: Callable[..., Any]) -> Any:
    """Call the operator for this operation; with arguments that it does not take, the untraced operation."""
    name = function.__name__
    if name.endswith("token_logprobs") and is_loss(arguments):
        return function(**arguments)  # calls another operation
    if is_transforming() or not are_taken(arguments):
        return untraced(**arguments)
    return OPERATIONS[name](arguments)


def is_loss(arguments: dict[str, Any]) -> bool:
    """Whether log-probabilities are minus a loss: of class indices, without the entropy or a temperature."""
    inputs, target, temperature = (arguments.get(x) for x in ("hidden", "target", "temperature"))
    inputs = arguments["logits"] if inputs is None else inputs
    several = isinstance(target, Tensor) and names_ids(inputs, target)
    return not several and not arguments["entropy"] and type(temperature) in (int, float) and temperature == 1


def are_taken(arguments: dict[str, Any]) -> bool:
    """Whether an operator takes these arguments. With others, the untraced operation raises or breaks the graph."""
    needed = [x for name, x in arguments.items() if name in NEEDED]
    target, class_weight = arguments.get("target"), arguments.get("class_weight")
    tolerance = arguments.get("grad_tolerance")
    return (
        all(is_taken(x) for name, x in arguments.items() if name != "generator")
        and (arguments.get("generator") is None or tolerance == 0)  # a graph draws from torch's default generator
        and all(isinstance(x, Tensor) for x in needed)
        and not (isinstance(tolerance, str) and tolerance != "dtype")
        and (arguments.get("shift_weight") is None or isinstance(arguments["shift"], (tuple, list)))
        and ("target" not in arguments or isinstance(target, Tensor) or is_pair(target))
        and not (isinstance(class_weight, Tensor) and class_weight.requires_grad)
    )


def is_pair(target: object) -> bool:
    """Whether a target is class indices and their probabilities."""
    return isinstance(target, (tuple, list)) and len(target) == 2


def is_taken(x: object) -> bool:
    """Whether an operator takes this value."""
    if isinstance(x, Tensor):
        return type(x) in (Tensor, Parameter) or is_special(x)
    if isinstance(x, (tuple, list)):
        return all(map(is_taken, x))
    return x is None or type(x) in (int, float, str, bool, torch.dtype)


def is_special(x: Tensor) -> bool:
    """Whether x is one of torch's own tensors for capturing a graph."""
    return any(module in sys.modules and type(x) is getattr(sys.modules[module], n) for module, n in SPECIAL.items())


def loss(arguments: dict[str, Any]) -> Tensor:
    """`linear_cross_entropy` or `cross_entropy` in a graph."""
    inputs: Tensor = arguments["hidden" if "hidden" in arguments else "logits"]
    weight, bias, token_weight = (arguments.get(name) for name in ("weight", "bias", "token_weight"))
    classes, probability = parts_of_target(arguments["target"])
    normalizer, wanted = normalizer_of(arguments), early_gradients(inputs, weight, bias, probability, token_weight)
    shift, weights = check_shift(arguments["shift"]), arguments.get("shift_weight")
    several = shift if isinstance(shift, tuple) else None
    weights = [1.0] * len(several) if several and weights is None else weights  # None: there is one shift
    arguments = {**arguments, "shift": list(several or (shift,)), "shift_weight": weights}
    numbers = [arguments.get(name) for name in NUMBERS]
    tolerance, seed = sampling(arguments, inputs)
    result: Tensor = torch.ops.cynosure.cross_entropy(
        inputs, weight, bias, probability, token_weight, classes, arguments["class_weight"], normalizer, seed,
        *numbers, tolerance, autocast_dtype(inputs), wanted,
    )[0]  # fmt: skip
    return by_shift(result, shift) if arguments["reduction"] == "none" else result


def normalizer_of(arguments: dict[str, Any]) -> Tensor | None:
    """The normalizer as a tensor."""
    normalizer = arguments["normalizer"]
    return torch.tensor(normalizer, dtype=torch.float64) if isinstance(normalizer, (int, float)) else normalizer


def early_gradients(*leaves: Tensor | None) -> list[bool]:
    """The gradients that the forward computes.

    An exported program mostly runs without gradients: it computes them in its backward, if there is one.
    """
    early = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    return [early and x is not None and x.requires_grad for x in leaves]


def divergence(arguments: dict[str, Any]) -> Tensor:
    """`linear_kl_div` in a graph."""
    of_models = [f"{of}{x}" for of in ("student_", "teacher_") for x in ("hidden", "weight", "bias")]
    n = arguments["vocab_size"]
    leaves = [first_classes(arguments[name], n) if "hidden" not in name else arguments[name] for name in of_models]
    leaves.append(arguments["token_weight"])
    names = (
        "direction", "beta", "temperature", "student_softcap", "teacher_softcap", "student_scale", "teacher_scale",
        "reduction", "shift", "vocab_size", "head_dtype", "chunk_tokens",
    )  # fmt: skip
    result: Tensor = torch.ops.cynosure.kl_div(
        *leaves, normalizer_of(arguments), *map(arguments.get, names), autocast_dtype(arguments["student_hidden"]),
        early_gradients(*leaves),
    )[0]  # fmt: skip
    return result


def topk_divergence(arguments: dict[str, Any]) -> Tensor:
    """`linear_topk_kl_div` in a graph: an operator that checks, another with the matmuls, and tensor operations."""
    given = TopkArguments(**{**arguments, "normalizer": normalizer_of(arguments)})
    constants = [x.detach() if isinstance(x, Tensor) else x for x in given]
    learned = given.token_weight is not None and given.token_weight.requires_grad
    ids = torch.ops.cynosure.topk_ids(*constants, autocast_dtype(given.student_hidden), learned)
    return given.divergence(ids)


def first_classes(x: Tensor | None, n: int | None) -> Tensor | None:
    """The rows of the first n classes of a weight or bias; the operator checks that there are as many."""
    return x if x is None or n is None or not 0 < n < x.shape[0] else x[:n]


def logprobs(arguments: dict[str, Any]) -> Tensor | TokenLogprobs:
    """`token_logprobs` or `logits_token_logprobs` in a graph."""
    inputs: Tensor = arguments["hidden" if "hidden" in arguments else "logits"]
    weight, bias = (arguments.get(name) for name in ("weight", "bias"))
    names = (
        "softcap", "scale", "temperature", "entropy", "shift", "ignore_index", "backend", "chunk_tokens", "head_dtype",
    )  # fmt: skip
    tolerance, seed = sampling(arguments, inputs)
    results = torch.ops.cynosure.token_logprobs(
        inputs, weight, bias, arguments["target"], seed, *map(arguments.get, names), tolerance, autocast_dtype(inputs)
    )
    first: Tensor = results[0]
    return TokenLogprobs(*results) if arguments["entropy"] else first


def sampling(arguments: dict[str, Any], inputs: Tensor) -> tuple[float, Tensor | None]:
    """The tolerance of the gradients, and a seed if the backward is sampled; an exported program's is exact."""
    tolerance, weight = arguments.get("grad_tolerance", 0.0), arguments.get("weight")
    if weight is None or torch.compiler.is_exporting():
        return 0.0, None
    if tolerance == "dtype":
        tolerance = OF_DTYPE.get(matmul_dtype(inputs, arguments.get("head_dtype")), 0.0)
    trained = torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad)
    return tolerance, draw_seed() if trained and tolerance > 0 else None


def stats(arguments: dict[str, Any]) -> TokenStats:
    """`token_stats` or `logits_token_stats` in a graph: constants for autograd."""
    inputs: Tensor = arguments["hidden" if "hidden" in arguments else "logits"].detach()
    weight, bias = arguments.get("weight"), arguments.get("bias")
    weight, bias = (None if x is None else x.detach() for x in (weight, bias))
    numbers = [arguments[name] for name in ("softcap", "scale", "shift", "ignore_index", "topk")]
    temperatures = arguments["temperatures"]
    return TokenStats(
        *torch.ops.cynosure.token_stats(
            inputs, weight, bias, arguments["target"], *numbers, [] if temperatures is None else temperatures,
            arguments["backend"], arguments.get("chunk_tokens"), arguments.get("head_dtype"),
            autocast_dtype(inputs),
        )
    )  # fmt: skip


def parts_of_target(target: Any) -> tuple[Tensor | None, Tensor | None]:
    """The class indices and the probabilities of a target."""
    if isinstance(target, (tuple, list)):
        return target[0], target[1]
    return (None, target) if target.is_floating_point() else (target, None)


def autocast_dtype(inputs: Tensor) -> torch.dtype | None:
    """Autocast's dtype if it is on, else None."""
    return torch.get_autocast_dtype(inputs.device.type) if autocasts(inputs) else None


OPERATIONS = {
    "linear_cross_entropy": loss,
    "cross_entropy": loss,
    "linear_kl_div": divergence,
    "linear_topk_kl_div": topk_divergence,
    "token_logprobs": logprobs,
    "logits_token_logprobs": logprobs,
    "token_stats": stats,
    "logits_token_stats": stats,
}
