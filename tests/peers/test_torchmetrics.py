"""`Meter` against torchmetrics: the same perplexity and calibration error, and none of its infinities."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError
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


@pytest.mark.parametrize("n_bins", [10, 15])
def test_the_same_calibration_error(n_bins: int) -> None:
    torch.manual_seed(0)
    head, hidden = torch.randn(50, 8), torch.randn(4000, 8)
    target = torch.distributions.Categorical(logits=0.6 * hidden @ head.T).sample()
    ours, theirs = Meter(), MulticlassCalibrationError(num_classes=50, n_bins=n_bins, norm="l1")
    ours.update(token_stats(hidden, head, target, temperatures=ours.temperatures))
    theirs.update((hidden @ head.T).softmax(-1), target)
    ece = ours.compute(n_bins=n_bins, binning="width")["ece"]
    assert ece == pytest.approx(theirs.compute().item(), abs=1e-3)  # tokens next to a bin's edge
