"""Implementations with a fault, in a module of their own because workers import it."""

import os
import time

import torch

from benchmarks.implementation import Implementation, Unavailable
from benchmarks.loss.implementations import Inputs, Outputs, Step, build_eager


def build_scaled(inputs: Inputs) -> Step:
    """dweight is a hundred-thousandth too large."""
    right = build_eager(inputs)

    def step() -> Outputs:
        outputs = right()
        return outputs._replace(dweight=outputs.dweight * (1 + 1e-5))

    return step


def build_one_row(inputs: Inputs) -> Step:
    """dhidden of a single token is that of its neighbour."""
    right = build_eager(inputs)

    def step() -> Outputs:
        outputs = right()
        outputs.dhidden[7] = outputs.dhidden[8]
        return outputs

    return step


def build_offset(inputs: Inputs) -> Step:
    """The loss is a millionth too large."""
    right = build_eager(inputs)

    def step() -> Outputs:
        outputs = right()
        return outputs._replace(loss=outputs.loss * (1 + 1e-6))

    return step


def build_nan(inputs: Inputs) -> Step:
    right = build_eager(inputs)
    return lambda: right()._replace(loss=torch.tensor(torch.nan))


def build_wrong_when_large(inputs: Inputs) -> Step:
    """Right at the tokens of the check, wrong at more: seen only by checking what is timed."""
    return build_eager(inputs) if len(inputs.hidden) <= 256 else build_scaled(inputs)


def build_slow(inputs: Inputs) -> Step:
    """Never done with more tokens than those of the check."""
    right = build_eager(inputs)

    def step() -> Outputs:
        time.sleep(600 if len(inputs.hidden) > 256 else 0)
        return right()

    return step


def build_hungry(inputs: Inputs) -> Step:
    """Takes 200 MiB on its way."""
    right = build_eager(inputs)

    def step() -> Outputs:
        block = torch.ones(50 * 2**20)
        outputs = right()
        del block
        return outputs

    return step


def build_crash(inputs: Inputs) -> Step:
    os.abort()


def build_raise(inputs: Inputs) -> Step:
    raise RuntimeError("no room\nfor the rest")


def build_unavailable(inputs: Inputs) -> Step:
    raise Unavailable("needs a GPU")


def build_not_installed(inputs: Inputs) -> Step:
    import a_peer_that_is_not_there  # noqa: F401

    raise AssertionError


def planted(name: str) -> Implementation:
    """The implementation of that name."""
    return Implementation(name, f"planted: {name}", globals()[f"build_{name}"])
