"""When a training has gone wrong, by the figures of a step."""

import math

import pytest

from cynosure.training.watch import what_is_wrong


@pytest.mark.parametrize(
    ("loss", "grad_norm", "smoothed", "said"),
    [
        (7.9, 1.0, 5.0, None),
        (8.1, 1.0, 5.0, "more than 3 nats above its smoothed value 5.0000"),
        (1.9, 1.0, 0.5, None),
        (3.6, 1.0, 0.5, "more than 3 nats above its smoothed value 0.5000"),
        (99.0, 1.0, None, None),
        (math.nan, 1.0, 5.0, "the loss is nan"),
        (5.0, math.inf, 5.0, "the gradient norm is inf"),
    ],
)
def test_a_loss_stops_a_training_so_many_nats_above_the_smoothed_one(
    loss: float, grad_norm: float, smoothed: float | None, said: str | None
) -> None:
    found = what_is_wrong(loss, grad_norm, smoothed, spike=3.0)
    assert found is None if said is None else found is not None and said in found
