"""Models that compute their own loss: what they do to their logits is followed into PyTorch's cross-entropy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from cynosure.loss import TokenStats
from cynosure.patching import patch
from cynosure.patching.pending import PendingLogits
from tests.patching.test_patch import IGNORED, SIZES, V, batch

Loss = Callable[[Any, Tensor, Tensor], Tensor]  # of a model, its logits (2, 20, V) and labels (2, 20)


class OwnLoss(transformers.LlamaForCausalLM):
    """Llama, with a loss of its own."""

    own: Loss

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        loss = None if labels is None else self.own(self, logits, labels)
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)


def made_of(own: Loss, seed: int = 0) -> Any:
    """A model in float64 with this loss, and constants and parameters for it."""
    torch.manual_seed(seed)
    model = OwnLoss(transformers.LlamaConfig(**SIZES)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.register_buffer("offset", torch.randn(1, V, dtype=torch.float64))
    model.register_buffer("class_weight", torch.rand(V, dtype=torch.float64))
    model.learned = nn.Parameter(torch.rand(V, dtype=torch.float64) + 0.5)
    OwnLoss.own = staticmethod(own)  # type: ignore[assignment]
    return model


def outcome(model: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss, weighed in the backward, and every gradient."""
    model.zero_grad()
    loss = model(**batch(), **options).loss
    (loss * torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum().backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_followed(own: Loss) -> None:
    """Value and gradients are the model's own, and no logits are made."""
    model = made_of(own)
    loss, gradients = outcome(model)
    with patch(model, batch()) as patched:
        fused = patched.fused
        found, ours = outcome(model)
        assert patched.made_by == []
        assert patched.fused > fused
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-12)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def flat(model: Any, z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.view(-1, z.size(-1)), y.view(-1))


def masked(model: Any, z: Tensor, y: Tensor) -> Tensor:
    keep = (torch.arange(y.numel()) % 3 != 0).view(y.shape)[..., 1:].long()
    return flat(model, z[..., :-1, :][keep != 0].contiguous(), y[..., 1:][keep != 0].contiguous())


def in_place(model: Any, z: Tensor, y: Tensor) -> Tensor:
    z *= 0.5
    z = z.mul_(3.0).div_(2.0)
    return flat(model, z, y)


def streams(model: Any, z: Tensor, y: Tensor) -> Tensor:
    """As of several codebooks: every other row apart."""
    z, y = z.unflatten(1, (10, 2)), y.view(2, 10, 2)
    losses = [flat(model, z[:, :, i].contiguous(), y[..., i].contiguous()) for i in range(2)]
    return sum(losses, torch.zeros([], dtype=z.dtype)) / 2


def ngrams(model: Any, z: Tensor, y: Tensor) -> Tensor:
    """ProphetNet's: rows in another order, log-probabilities, their negative likelihood."""
    z = z.unsqueeze(1).transpose(0, 1).contiguous()
    logprobs = F.log_softmax(z.view(-1, z.size(-1)), dim=-1, dtype=torch.float64)
    return F.nll_loss(logprobs, y.view(-1), reduction="mean")


def gathered(model: Any, z: Tensor, y: Tensor) -> Tensor:
    known = y != IGNORED
    logprobs = z.log_softmax(-1).gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(logprobs * known).sum() / known.sum()


