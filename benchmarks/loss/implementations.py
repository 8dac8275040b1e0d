"""The implementations of the loss: each is one function from inputs to a step: forward and backward, or forward alone.

h (N, D) hidden states, w (V, D) the head, t (N,) class indices; the loss is the mean in nats.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.implementation import LIMIT, OURS, TOLERANCE, Implementation, Unavailable, by_name

if TYPE_CHECKING:  # the parent process looks names up here and must not pay for torch
    from torch import Tensor


class Inputs(NamedTuple):
    """What every implementation is given."""

    hidden: "Tensor"  # (N, D)
    weight: "Tensor"  # (V, D), of the same dtype
    target: "Tensor"  # (N,) int64
    backward: bool = True  # False: the loss alone is wanted, as when a text is scored


class Outputs(NamedTuple):
    """What a step hands back: torch tensors, or arrays of a library that speaks DLPack."""

    loss: Any  # 0-d
    dhidden: Any = None  # (N, D), where the backward is wanted
    dweight: Any = None  # (V, D)


Step = Callable[[], Outputs]


def torch_step(inputs: Inputs, loss_of: "Callable[[Tensor, Tensor, Tensor], Tensor]") -> Step:
    """Forward, and backward where it is wanted, of a loss written in torch."""
    if not inputs.backward:
        return forward_step(inputs, loss_of)
    hidden, weight = (x.detach().requires_grad_() for x in (inputs.hidden, inputs.weight))

    def step() -> Outputs:
        loss = loss_of(hidden, weight, inputs.target)
        loss.backward()  # type: ignore[no-untyped-call]
        outputs = Outputs(loss.detach(), hidden.grad, weight.grad)
        hidden.grad = weight.grad = None
        return outputs

    return step


def forward_step(inputs: Inputs, loss_of: "Callable[[Tensor, Tensor, Tensor], Tensor]") -> Step:
    import torch

    def step() -> Outputs:
        with torch.no_grad():
            return Outputs(loss_of(inputs.hidden, inputs.weight, inputs.target))

    return step


def build_stats(inputs: Inputs) -> Step:
    from cynosure.loss import token_stats

    return torch_step(inputs, lambda h, w, t: token_stats(h, w, t, topk=10).nll.mean())


def build_stats_16(inputs: Inputs) -> Step:
    from cynosure.loss import token_stats

    grid = [1 / (0.5 + 0.1 * i) for i in range(16)]  # equal steps in 1/T
    return torch_step(inputs, lambda h, w, t: token_stats(h, w, t, topk=10, temperatures=grid).nll.mean())


def build_cynosure(inputs: Inputs) -> Step:
    from cynosure.loss import linear_cross_entropy

    return torch_step(inputs, linear_cross_entropy)


def build_sampled(inputs: Inputs) -> Step:
    from cynosure.loss import linear_cross_entropy

    return torch_step(inputs, partial(linear_cross_entropy, grad_tolerance=TOLERANCE))


def build_eager(inputs: Inputs) -> Step:
    import torch.nn.functional as F

    return torch_step(inputs, lambda h, w, t: F.cross_entropy(F.linear(h, w), t))


def build_eager_float(inputs: Inputs) -> Step:
    import torch.nn.functional as F

    return torch_step(inputs, lambda h, w, t: F.cross_entropy(F.linear(h, w).float(), t))


def build_compile(inputs: Inputs) -> Step:
    import torch
    import torch.nn.functional as F

    compiled = torch.compile(lambda h, w, t: F.cross_entropy(F.linear(h, w).float(), t), dynamic=False)
    step = torch_step(inputs, compiled)
    step()  # compiles, for this very shape
    return step


def build_torch_fused(inputs: Inputs) -> Step:
    return torch_step(inputs, torch_fused())


def build_torch_chunked(inputs: Inputs) -> Step:
    import torch

    fused = torch_fused()
    options = torch.nn.LinearCrossEntropyOptions()
    return torch_step(inputs, lambda h, w, t: fused(h, w, t, options=options))


def torch_fused() -> "Callable[..., Tensor]":
    """`F.linear_cross_entropy`, where this torch has it."""
    import torch

    found: Callable[..., Tensor] | None = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if found is None:
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy: it comes with 2.13")
    return found


def build_cce(inputs: Inputs) -> Step:
    if find_spec("cut_cross_entropy") and not find_spec("triton"):
        raise Unavailable("cut_cross_entropy imports triton, which is not installed, even for its CPU path")
    from cut_cross_entropy import linear_cross_entropy

    loss_of = partial(linear_cross_entropy, impl="torch_compile")
    # Compiled once for any number of tokens: with so few that no other dimension is equal, and copies, not views.
    few = inputs._replace(hidden=inputs.hidden[:61].clone(), target=inputs.target[:61].clone())
    torch_step(few, loss_of)()
    return torch_step(inputs, loss_of)


def build_cce_triton(inputs: Inputs) -> Step:
    from cut_cross_entropy import linear_cross_entropy

    return torch_step(inputs, partial(linear_cross_entropy, filter_eps=None))


def build_liger(inputs: Inputs) -> Step:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return torch_step(inputs, liger_fused_linear_cross_entropy)


def build_liger_float(inputs: Inputs) -> Step:
    import torch
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return torch_step(inputs, partial(liger_fused_linear_cross_entropy, accum_dtype=torch.float32))


def build_quack(inputs: Inputs) -> Step:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return torch_step(inputs, chunked_linear_cross_entropy)


def build_trl(inputs: Inputs) -> Step:
    from trl.kernels import ChunkedLogProbFunction

    temperature, chunk_size, softcap, scale = 1.0, 32768, None, 1.0  # as TRL's trainers call it

    def loss_of(h: "Tensor", w: "Tensor", t: "Tensor") -> "Tensor":
        call: Any = ChunkedLogProbFunction.apply
        logprobs: Tensor = call(h, w, None, t, temperature, chunk_size, softcap, scale, ())[0]
        return -logprobs.mean()

    return torch_step(inputs, loss_of)


def build_jax(inputs: Inputs) -> Step:
    import jax
    import jax.numpy as jnp
    import optax

    def loss_of(h: Any, w: Any, t: Any) -> Any:
        logits = (h @ w.T).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, t).mean()

    arrays = [jax.dlpack.from_dlpack(x.detach()) for x in (*inputs[:2], inputs.target.int())]
    function = jax.value_and_grad(loss_of, (0, 1)) if inputs.backward else loss_of
    compiled = jax.jit(function).lower(*arrays).compile()

    def step() -> Outputs:
        found = jax.block_until_ready(compiled(*arrays))
        return Outputs(found[0], *found[1]) if inputs.backward else Outputs(found)

    return step


def build_limit(inputs: Inputs) -> Step:
    from benchmarks.loss.limit import whole_gemms

    return lambda: whole_gemms(inputs, "torch")


def build_limit_best(inputs: Inputs) -> Step:
    from benchmarks.loss.limit import best_provider, whole_gemms

    provider = best_provider(inputs)
    return lambda: whole_gemms(inputs, provider)


def build_limit_chunked(inputs: Inputs) -> Step:
    from benchmarks.loss.limit import best_provider, chunked_gemms

    provider = best_provider(inputs)
    return lambda: chunked_gemms(inputs, provider)


EAGER = "eager"
SAMPLED = "sampled"

IMPLEMENTATIONS = by_name(
    Implementation(OURS, "cynosure.linear_cross_entropy(h, W, t)", build_cynosure),
    Implementation(
        SAMPLED, "the same with grad_tolerance=2**-8", build_sampled, places=("cpu",), grad_tolerance=TOLERANCE
    ),
    Implementation("stats", "cynosure.token_stats(h, W, t, topk=10)", build_stats, trains=False),
    Implementation("stats-16", "the same, and the loss at 16 temperatures", build_stats_16, trains=False),
    Implementation(EAGER, "F.cross_entropy(F.linear(h, W), t)", build_eager),
    Implementation(
        "eager-float",
        "F.cross_entropy(F.linear(h, W).float(), t), which in float32 is the eager one",
        build_eager_float,
        ("bfloat16",),
    ),
    Implementation("compile", "torch.compile of F.cross_entropy(F.linear(h, W).float(), t)", build_compile),
    Implementation("torch-fused", "F.linear_cross_entropy(h, W, t)", build_torch_fused),
    Implementation(
        "torch-chunked",
        "F.linear_cross_entropy(h, W, t, options=LinearCrossEntropyOptions())",
        build_torch_chunked,
    ),
    Implementation(
        "cce", 'cut_cross_entropy.linear_cross_entropy(h, W, t, impl="torch_compile")', build_cce, places=("cpu",)
    ),
    Implementation(
        "cce-triton",
        "cut_cross_entropy.linear_cross_entropy(h, W, t, filter_eps=None): of random weights it would filter too much",
        build_cce_triton,
        places=("device",),
    ),
    Implementation("liger", "liger_fused_linear_cross_entropy(h, W, t)", build_liger, places=("device",)),
    Implementation(
        "liger-float",
        "liger_fused_linear_cross_entropy(h, W, t, accum_dtype=torch.float32)",
        build_liger_float,
        places=("device",),
    ),
    Implementation("quack", "quack.chunked_linear_cross_entropy(h, W, t)", build_quack, places=("device",)),
    Implementation("trl", "trl.kernels.ChunkedLogProbFunction, without optional outputs", build_trl),
    Implementation(
        "jax",
        "optax.softmax_cross_entropy_with_integer_labels under jax.jit, logits in float32",
        build_jax,
        places=("cpu",),
    ),
    Implementation(LIMIT, "the matmuls alone by torch, all rows at once", build_limit, checked=False),
    Implementation(
        "limit-best",
        "the same by the fastest library there is",
        build_limit_best,
        checked=False,
        places=("cpu",),
    ),
    Implementation(
        "limit-chunked",
        "the same in our chunks of rows",
        build_limit_chunked,
        checked=False,
    ),
)
