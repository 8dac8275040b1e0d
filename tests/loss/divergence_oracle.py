"""The formulas of the divergences on full logits, in plain autograd: the truth that they are held to.

Written from the formulas alone; it shares no line with the package. In a narrower dtype it is the "torch, same dtype"
of a three-way comparison: logits rounded as F.linear rounds them, everything after in float32.
"""

import torch
import torch.nn.functional as F


def log_softmax(hidden, weight, bias, scale, softcap, temperature, vocab_size):
    logits = F.linear(hidden, weight, bias)[..., :vocab_size]
    z = scale * (logits if logits.dtype == torch.float64 else logits.float())
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return (z / temperature).log_softmax(-1)


def kl(log_p, log_q):
    p = log_p.exp()
    return (p * torch.where(p == 0, 0.0, log_p - log_q)).sum(-1)


def reduced(rows, token_weight, reduction, normalizer, shift):
    """Divergences (..., T - shift) of hidden states, weighed by the tokens that they predict and reduced."""
    tau = torch.ones_like(rows) if token_weight is None else token_weight[..., shift:].to(rows.dtype)
    ignored = (tau == 0) & (not tau.requires_grad)
    rows = torch.where(ignored, 0.0, tau * rows)
    if reduction != "mean":
        return rows if reduction == "none" else rows.sum()
    divisor = tau.sum() if normalizer is None else normalizer
    return rows.sum() * 0 if divisor == 0 else rows.sum() / divisor


def kl_div(
    student_hidden, student_weight, teacher_hidden, teacher_weight, *, direction="forward", beta=0.5, temperature=1.0,
    student_bias=None, teacher_bias=None, student_softcap=None, teacher_softcap=None, student_scale=1.0,
    teacher_scale=1.0, token_weight=None, reduction="mean", normalizer=None, shift=0, vocab_size=None,
):  # fmt: skip
    keep = (..., slice(0, student_hidden.shape[-2] - shift), slice(None)) if student_hidden.ndim > 1 else ...
    log_s, log_t = (
        log_softmax(*model, temperature, vocab_size)
        for model in (
            (student_hidden[keep], student_weight, student_bias, student_scale, student_softcap),
            (teacher_hidden[keep], teacher_weight, teacher_bias, teacher_scale, teacher_softcap),
        )
    )
    if direction == "jsd":
        weights = torch.tensor([beta, 1 - beta], dtype=torch.float64).log().to(log_s.dtype)
        log_m = torch.logsumexp(torch.stack([log_t + weights[0], log_s + weights[1]]), 0)
        rows = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
    else:
        rows = kl(log_t, log_s) if direction == "forward" else kl(log_s, log_t)
    return reduced(rows, token_weight, reduction, normalizer, shift)


def topk_kl_div(
    student_hidden, student_weight, ids, logprobs, *, direction="forward", tail="bucket", temperature=1.0,
    student_bias=None, student_softcap=None, student_scale=1.0, token_weight=None, reduction="mean", normalizer=None,
    shift=0,
):  # fmt: skip
    keep = slice(0, student_hidden.shape[-2] - shift)
    hidden, ids, log_t = student_hidden[..., keep, :], ids[..., keep, :], logprobs[..., keep, :]
    log_s = log_softmax(hidden, student_weight, student_bias, student_scale, student_softcap, temperature, None)
    known = torch.zeros_like(log_s, dtype=torch.bool).scatter(-1, ids, True)
    rest = log_s.masked_fill(known, -torch.inf).logsumexp(-1, keepdim=True)
    log_s, log_t = log_s.gather(-1, ids), log_t.to(log_s.dtype)
    if tail == "renormalize":
        log_s, log_t = log_s - log_s.logsumexp(-1, True), log_t - log_t.logsumexp(-1, True)
    elif ids.shape[-1] < student_weight.shape[0]:
        teacher_rest = (1 - log_t.exp().sum(-1, keepdim=True)).clamp(min=0).log()
        log_s, log_t = torch.cat([log_s, rest], -1), torch.cat([log_t, teacher_rest], -1)
    rows = kl(log_t, log_s) if direction == "forward" else kl(log_s, log_t)
    return reduced(rows, token_weight, reduction, normalizer, shift)
