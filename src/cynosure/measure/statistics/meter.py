"""A meter for your own loop: update it with each batch, merge it with others, compute at the end."""

import math

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cynosure.loss import TokenStats
from cynosure.measure.statistics.calibration import N_BINS, TEMPERATURES, Binning, Calibration
from cynosure.measure.statistics.groups import Accumulator, Grouped, token_rows


class Meter:
    """Measure the loss of many batches, exactly, however they are cut, ordered or spread over processes.

    The meter keeps sums and counts, which `compute` divides once, so it never takes a mean of means. Its methods are
    those of a torchmetrics metric.

    Example:
        >>> import torch
        >>> from cynosure import Meter, token_stats
        >>> hidden, head, target = torch.eye(4)[None], torch.eye(4) * 9, torch.tensor([[0, 1, 2, 0]])
        >>> meter = Meter()
        >>> for part in (slice(0, 1), slice(1, 4)):
        ...     meter.update(token_stats(hidden[:, part], head, target[:, part], temperatures=meter.temperatures))
        >>> {name: round(value, 4) for name, value in meter.compute().items() if name in ("token_perplexity", "tokens")}
        {'tokens': 4, 'token_perplexity': 9.4912}

        Bits per byte needs the number of bytes of each token, from the tokenizer's vocabulary. Ignored tokens are not
        counted.

        >>> meter = Meter()
        >>> n_bytes = torch.tensor([3, 1, 4, 2])  # by token id
        >>> meter.update(token_stats(hidden, head, target), n_bytes=n_bytes[target])
        >>> round(meter.compute()["bits_per_byte"], 4), meter.compute()["ece"]  # of 11 bytes
        (1.1806, nan)
    """

    def __init__(self) -> None:
        self.temperatures = list(TEMPERATURES)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums = Accumulator()
        self.calibration: Calibration | None = Calibration()  # None after a batch without temperatures

    def update(self, stats: TokenStats, n_bytes: Tensor | None = None) -> None:
        """Add the statistics of a batch; ignored positions are not counted.

        Args:
            stats: from `token_stats`. Calibration needs `temperatures=meter.temperatures` in every batch; otherwise its
                metrics are NaN.
            n_bytes: (...), integers of the shape of `stats.nll`: the number of bytes of each token.

        Raises:
            ValueError: a shape is wrong, or a loss is NaN. Nothing is added then.
        """
        rank = stats.rank.reshape(-1)
        shape = stats.nll_at_temperature.shape
        if shape[-1] and shape != (*stats.nll.shape, len(self.temperatures)):
            raise ValueError("the meter needs token_stats(..., temperatures=meter.temperatures), or none")
        if n_bytes is not None and n_bytes.shape != stats.nll.shape:
            raise ValueError(f"n_bytes must have the shape {tuple(stats.nll.shape)}, got {tuple(n_bytes.shape)}")
        at = (rank > 0).cpu().numpy()
        nll, entropy, confidence, brier = (
            array(getattr(stats, name))[at] for name in ("nll", "entropy", "confidence", "brier")
        )
        if n_nan := int(np.isnan(nll).sum()):
            raise ValueError(f"{n_nan} of {len(nll)} losses are NaN: check the hidden states and weights of this batch")
        correct, one_group = array(stats.correct)[at] == 1, np.zeros(len(nll), dtype=np.int64)
        bytes_of = one_group if n_bytes is None else array(n_bytes)[at]
        self.sums.add(Grouped.of(one_group, token_rows(nll, entropy, correct, bytes_of, one_group)))
        if self.calibration is None or not shape[-1]:
            self.calibration = None
            return
        grid = array(stats.nll_at_temperature).reshape(-1, shape[-1])[at]
        self.calibration.update(confidence, correct, brier, nll, entropy, grid)

    def merge(self, other: "Meter") -> None:
        """Add what another meter has seen.

        Args:
            other: the other meter, which does not change.
        """
        self.sums.merge(other.sums)
        if self.calibration is None or other.calibration is None:
            self.calibration = None
        else:
            self.calibration += other.calibration

    def gather(self) -> "Meter":
        """Return a new meter with what the meters of all processes of torch.distributed have seen."""
        together, parts = Meter(), [self]
        if dist.is_available() and dist.is_initialized():
            parts = [self] * dist.get_world_size()
            dist.all_gather_object(parts, self)
        for part in parts:
            together.merge(part)
        return together

    def compute(self, n_bins: int = N_BINS, binning: Binning = "mass") -> dict[str, float]:
        """Compute the metrics so far.

        Args:
            n_bins: number of bins of `ece`.
            binning: "mass" for bins of equally many tokens, "width" for bins of equal width, as in torchmetrics and
                netcal.

        Returns:
            The metrics by name; NaN if there is no data for one.

        Raises:
            ValueError: there is less than one bin, or the binning is unknown.
        """
        (total,) = self.sums.sums().total.token_sums()
        report = None if self.calibration is None else self.calibration.compute(n_bins, binning)
        metrics = {
            "tokens": total.tokens,
            "nats_per_token": total.nats_per_token,
            "token_perplexity": total.perplexity,
            "bits_per_byte": total.bits_per_byte,
            "top1_accuracy": total.accuracy,
            "mean_entropy": total.mean_entropy,
        }
        names = ("ece", "ece_debiased", "brier", "best_temperature", "recoverable_nats_per_token")
        return metrics | {name: getattr(report, name) if report else math.nan for name in names}


def array(values: Tensor) -> NDArray[np.generic]:
    """Return a flat NumPy array."""
    return values.detach().reshape(-1).cpu().numpy()
