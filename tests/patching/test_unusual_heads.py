"""Heads with hooks, parametrizations, casts and compilers: equal to the model as it is, or the true reason why not."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from cynosure.patching import patch
from tests.patching.test_heads import D, refusal
from tests.patching.test_patch import V, assert_same, batch, family, step

FAMILIES = ["Llama", "Llama, tied", "Gemma 2", "Phi, biased"]
Within = Callable[[], AbstractContextManager[Any]]


def put(make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.lm_head = make(model.lm_head)

    return change


def steps(model: Any, patched: bool, within: Within) -> list[Any]:
    """Two steps of a copy of a model."""
    model = copy.deepcopy(model)
    found = []
    with within(), patch(model) if patched else nullcontext() as patch_:
        for _ in range(2):
            torch.manual_seed(2)
            found.append(step(model, **batch()))
            assert not patched or patch_.made_by == []
    return found


class Squashed(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.tanh()


class Scaled(nn.Module):
    """The embedding, scaled."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding, self.scale = embedding, nn.Parameter(torch.tensor(0.3))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight * self.scale) * D**-0.5


class StraightThrough(nn.Linear):
    """Of signs, with the gradient of the weight."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + (self.weight.sign() - self.weight).detach())


def registered(name: str, hook: Callable[..., Any]) -> Callable[[Any], None]:
    return lambda model: getattr(model.lm_head, name)(hook)


def compiled_in_place(model: Any) -> None:
    model.lm_head.compile(backend="eager")


HEADS: dict[str, Callable[[Any], Any]] = {
    "spectral norm": lambda m: parametrizations.spectral_norm(m.lm_head),
    "spectral norm by a hook": lambda m: nn.utils.spectral_norm(m.lm_head),
    "orthogonal": lambda m: parametrizations.orthogonal(m.lm_head),
    "lazy": put(lambda _: nn.LazyLinear(V)),
    "norm and linear": put(lambda _: nn.Sequential(nn.LayerNorm(D), nn.Dropout(0.3), nn.Linear(D, V))),
    "hook that scales": registered("register_forward_hook", lambda module, args, out: out * 2),
    "hook that scales in place": registered("register_forward_hook", lambda module, args, out: out.mul_(2)),
    "hook that reads the shape": registered("register_forward_hook", lambda module, args, out: (out.shape, None)[1]),
    "hook before": registered("register_forward_pre_hook", lambda module, args: (torch.tanh(args[0]),)),
    "hook of noise": registered("register_forward_pre_hook", lambda module, args: (args[0] + torch.rand(D),)),
    "hook of the weight": lambda m: m.lm_head.weight.register_hook(lambda gradient: 3 * gradient),
    "compiled": put(lambda head: torch.compile(head, backend="eager")),
    "compiled in place": compiled_in_place,
    "embedding, scaled": lambda m: setattr(m, "lm_head", Scaled(m.get_input_embeddings())),
    "parametrized": lambda m: parametrize.register_parametrization(m.lm_head, "weight", Squashed()),
    "straight-through": put(lambda _: StraightThrough(D, V)),
    "frozen": lambda m: m.lm_head.requires_grad_(False),
    "alone": lambda m: m.requires_grad_(False).lm_head.requires_grad_(True),
}


@pytest.mark.filterwarnings(
    "ignore:.*spectral_norm:FutureWarning", "ignore:The .grad attribute of a Tensor that is not"
)
@pytest.mark.each_value
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_unusual_heads(name: str, head: str) -> None:
    model = family(name)
    torch.manual_seed(1)
    HEADS[head](model)
    model.train()
    for own, ours in zip(steps(model, False, nullcontext), steps(model, True, nullcontext), strict=True):
        assert_same(own, ours)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_that_are_cached(name: str) -> None:
    """Patched where the weights that parametrizations make are kept, which a probe must not fill."""
    model = family(name)
    parametrize.register_parametrization(model.lm_head, "weight", Squashed())
    own = step(model, **batch())
    with parametrize.cached(), patch(model) as patched:
        assert_same(own, step(model, **batch()))
        assert patched.made_by == []


class Casting(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias).to(input.dtype)


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


DTYPES: dict[str, tuple[torch.dtype, Callable[[Any], Any], Within]] = {
    "autocast": (torch.float32, lambda m: None, autocast),
    "float16 head under autocast": (torch.bfloat16, lambda m: m.lm_head.half(), autocast),
    "float32 head under autocast": (torch.bfloat16, lambda m: m.lm_head.float(), autocast),
    "float16 head of float32 under autocast": (torch.float32, lambda m: m.lm_head.half(), autocast),
    "casting to float32": (torch.bfloat16, put(lambda head: Casting(D, V, head.bias is not None)), nullcontext),
}


@pytest.mark.parametrize("how", DTYPES)
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Phi, biased"])
def test_heads_of_another_dtype(name: str, how: str) -> None:
    """As near to float64 as the model itself."""
    dtype, change, within = DTYPES[how]
    model = family(name).to(dtype)
    torch.manual_seed(1)
    change(model)
    own, ours = steps(model, False, within)[0], steps(model, True, within)[0]
    truth = steps(model.double(), False, nullcontext)[0]
    eps = torch.finfo(torch.bfloat16).eps
    for exact, theirs, mine in zip(*(([x[0], *x[1].values()]) for x in (truth, own, ours)), strict=True):
        error, bound = (float((x.double() - exact).norm()) for x in (mine, theirs))
        assert error <= 2 * bound + eps * float(exact.norm())


LOOKING: dict[str, tuple[Callable[[Any], Any], str]] = {
    "backward hook": (
        registered("register_full_backward_hook", lambda module, given, made: (2 * given[0],)),
        "its head has a backward hook, which needs the gradient of full logits: remove the hook",
    ),
    "backward hook before": (
        registered("register_full_backward_pre_hook", lambda module, made: (2 * made[0],)),
        "its head has a backward hook, which needs the gradient of full logits: remove the hook",
    ),
    "clamp": (
        registered("register_forward_hook", lambda module, args, out: out.clamp(-1, 1)),
        "between its head and its loss, clamp needs full logits",
    ),
    "dropout of logits": (
        put(lambda _: nn.Sequential(nn.Linear(D, V), nn.Dropout(0.5))),
        "between its head and its loss, dropout needs full logits",
    ),
    "softplus": (
        put(lambda _: nn.Sequential(nn.Linear(D, V), nn.Softplus())),
        "between its head and its loss, softplus needs full logits",
    ),
    "bilinear": (
        put(lambda _: Squared(D, D, V)),
        f"no matmul of hidden states and one weight in its forward gives {V} classes",
    ),
}


class Squared(nn.Bilinear):
    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden, hidden)


@pytest.mark.parametrize("head", LOOKING)
def test_heads_that_are_refused(head: str) -> None:
    model = family("Llama")
    change, why = LOOKING[head]
    change(model)
    assert refusal(model) == f"LlamaForCausalLM cannot be patched: {why}"


def test_heads_that_need_autocast_say_so() -> None:
    model = family("Llama")
    model.lm_head.half()
    assert refusal(model).endswith(
        "Its weights are in float16 and float32: patch it within the autocast that it trains under"
    )


def test_a_backward_hook_after_the_patch() -> None:
    model = family("Llama")
    with patch(model):
        handle = model.lm_head.register_full_backward_hook(lambda module, given, made: (2 * given[0],))
        with pytest.warns(UserWarning, match="its head has a backward hook"):
            hooked = step(model, **batch())
        handle.remove()
    own = step(model, **batch())
    torch.testing.assert_close(own[0], hooked[0])
    norm = "model.norm.weight"
    torch.testing.assert_close(hooked[1][norm], 2 * own[1][norm])
