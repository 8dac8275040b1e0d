"""`Meter` against torchmetrics: the same perplexity from the same batches, and none of its infinities."""

import math

import pytest
import torch
from torchmetrics.text import Perplexity

from cynosure import Meter, token_stats


def test_the_same_perplexity() -> None:
    torch.manual_seed(0)
    head = torch.randn(300, 32)
    ours, theirs = Meter(), Perplexity(ignore_index=-100)
    for length in (3, 40, 17):
        hidden, target = torch.randn(2, length, 32) / 4, torch.randint(300, (2, length))
        target[0, : length // 2] = -100
        ours.update(token_stats(hidden, head, target, temperatures=ours.temperatures))
        theirs.update(hidden @ head.T, target)
    assert ours.compute()["token_perplexity"] == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_a_confident_mistake_is_not_infinite() -> None:
    hidden, head, target = torch.eye(2)[:1], torch.eye(2) * 200, torch.tensor([1])
    ours, theirs = Meter(), Perplexity()
    ours.update(token_stats(hidden, head, target, temperatures=ours.temperatures))
    theirs.update((hidden @ head.T)[None], target[None])
    assert ours.compute()["nats_per_token"] == pytest.approx(200)
    assert not math.isfinite(theirs.compute().item())  # softmax().log(), where p has underflowed
