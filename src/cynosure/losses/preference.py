"""Losses of preferences: pairs of a chosen and a rejected text, or single texts that are desirable or not.

All take log-probabilities of whole sequences, (B,), from `sequence_logprobs`.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cynosure.loss import as_number, as_positive
from cynosure.losses.complement import log1mexp
from cynosure.losses.inputs import Reduction, as_bool, check_choice, check_floating, of_sequences
from cynosure.losses.reduce import over_sequences

BELOW_HALF = math.nextafter(0.5, 0.0)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    variant: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid",
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the loss of direct preference optimization (DPO), or of a variant.

    With `m = (chosen - ref_chosen) - (rejected - ref_rejected)` and `e = label_smoothing`:

    - "sigmoid": `-(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)`, from "Direct Preference Optimization"
      (Rafailov et al., 2023, arXiv:2305.18290); e above 0 is conservative DPO (Mitchell, 2023).
    - "robust": `(-(1 - e) log sigmoid(beta m) + e log sigmoid(-beta m)) / (1 - 2 e)`, from "Provably Robust DPO"
      (Chowdhury et al., 2024, arXiv:2403.00409). Its mean is that of clean pairs if a share e of them is swapped.
    - "hinge": `max(0, 1 - beta m)`, from "SLiC-HF" (Zhao et al., 2023, arXiv:2305.10425).
    - "ipo": `(m - 1 / (2 beta))^2`, from "A General Theoretical Paradigm to Understand Learning from Human Preferences"
      (Azar et al., 2023, arXiv:2310.12036). Pass averages, as TRL and the paper's authors do:
      `sequence_logprobs(..., average=True)`. The other variants take sums.

    Args:
        chosen: (B,) log-probabilities of the preferred texts under the model.
        rejected: (B,) those of the other texts.
        ref_chosen: (B,) those of the preferred texts under the reference model, a constant.
        ref_rejected: (B,) those of the other texts under the reference model, a constant.
        beta: strength of the tie to the reference; for "ipo" the paper's tau.
        variant: "sigmoid", "ipo", "hinge" or "robust".
        label_smoothing: share of pairs that are taken to be swapped, in [0, 0.5); for "sigmoid" and "robust".
        reduction: "mean" over the pairs, or "none" for (B,) losses.

    Returns:
        A 0-d tensor, or (B,) for "none". float32, or float64 for float64 `chosen`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> chosen, rejected = torch.tensor([-10.0, -12.0]), torch.tensor([-10.0, -15.0])
        >>> dpo_loss(chosen, rejected, chosen, chosen, reduction="none")  # ln 2, and less where the chosen text gained
        tensor([0.6931, 0.5544])
    """
    beta = as_positive("beta", beta)
    check_choice("variant", variant, ("sigmoid", "ipo", "hinge", "robust"))
    smoothing = _check_smoothing(label_smoothing, allowed=variant in ("sigmoid", "robust"), variant=variant)
    chosen, rejected, ref_chosen, ref_rejected = of_sequences(
        chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected
    )
    margin = (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())
    if variant == "ipo":
        losses = (margin - 1 / (2 * beta)) ** 2
    elif variant == "hinge":
        losses = torch.relu(1 - beta * margin)
    else:
        smoothing = smoothing if variant == "sigmoid" else -smoothing / (1 - 2 * smoothing)
        losses = _smoothed(beta * margin, smoothing)
    return over_sequences(losses, reduction)


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the loss of simple preference optimization (SimPO), which needs no reference model.

    `-log sigmoid(m)` with `m = beta (chosen - rejected) - gamma`, from "SimPO" (Meng et al., 2024, arXiv:2405.14734),
    whose authors use beta from 2 to 10, and start with gamma at half of it. With `e = label_smoothing`, as in TRL's
    `CPOTrainer` with `loss_type="simpo"`: `-(1 - e) log sigmoid(m) - e log sigmoid(-m)`.

    Args:
        chosen: (B,) average log-probabilities of the preferred texts: `sequence_logprobs(..., average=True)`.
        rejected: (B,) those of the other texts.
        beta: scale of the difference.
        gamma: margin by which the preferred text must win, of at least 0.
        label_smoothing: share of pairs that are taken to be swapped, in [0, 0.5).
        reduction: "mean" over the pairs, or "none" for (B,) losses.

    Returns:
        A 0-d tensor, or (B,) for "none". float32, or float64 for float64 `chosen`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]))  # the margin is met: ln 2
        tensor(0.6931)
    """
    beta = as_positive("beta", beta)
    gamma = as_number("gamma", gamma, "finite and not negative", low=0.0)
    smoothing = _check_smoothing(label_smoothing)
    chosen, rejected = of_sequences(chosen=chosen, rejected=rejected)
    return over_sequences(_smoothed(beta * (chosen - rejected) - gamma, smoothing), reduction)


def orpo_loss(
    chosen: Tensor, rejected: Tensor, nll: Tensor, *, beta: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the loss of odds ratio preference optimization (ORPO), which needs no reference model.

    `nll - beta log sigmoid(log odds(chosen) - log odds(rejected))` with `log odds = log p - log(1 - p)`, from "ORPO"
    (Hong et al., 2024, arXiv:2403.07691).

    Args:
        chosen: (B,) average log-probabilities of the preferred texts: `sequence_logprobs(..., average=True)`.
        rejected: (B,) those of the other texts.
        nll: 0-d or (B,) cross-entropy of the preferred texts. `-chosen` is the paper's; TRL's is the mean over the
            tokens of prompts and preferred texts, as `cynosure.linear_cross_entropy` returns it.
        beta: weight of the odds ratio; the paper's lambda.
        reduction: "mean" over the pairs, or "none" for (B,) losses.

    Returns:
        A 0-d tensor, or (B,) for "none". float32, or float64 for float64 `chosen`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> average = torch.tensor([-1.0])
        >>> orpo_loss(average, average, -average)  # 1 + 0.1 ln 2
        tensor(1.0693)
    """
    beta = as_positive("beta", beta)
    chosen, rejected = of_sequences(chosen=chosen, rejected=rejected)
    log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    return over_sequences(_cross_entropy(nll, chosen) - beta * logsigmoid(log_odds), reduction)


def cpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    nll: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    variant: Literal["sigmoid", "hinge"] = "sigmoid",
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the loss of contrastive preference optimization (CPO), which needs no reference model.

    With `m = beta (chosen - rejected)`: `alpha nll - log sigmoid(m)`, from "Contrastive Preference Optimization" (Xu et
    al., 2024, arXiv:2401.08417), or `alpha nll + max(0, 1 - m)` for "hinge". With `e = label_smoothing`, as in TRL:
    `alpha nll - (1 - e) log sigmoid(m) - e log sigmoid(-m)`.

    Args:
        chosen: (B,) log-probabilities of the preferred texts, summed over tokens.
        rejected: (B,) those of the other texts.
        nll: 0-d or (B,) cross-entropy of the preferred texts. TRL's is the mean over their tokens, as
            `cynosure.linear_cross_entropy` returns it; `-chosen` is the paper's.
        beta: scale of the difference.
        alpha: weight of `nll`, of at least 0.
        variant: "sigmoid" or "hinge".
        label_smoothing: share of pairs that are taken to be swapped, in [0, 0.5); for "sigmoid".
        reduction: "mean" over the pairs, or "none" for (B,) losses.

    Returns:
        A 0-d tensor, or (B,) for "none". float32, or float64 for float64 `chosen`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> chosen = torch.tensor([-8.0])
        >>> cpo_loss(chosen, chosen, nll=torch.tensor(2.0))  # 2 + ln 2
        tensor(2.6931)
    """
    beta = as_positive("beta", beta)
    alpha = as_number("alpha", alpha, "finite and not negative", low=0.0)
    check_choice("variant", variant, ("sigmoid", "hinge"))
    smoothing = _check_smoothing(label_smoothing, allowed=variant == "sigmoid", variant=variant)
    chosen, rejected = of_sequences(chosen=chosen, rejected=rejected)
    margin = beta * (chosen - rejected)
    preference = _smoothed(margin, smoothing) if variant == "sigmoid" else torch.relu(1 - margin)
    return over_sequences(alpha * _cross_entropy(nll, chosen) + preference, reduction)


def kto_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    kl_logprobs: Tensor,
    ref_kl_logprobs: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the loss of Kahneman-Tversky optimization (KTO), on single texts instead of pairs.

    With `r = logprobs - ref_logprobs` and the baseline `z = max(0, mean(kl_logprobs - ref_kl_logprobs))`, a constant:
    `desirable_weight (1 - sigmoid(beta (r - z)))` for a desirable text and
    `undesirable_weight (1 - sigmoid(beta (z - r)))` for another, from "KTO" (Ethayarajh et al., 2024,
    arXiv:2402.01306).

    Args:
        logprobs: (B,) log-probabilities of the texts under the model, summed over tokens.
        ref_logprobs: (B,) those under the reference model, a constant.
        desirable: (B,) bool, or 0 and 1: which texts are desirable.
        kl_logprobs: (K,) log-probabilities under the model of completions that belong to other prompts, a constant.
            TRL pairs each prompt with the completion before it in the batch. Pass those of all processes, gathered.
        ref_kl_logprobs: (K,) those under the reference model, a constant.
        beta: strength of the tie to the reference.
        desirable_weight: weight of desirable texts, of at least 0.
        undesirable_weight: weight of the other texts, of at least 0.
        reduction: "mean" over the texts, or "none" for (B,) losses.

    Returns:
        A 0-d tensor, or (B,) for "none". float32, or float64 for float64 `logprobs`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([-9.0, -9.0]), torch.tensor([-4.0, -4.0])
        >>> kto_loss(new, old, torch.tensor([True, False]), old, old, reduction="none")  # both became likelier
        tensor([0.3775, 0.6225])
    """
    beta = as_positive("beta", beta)
    weights = [
        as_number(name, weight, "finite and not negative", low=0.0)
        for name, weight in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight))
    ]
    logprobs, ref_logprobs = of_sequences(logprobs=logprobs, ref_logprobs=ref_logprobs)
    wanted = as_bool("desirable", desirable, "logprobs", logprobs)
    kl_logprobs, ref_kl_logprobs = of_sequences(kl_logprobs=kl_logprobs, ref_kl_logprobs=ref_kl_logprobs)
    kl = over_sequences(kl_logprobs - ref_kl_logprobs, "mean").detach().clamp(min=0).to(logprobs.dtype)
    gain = beta * (logprobs - ref_logprobs.detach() - kl)
    losses = torch.where(wanted, weights[0] * torch.sigmoid(-gain), weights[1] * torch.sigmoid(gain))
    return over_sequences(losses, reduction)


def _cross_entropy(nll: Tensor, chosen: Tensor) -> Tensor:
    """Return the cross-entropy of the preferred texts in the dtype of their log-probabilities."""
    check_floating("nll", nll)
    if nll.shape not in ((), chosen.shape):
        raise ValueError(f"nll must be 0-d or have the shape of chosen, {tuple(chosen.shape)}, got {tuple(nll.shape)}")
    return nll.to(chosen.dtype)


def _smoothed(margin: Tensor, smoothing: float) -> Tensor:
    """Return `-(1 - e) log sigmoid(m) - e log sigmoid(-m)`: a pair of margin m is the other way round with chance e."""
    losses = -logsigmoid(margin)
    return losses if smoothing == 0 else (1 - smoothing) * losses - smoothing * logsigmoid(-margin)


def _check_smoothing(smoothing: float, *, allowed: bool = True, variant: str = "") -> float:
    """Return the share of swapped pairs as a float, checked; a variant that does not know it allows 0 only."""
    smoothing = as_number("label_smoothing", smoothing, "in [0, 0.5)", 0.0, BELOW_HALF)
    if smoothing and not allowed:
        raise ValueError(f"label_smoothing must be 0 with variant={variant!r}, got {smoothing}")
    return smoothing
