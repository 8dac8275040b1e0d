"""The formulas of the loss on full logits, in plain autograd: the truth every operation here is held to.

Written from the formulas alone; it shares no line with the package. In float64 it is the truth, in a narrower dtype the
"torch, same dtype" of a three-way comparison: logits rounded as F.linear rounds them, everything after in float32.

hidden (..., D), weight (V, D), bias (V,); target (...), (..., V), or indices and probabilities (..., K).
"""

import torch
import torch.nn.functional as F


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def capped(logits, scale=1.0, softcap=None):
    z = scale * logits.to(wide(logits.dtype))
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def is_indices(target):
    return torch.is_tensor(target) and not target.is_floating_point()


def distribution(target, vocab_size, dtype):
    """y (..., V) of any kind of target; an ignored index leaves a row of zeros."""
    if is_indices(target):
        return (target[..., None] == torch.arange(vocab_size)).to(dtype)
    if torch.is_tensor(target):
        return target.to(dtype)
    indices, probabilities = target
    return torch.zeros(*indices.shape[:-1], vocab_size, dtype=dtype).scatter_add(-1, indices, probabilities.to(dtype))


def shifted(logits, target, token_weight, shift):
    """Position i of the logits against position i + shift of the target and of its weight."""
    if shift == 0:
        return logits, target, token_weight
    rows = logits.shape[-2] - shift

    def later(x, axis):
        return x.narrow(axis, shift, rows)

    if is_indices(target):
        target = later(target, -1)
    elif torch.is_tensor(target):
        target = later(target, -2)
    else:
        target = tuple(later(x, -2) for x in target)
    token_weight = None if token_weight is None else later(token_weight, -1)
    return logits.narrow(-2, 0, rows), target, token_weight


def token_losses(
    logits,
    target,
    *,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    softcap=None,
    scale=1.0,
    class_weight=None,
    token_weight=None,
):
    """loss_i and the share of it in the default normalizer, tau_i k_i, both (...)."""
    vocab_size = logits.shape[-1]
    z = capped(logits, scale, softcap)
    lse = torch.logsumexp(z, -1)
    c = torch.ones(vocab_size, dtype=z.dtype) if class_weight is None else class_weight.to(z.dtype)
    y = distribution(target, vocab_size, z.dtype)
    q = c * ((1 - label_smoothing) * y + label_smoothing / vocab_size)
    logp = F.log_softmax(z, -1)
    nll = -(q * torch.where((q == 0) & (logp == -torch.inf), 0.0, logp)).sum(-1)  # q's derivative is -logp at q = 0 too
    tau = torch.ones_like(lse) if token_weight is None else token_weight.to(z.dtype)
    k = torch.ones_like(lse)
    ignored = (tau == 0) & (not tau.requires_grad)  # at 0 a learned weight still has its derivative, the row's loss
    if is_indices(target):
        ignored = ignored | (target == ignore_index)
        tau = torch.where(target == ignore_index, 0.0, tau)
        k = c[torch.where(target == ignore_index, 0, target).long()]
    losses = torch.where(ignored, 0.0, tau * (nll + k * z_loss * lse.square()))
    return losses, tau * k


def loss_of_logits(logits, target, *, reduction="mean", normalizer=None, shift=0, token_weight=None, **options):
    logits, target, token_weight = shifted(logits, target, token_weight, shift)
    losses, counts = token_losses(logits, target, token_weight=token_weight, **options)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    divisor = counts.sum() if normalizer is None else normalizer
    return losses.sum() * 0 if divisor == 0 else losses.sum() / divisor


def loss(hidden, weight, target, *, bias=None, **options):
    return loss_of_logits(F.linear(hidden, weight, bias), target, **options)


def logprobs(hidden, weight, target, *, bias=None, **options):
    return -loss(hidden, weight, target, bias=bias, reduction="none", **options)


def logprobs_and_entropy(
    logits, target, *, ignore_index=-100, softcap=None, scale=1.0, temperature=1.0, shift=0, entropy=True
):
    """log p of class indices (...) or given ids (..., K), and the entropy (...); 0 where ignored."""
    ids = target if target.dim() == logits.dim() else target[..., None]
    rows = logits.shape[-2] - shift if shift else None
    logits, ids = (logits.narrow(-2, 0, rows), ids.narrow(-2, shift, rows)) if shift else (logits, ids)
    logp = F.log_softmax(capped(logits, scale, softcap) / temperature, -1)
    ignored = ids == ignore_index
    logprobs = torch.where(ignored, 0.0, logp.gather(-1, torch.where(ignored, 0, ids).long()))
    p = logp.exp()
    h = -(p * torch.where(p == 0, 0.0, logp)).sum(-1)
    h = torch.where(ignored.all(-1), 0.0, h)
    logprobs = logprobs if target.dim() == logits.dim() else logprobs[..., 0]
    return (logprobs, h) if entropy else logprobs


def logprobs_of_hidden(hidden, weight, target, *, bias=None, **options):
    return logprobs_and_entropy(F.linear(hidden, weight, bias), target, **options)


def stats(logits, target, *, scale=1.0, softcap=None, topk=0, temperatures=(), ignore_index=-100):
    """Every figure of TokenStats, by name, for logits (N, V) and class indices (N,)."""
    z = capped(logits, scale, softcap)
    kept = target != ignore_index
    t = torch.where(kept, target, 0)[:, None]
    z_t = z.gather(-1, t)
    p = z.softmax(-1)
    ranked = p.sort(-1, descending=True).values
    second = ranked[:, 1] if z.shape[-1] > 1 else torch.zeros_like(ranked[:, 0])
    top = z.log_softmax(-1).topk(topk, -1)
    at_temperature = [-(z / T).log_softmax(-1).gather(-1, t)[:, 0] for T in temperatures]
    figures = {
        "nll": -z.log_softmax(-1).gather(-1, t)[:, 0],
        "lse": z.logsumexp(-1),
        "entropy": -torch.where(p == 0, 0.0, p * z.log_softmax(-1)).sum(-1),
        "rank": 1 + (z > z_t).sum(-1),
        "argmax": z.argmax(-1),
        "confidence": ranked[:, 0],
        "margin": ranked[:, 0] - second,
        "brier": (p - torch.zeros_like(p).scatter(-1, t, 1.0)).square().sum(-1),
        "top_ids": top.indices,
        "top_logprobs": top.values,
        "nll_at_temperature": torch.stack(at_temperature, -1) if at_temperature else z.new_empty(len(z), 0),
        "correct": torch.where(z.isnan().any(-1), torch.nan, (z.argmax(-1) == t[:, 0]).to(z.dtype)),
    }
    for name, x in figures.items():
        figures[name] = x.masked_fill(
            ~kept.view(-1, *[1] * (x.dim() - 1)), float("nan") if x.is_floating_point() else -1
        )
    return figures