ROWS, STEPS = torch.tensor([0, 1, 1]), torch.tensor([6, 2, 2])
OPERATIONS: dict[str, Loss] = {
    "view": flat,
    "view of a tuple": lambda m, z, y: F.cross_entropy(z.view((40, V)), y.view(-1)),
    "reshape": lambda m, z, y: F.cross_entropy(z.reshape(-1, V), y.reshape(-1)),
    "flatten": lambda m, z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
    "shifted": lambda m, z, y: flat(m, z[..., :-1, :].contiguous(), y[..., 1:].contiguous()),
    "shifted, all dimensions": lambda m, z, y: flat(m, z[:, :-1, :].contiguous(), y[:, 1:].contiguous()),
    "narrow": lambda m, z, y: flat(m, z.narrow(1, -19, 19).contiguous(), y[:, 1:].contiguous()),
    "last rows": lambda m, z, y: flat(m, z[:, -7:].contiguous(), y[:, -7:].contiguous()),
    "every other row": lambda m, z, y: flat(m, z[:, ::2].contiguous(), y[:, ::2].contiguous()),
    "one text": lambda m, z, y: F.cross_entropy(z[0], y[0]) + F.cross_entropy(z.select(0, 1), y[1]),
    "one row": lambda m, z, y: F.cross_entropy(z[0, 7], y[0, 7]),
    "mask": masked,
    "positions": lambda m, z, y: F.cross_entropy(z[ROWS, STEPS], y[ROWS, STEPS]),
    "ignored rows left out": lambda m, z, y: F.cross_entropy(z[y != IGNORED], y[y != IGNORED]),
    "classes first by transpose": lambda m, z, y: F.cross_entropy(z.transpose(1, 2), y),
    "classes first by permute": lambda m, z, y: F.cross_entropy(z.permute(0, 2, 1), y),
    "classes first by movedim": lambda m, z, y: F.cross_entropy(z.movedim(-1, 1), y),
    "classes first by mT": lambda m, z, y: F.cross_entropy(z.mT, y),
    "classes first, two dimensions of rows": lambda m, z, y: F.cross_entropy(
        z.view(2, 4, 5, V).permute(0, 3, 1, 2), y.view(2, 4, 5)
    ),
    "batch second": lambda m, z, y: flat(m, z.transpose(0, 1).contiguous(), y.t().contiguous()),
    "squeeze": lambda m, z, y: flat(m, z[None].squeeze(0).squeeze(0), y),
    "streams": streams,
    "log_softmax and nll_loss": ngrams,
    "log_softmax and gather": gathered,
    "log_softmax twice": lambda m, z, y: flat(m, z.log_softmax(-1), y),
    "a buffer for each class": lambda m, z, y: flat(m, z + m.offset, y),
    "a buffer before and after a scale": lambda m, z, y: flat(m, m.offset[0] + (m.offset + z) * 0.3, y),
    "a learned offset": lambda m, z, y: flat(m, z - m.learned, y),
    "a learned factor of each class": lambda m, z, y: flat(m, z * m.learned, y),
    "a negative number": lambda m, z, y: flat(m, -0.5 * z + 1, y),
    "in place": in_place,
    "softcap": lambda m, z, y: flat(m, 2 * torch.tanh(z / 2), y),
    "fewer classes": lambda m, z, y: F.cross_entropy(z.view(-1, V)[:, : V - 1], y.view(-1).clamp(max=V - 2)),
    "a clone that is changed": lambda m, z, y: flat(m, z.view(40, V).clone().mul_(2), y),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_between_head_and_loss(name: str) -> None:
    assert_followed(OPERATIONS[name])


def probabilities(y: Tensor) -> Tensor:
    return F.one_hot(y.clamp(min=0).view(-1), V).double() * 0.75 + 0.25 / V


OPTIONS: dict[str, Loss] = {
    "ignore_index": lambda m, z, y: F.cross_entropy(z.view(-1, V), y.clamp(min=3).view(-1), ignore_index=3),
    "sum": lambda m, z, y: F.cross_entropy(z.view(-1, V), y.view(-1), reduction="sum"),
    "none": lambda m, z, y: F.cross_entropy(z.view(-1, V), y.view(-1), reduction="none"),
    "none, classes first": lambda m, z, y: F.cross_entropy(z.mT, y, reduction="none"),
    "weight": lambda m, z, y: F.cross_entropy(z.view(-1, V), y.view(-1), m.class_weight),
    "weight, sum": lambda m, z, y: F.cross_entropy(z.mT, y, weight=m.class_weight, reduction="sum"),
    "smoothing": lambda m, z, y: F.cross_entropy(z.view(-1, V), y.view(-1), label_smoothing=0.3),
    "smoothing, weight": lambda m, z, y: F.cross_entropy(
        z.view(-1, V), y.view(-1), m.class_weight, label_smoothing=0.3
    ),
    "probabilities": lambda m, z, y: F.cross_entropy(z.view(-1, V), probabilities(y)),
    "probabilities, classes first": lambda m, z, y: F.cross_entropy(z.mT, probabilities(y).view(2, 20, V).mT),
    "probabilities, weight, smoothing": lambda m, z, y: F.cross_entropy(
        z.view(-1, V), probabilities(y), m.class_weight, label_smoothing=0.1, reduction="sum"
    ),
    "size_average": lambda m, z, y: nn.CrossEntropyLoss(size_average=False)(z.view(-1, V), y.view(-1)),
    "module": lambda m, z, y: nn.CrossEntropyLoss(m.class_weight, ignore_index=5, label_smoothing=0.2)(
        z.view(-1, V), y.clamp(min=5).view(-1)
    ),
    "keywords": lambda m, z, y: F.cross_entropy(input=z.view(-1, V), target=y.view(-1), reduction="mean"),
    "nll_loss, weight": lambda m, z, y: nn.NLLLoss(m.class_weight)(z.log_softmax(-1).view(-1, V), y.view(-1)),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.filterwarnings("ignore:size_average")
def test_options_of_cross_entropy(name: str) -> None:
    if name in ("none", "none, classes first"):
        own = OPTIONS[name]
        assert_followed(lambda m, z, y: (own(m, z, y) * torch.linspace(0, 1, 40).double().view(y.shape).view(
            own_shape(name, y))).sum())  # fmt: skip
    else:
        assert_followed(OPTIONS[name])


def own_shape(name: str, y: Tensor) -> torch.Size:
    return y.shape if "classes first" in name else y.view(-1).shape


def written_over(model: Any, z: Tensor, y: Tensor) -> Tensor:
    rows = z.view(-1, V)
    z *= 2
    return F.cross_entropy(rows, y.view(-1))


REFUSED: dict[str, tuple[Loss, str]] = {
    "other classes than rows": (
        lambda m, z, y: F.cross_entropy(z.flatten(1), y[:, 7]),
        "flatten needs full logits",
    ),
    "rows as classes": (lambda m, z, y: F.cross_entropy(z, torch.zeros(2, V).long()), "cross_entropy needs"),
    "a number for each row": (lambda m, z, y: flat(m, z + torch.arange(20.0)[:, None], y), "add needs full logits"),
    "no log-probabilities": (lambda m, z, y: F.nll_loss(z.view(-1, V), y.view(-1)), "nll_loss needs full logits"),
    "scaled log-probabilities": (lambda m, z, y: flat(m, 2 * z.log_softmax(-1), y), "mul needs full logits"),
    "softmax over rows": (lambda m, z, y: flat(m, z.log_softmax(1), y), "log_softmax needs full logits"),
    "classes in the middle": (lambda m, z, y: flat(m, z[..., 3:], y.clamp(max=9)), "getitem__ needs full logits"),
    "look and loss": (lambda m, z, y: flat(m, z, y) + 0 * z.view(-1, V).amax(), "amax needs full logits"),
    "views changed in place": (
        written_over,
        "mul_+ changes deferred logits in place, but views",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_that_cannot_be_followed_are_named(name: str) -> None:
    own, reason = REFUSED[name]
    model = made_of(own)
    with pytest.raises(ValueError, match=f"OwnLoss cannot be patched: .*{reason}"):
        patch(model, batch())


def test_shapes_of_logits_that_are_not_made() -> None:
    model, seen = made_of(flat), []
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda z: z,
        lambda z: z.view(-1, V),
        lambda z: z[..., :-1, :],
        lambda z: z[:, None, 3],
        lambda z: z[torch.ones(2, 20, dtype=torch.bool)],
        lambda z: z.transpose(1, 2),
        lambda z: z.permute(2, 0, 1),
        lambda z: z[..., :5].half(),
        lambda z: z.log_softmax(-1).reshape(4, 10, V),
    ]

    def own(model: Any, z: Tensor, y: Tensor) -> Tensor:
        loss = flat(model, z, y)
        seen.append([(x.shape, x.size(-1), x.dim(), len(x), x.dtype, x.numel()) for x in (f(z) for f in changes)])
        looked.append([f(z) for f in changes])
        return loss

    looked: list[list[Tensor]] = []
    OwnLoss.own = staticmethod(own)  # type: ignore[assignment]
    model(**batch())
    with patch(model, batch()):
        model(**batch())
        assert all(isinstance(x, PendingLogits) for x in looked[-1])
        for a, b in zip(looked[0], looked[-1], strict=True):
            torch.testing.assert_close(b.detach(), a.detach())
    assert seen[0] == seen[-1]


def test_errors_are_pytorchs_and_make_no_logits() -> None:
    model = made_of(flat)
    with patch(model, batch()) as patched:
        OwnLoss.own = staticmethod(lambda m, z, y: flat(m, z[:, :-1], y))  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"Expected input batch_size \(38\) to match target batch_size \(40\)"):
            model(**batch())
        assert patched.made_by == []


def test_the_loss_has_the_dtype_of_the_models_own() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model = made_of(flat).to(dtype)
        own = model(**batch()).loss
        with patch(model, batch()):
            ours = model(**batch()).loss
        assert ours.dtype == own.dtype == dtype
        exact = made_of(flat)(**batch()).loss
        assert abs(ours - exact) <= 2 * abs(own - exact) + 8 * torch.finfo(dtype).eps
        with torch.autocast("cpu", torch.bfloat16), patch(model, batch()):
            assert model(**batch()).loss.dtype == torch.float32


def test_figures_stand_where_their_tokens_stood() -> None:
    """However the rows were laid out and chosen, evaluation is told of them text by text."""
    model, inputs, seen = made_of(masked), batch(), []
    with torch.no_grad():
        own, logits = model(**inputs).loss, model(**inputs).logits
        with patch(model, batch()) as patched:
            patched.observer = seen.append
            torch.testing.assert_close(model(**inputs).loss, own)
    (stats,) = seen
    assert isinstance(stats, TokenStats)
    assert stats.nll.shape == stats.rank.shape == (2, 20)
    target = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
    kept = F.pad((torch.arange(40) % 3 != 0).view(2, 20)[:, 1:], (0, 1)) & (target != IGNORED)
    assert torch.equal(stats.rank > 0, kept)
    nll = F.cross_entropy(logits.mT, target, reduction="none")
    torch.testing.assert_close(stats.nll[kept], nll[kept])
