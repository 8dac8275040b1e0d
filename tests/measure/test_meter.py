"""The meter: what one big batch gives, however it is cut, merged or gathered."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from cynosure import Meter, token_stats

V, D = 50, 16


def batch(seed: int, rows: int = 4, length: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(V, (rows, length), generator=generator)
    target[0, :5] = -100
    return torch.randn(rows, length, D, generator=generator), target


HEAD = torch.randn(V, D, generator=torch.Generator().manual_seed(9))


def fed(meter: Meter, hidden: torch.Tensor, target: torch.Tensor, **options: Any) -> Meter:
    meter.update(token_stats(hidden, HEAD, target, temperatures=meter.temperatures), **options)
    return meter


def test_figures_are_those_of_full_logits() -> None:
    hidden, target = batch(0)
    n_bytes = torch.arange(target.numel()).view(target.shape) % 5
    found = fed(Meter(), hidden, target, n_bytes=n_bytes).compute()
    logits, seen = (hidden @ HEAD.T).double(), target != -100
    nll = cross_entropy(logits[seen], target[seen])
    p = logits[seen].softmax(-1)
    assert found["tokens"] == int(seen.sum())
    assert found["nats_per_token"] == pytest.approx(nll.item(), rel=1e-6)
    assert found["token_perplexity"] == pytest.approx(nll.exp().item(), rel=1e-6)
    expected = nll.item() * int(seen.sum()) / math.log(2) / int(n_bytes[seen].sum())
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    assert found["top1_accuracy"] == (logits[seen].argmax(-1) == target[seen]).double().mean().item()
    assert found["mean_entropy"] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-6)
    one_hot = torch.nn.functional.one_hot(target[seen], V)
    assert found["brier"] == pytest.approx(((p - one_hot) ** 2).sum(-1).mean().item(), rel=1e-6)
    assert 0 < found["ece"] < 1


def test_how_batches_are_cut_and_merged_changes_nothing() -> None:
    hidden, target = batch(1)
    stats = token_stats(hidden, HEAD, target, temperatures=Meter().temperatures)
    whole = Meter()
    whole.update(stats)
    parts = [Meter() for _ in range(30)]
    for i, part in enumerate(parts):
        part.update(type(stats)(*(figure[:, i : i + 1] for figure in stats)))
    merged = Meter()
    for part in reversed(parts):
        merged.merge(part)
    assert merged.compute() == whole.compute() == whole.gather().compute()
    whole.reset()
    assert math.isnan(whole.compute()["nats_per_token"])
    assert whole.compute()["tokens"] == 0


def test_half_precision_and_nothing_but_ignored() -> None:
    hidden, target = batch(2)
    stats = token_stats(hidden.bfloat16(), HEAD.bfloat16(), target, temperatures=Meter().temperatures)
    meter = Meter()
    meter.update(stats)
    assert meter.compute()["nats_per_token"] == pytest.approx(
        fed(Meter(), hidden, target).compute()["nats_per_token"], 0.02
    )
    before = meter.compute()
    fed(meter, hidden, torch.full_like(target, -100))
    assert meter.compute() == before


def test_float64_figures_are_not_narrowed() -> None:
    hidden, target = batch(4)
    stats = token_stats(hidden.double(), HEAD.double(), target, temperatures=Meter().temperatures)
    meter = Meter()
    meter.update(stats)
    logits, seen = hidden.double() @ HEAD.double().T, target != -100
    truth = cross_entropy(logits[seen], target[seen]).item()
    assert meter.compute()["nats_per_token"] == pytest.approx(truth, rel=1e-11)
    tempered = meter.calibration.sums.values[3:] / int(seen.sum())
    for value, temperature in zip(tempered.tolist(), meter.temperatures, strict=True):
        expected = cross_entropy(logits[seen] / temperature, target[seen]).item()
        assert value == pytest.approx(expected, rel=1e-11)


def test_an_impossible_token_makes_the_loss_infinite() -> None:
    hidden, head = torch.ones(2, 1), torch.tensor([[0.0], [-math.inf]])
    meter = Meter()
    meter.update(token_stats(hidden, head, torch.tensor([0, 1]), temperatures=meter.temperatures))
    assert (meter.compute()["tokens"], meter.compute()["nats_per_token"]) == (2, math.inf)


def test_what_does_not_fit_is_refused() -> None:
    hidden, target = batch(3)
    with pytest.raises(ValueError, match=r"needs token_stats.*temperatures=meter\.temperatures"):
        Meter().update(token_stats(hidden, HEAD, target, temperatures=[1.0]))
    with pytest.raises(ValueError, match=r"n_bytes must have the shape \(4, 30\), got \(4, 29\)"):
        fed(Meter(), hidden, target, n_bytes=torch.ones(4, 29))


def test_a_loss_of_nan_is_refused_and_leaves_the_meter_as_it_was() -> None:
    hidden, target = batch(3)
    meter = fed(Meter(), hidden, target)
    before = meter.compute()
    hidden[0, :7] = math.nan
    scored = int((target != -100).sum())
    n_nan = int((target[0, :7] != -100).sum())
    with pytest.raises(ValueError, match=f"{n_nan} of {scored} losses are NaN"):
        fed(meter, hidden, target)
    assert meter.compute() == before


def test_a_meter_of_very_many_batches_stays_small() -> None:
    meter = Meter()
    stats = token_stats(torch.ones(1, 4), torch.eye(4), torch.tensor([1]), temperatures=meter.temperatures)
    for _ in range(2500):
        meter.update(stats)
    assert len(meter.sums.parts) < 1000
    assert meter.compute()["tokens"] == 2500
