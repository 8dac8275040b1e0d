"""Advantages of groups, against Python's statistics."""

import math
from statistics import mean, stdev

import pytest
import torch

from cynosure import losses

REWARDS = [1.0, 0.0, 2.5, 0.5, -1.0, 3.0, 3.0, 3.0, 3.0, 7.0, math.nan, 2.0, math.nan, math.nan, 4.0]
SIZE = 3


def groups(rewards):
    return [rewards[i : i + SIZE] for i in range(0, len(rewards), SIZE)]


def known(rewards):
    return [reward for reward in rewards if not math.isnan(reward)]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_groups(scale):
    wanted = []
    for group in groups(REWARDS):
        spread = known(REWARDS if scale == "batch" else group)
        divisor = 1.0 if scale == "none" else 1e-4 + (stdev(spread) if len(spread) > 1 else 0.0)
        wanted += [0.0 if math.isnan(reward) else (reward - mean(known(group))) / divisor for reward in group]
    ours = losses.group_advantages(torch.tensor(REWARDS, dtype=torch.float64), SIZE, scale=scale)
    assert ours.tolist() == pytest.approx(wanted)


def test_advantages_against_the_others():
    wanted = []
    for group in groups(REWARDS):
        for i, reward in enumerate(group):
            others = known(group[:i] + group[i + 1 :])
            wanted.append(reward - mean(others) if others and not math.isnan(reward) else 0.0)
    ours = losses.rloo_advantages(torch.tensor(REWARDS, dtype=torch.float64), SIZE)
    assert ours.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("advantages", [losses.group_advantages, losses.rloo_advantages])
def test_rewards_of_any_dtype_are_constants(advantages):
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], requires_grad=True)
    ours = advantages(rewards, 2)
    assert ours.dtype == torch.float32
    assert not ours.requires_grad
    for other in (rewards.detach().bool(), rewards.long(), rewards.bfloat16()):
        torch.testing.assert_close(advantages(other, 2), ours)
    assert advantages(rewards.double(), 2).dtype == torch.float64
    assert advantages(rewards, 1).tolist() == [0, 0, 0, 0]
    assert advantages(rewards[:0], 2).shape == (0,)
