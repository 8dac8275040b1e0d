"""Wrong arguments are errors that name the argument and say what was expected."""

import pytest
import torch

from cynosure import losses

SEQUENCES = torch.tensor([-1.0, -2.0])
TOKENS = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]])
MASK = torch.ones(2, 2, dtype=torch.bool)
ADVANTAGES = torch.tensor([1.0, -1.0])


def dpo(chosen=SEQUENCES, rejected=SEQUENCES, **options):
    return losses.dpo_loss(chosen, rejected, SEQUENCES, SEQUENCES, **options)


def gkd(mask=MASK[0], **options):
    return losses.gkd_loss(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, 3), torch.zeros(5, 3), mask, **options)


def grpo(logprobs=TOKENS, old=TOKENS, advantages=ADVANTAGES, mask=MASK, **options):
    return losses.grpo_loss(logprobs, old, advantages, mask, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo(rejected=SEQUENCES[:1]), "rejected must have the shape of chosen, (2,), got (1,)"),
        (lambda: dpo(chosen=TOKENS), "chosen must have shape (B,), one log-probability for each sequence, got (2, 2)"),
        (lambda: dpo(rejected=SEQUENCES.to("meta")), "rejected must be on the device of chosen, cpu, got meta"),
        (lambda: dpo(-SEQUENCES), "chosen must hold log-probabilities, which are at most 0, got 2: pass log p itself"),
        (lambda: dpo(rejected=SEQUENCES.exp()), "rejected must hold log-probabilities, which are at most 0, got 0.367"),
        (lambda: dpo(beta=0), "beta must be positive and finite, got 0"),
        (lambda: dpo(variant="kto"), "variant must be 'sigmoid', 'ipo', 'hinge' or 'robust', got 'kto'"),
        (lambda: dpo(label_smoothing=0.5), "label_smoothing must be in [0, 0.5), got 0.5"),
        (lambda: dpo(variant="ipo", label_smoothing=0.1), "label_smoothing must be 0 with variant='ipo', got 0.1"),
        (lambda: dpo(reduction="sum"), "reduction must be 'mean' or 'none', got 'sum'"),
        (
            lambda: losses.cpo_loss(SEQUENCES, SEQUENCES, SEQUENCES, variant="hinge", label_smoothing=0.1),
            "label_smoothing must be 0 with variant='hinge', got 0.1",
        ),
        (lambda: losses.simpo_loss(SEQUENCES, SEQUENCES, gamma=-1.0), "gamma must be finite and not negative"),
        (lambda: losses.orpo_loss(SEQUENCES, SEQUENCES, SEQUENCES[:1]), "nll must be 0-d or have the shape of chosen"),
        (lambda: losses.cpo_loss(SEQUENCES, SEQUENCES, SEQUENCES, alpha=-1), "alpha must be finite and not negative"),
        (lambda: gkd(beta=1.5), "beta must be in [0, 1], got 1.5"),
        (lambda: gkd(reduction="sum"), "reduction must be 'mean' or 'none', got 'sum'"),
        (
            lambda: gkd(torch.ones(3)),
            "mask must have the shape of student_hidden but for its last dimension, (2,), got (3,)",
        ),
        (lambda: gkd(torch.full((2,), 0.5)), "mask must be bool, or hold 0 and 1 alone, got other values"),
        (
            lambda: losses.kto_loss(SEQUENCES, SEQUENCES, torch.tensor([2, 0]), SEQUENCES, SEQUENCES),
            "desirable must be bool, or hold 0 and 1 alone, got other values",
        ),
        (lambda: grpo(TOKENS[0], TOKENS[0], mask=MASK[0]), "logprobs must have shape (B, T), one row for each"),
        (lambda: grpo(mask=MASK[:1]), "mask must have the shape of logprobs, (2, 2), got (1, 2)"),
        (lambda: grpo(mask=torch.full((2, 2), 0.5)), "mask must be bool, or hold 0 and 1 alone, got other values"),
        (lambda: grpo(advantages=TOKENS[:, :1]), "advantages must have shape (B,) or (B, T), (2,) or (2, 2)"),
        (lambda: grpo(epsilon_low=1.0), "epsilon_low must be in [0, 1), got 1.0"),
        (lambda: grpo(epsilon_high=-0.1), "epsilon_high must be finite and not negative, got -0.1"),
        (lambda: grpo(delta=1.2), "delta must be above 1 + epsilon_high, 1.2, got 1.2"),
        (lambda: grpo(beta=0.1), "ref_logprobs must be given with beta=0.1, the weight of the KL penalty, got None"),
        (lambda: grpo(importance="text"), "importance must be 'token' or 'sequence', got 'text'"),
        (lambda: grpo(aggregate="mean"), "aggregate must be 'grpo', 'dapo', 'dr_grpo' or 'luspo', got 'mean'"),
        (lambda: grpo(aggregate="grpo", normalizer=8), "normalizer needs aggregate='dapo', got aggregate='grpo'"),
        (lambda: grpo(normalizer=0), "normalizer must be positive and finite, got 0"),
        (lambda: grpo(aggregate="dr_grpo"), "max_completion_length must be given with aggregate='dr_grpo'"),
        (lambda: grpo(max_completion_length=8), "max_completion_length must be given with aggregate='dr_grpo'"),
        (
            lambda: losses.rloo_loss(TOKENS, TOKENS, TOKENS, MASK),
            "advantages must have shape (B,), (2,), got (2, 2)",
        ),
        (
            lambda: losses.on_policy_distillation_loss(TOKENS, TOKENS, MASK, estimator="k4"),
            "estimator must be 'k1', 'k2' or 'k3', got 'k4'",
        ),
        (lambda: losses.focal_loss(TOKENS, MASK, gamma=-1.0), "gamma must be finite and not negative, got -1"),
        (lambda: losses.group_advantages(TOKENS, 2), "rewards must have shape (B,), one for each text, got (2, 2)"),
        (
            lambda: losses.group_advantages(torch.ones(5), 2),
            "group_size must be at least 1 and divide the number of rewards, 5, got 2",
        ),
        (lambda: losses.group_advantages(torch.ones(4), 2, scale="std"), "scale must be 'group', 'batch' or 'none'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(call, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gkd(direction="reverse"), "gkd_loss() takes no direction: pass beta instead"),
        (lambda: gkd(token_weight=MASK[0]), "gkd_loss() takes no token_weight: pass mask instead"),
        (lambda: dpo(chosen=[-1.0, -2.0]), "chosen must be a tensor, got list"),
        (lambda: dpo(rejected=torch.tensor([-1, -2])), "rejected must be floating point, got torch.int64"),
        (lambda: grpo(mask=[1, 1]), "mask must be a tensor, got list"),
        (lambda: grpo(advantages=torch.tensor([1, 0])), "advantages must be floating point, got torch.int64"),
        (lambda: grpo(max_completion_length=8.5, aggregate="dr_grpo"), "max_completion_length must be an integer"),
        (lambda: losses.rloo_advantages([1.0, 2.0], 2), "rewards must be a tensor, got list"),
        (lambda: losses.rloo_advantages(torch.ones(2, dtype=torch.complex64), 2), "rewards must be real"),
    ],
)
def test_a_wrong_type_is_named(call, message):
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value).startswith(message)


def test_rounding_above_zero_is_allowed():
    assert dpo(torch.full((2,), 1e-3)).isfinite()
    assert losses.unlikelihood_loss(torch.full((2, 2), 1e-6), MASK).isfinite()


def test_nan_that_counts_is_seen():
    assert dpo(SEQUENCES * torch.nan).isnan()
    assert grpo(TOKENS * torch.nan).isnan()
