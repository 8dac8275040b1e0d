"""The backends that have registered themselves, and which of them runs on a device.

r rows of logits, V vocabulary, v columns of a piece of it
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from cynosure.loss.options import RowOptions
from cynosure.loss.pieces import Best, LossPart, Piece, StatsPart
from cynosure.loss.sizes import Sizes
from cynosure.loss.targets import TargetRows


@runtime_checkable
class Backend(Protocol):
    """A row kernel. It is handed raw logits z of one of its `dtypes`, which it may overwrite.

    Logits of another dtype reach it as a copy in the accumulation dtype, block by block.
    """

    name: str  # "family" or "family-variant": asking for the family gives the best of its variants
    priority: int  # of the backends that can run, the one with the highest is chosen
    about: str  # the reason to choose it, for `explain`
    dtypes: tuple[torch.dtype, ...]
    in_place: bool  # whether it reads z without changing it, unless it is to leave the gradient there

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on this device; None where it can."""

    def sizes(self, device: torch.device) -> Sizes:
        """How many rows of logits suit it on this device."""

    def loss_rows(self, z: Tensor, target: TargetRows, options: RowOptions, upstream: Tensor | None = None) -> Tensor:
        """Loss (r,) of whole rows (r, V); with upstream (r,), z becomes upstream * d(loss)/d(logits)."""

    def loss_piece(self, z: Tensor, piece: Piece, target: TargetRows, options: RowOptions) -> LossPart:
        """What a piece (r, v) of each row adds to its loss; a dense target's probabilities are the piece's (r, v)."""

    def stats_piece(
        self, z: Tensor, piece: Piece, index: Tensor, target_logit: Tensor, options: RowOptions, best: Best,
        beta: Sequence[float],
    ) -> StatsPart:  # fmt: skip
        """What a piece (r, v) adds to the statistics of `token_stats`; updates `best`.

        index (r,) are the target classes, target_logit (r,) their raw logits; beta B ascending inverse temperatures.
        """


REGISTERED: list[Backend] = []  # best first


def register(*backends: Backend) -> None:
    """Add backends. Raises ValueError for a name that is taken."""
    for backend in backends:
        if backend.name in (other.name for other in REGISTERED):
            raise ValueError(f"a backend named {backend.name!r} is registered already: choose another name")
        REGISTERED.append(backend)
    REGISTERED.sort(key=lambda backend: -backend.priority)


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and the reason."""

    name: str
    available: bool
    reason: str


def backends(device: str | torch.device = "cpu") -> list[BackendStatus]:
    """Every backend for tensors on this device, best first, and why it can or cannot run.

    Args:
        device: where the tensors are.

    Returns:
        A list of (name, available, reason).

    >>> backends()[-1]
    BackendStatus(name='torch', available=True, reason='torch operations run on any device and in any float dtype')
    """
    missing = [(backend, backend.unavailable(torch.device(device))) for backend in REGISTERED]
    return [BackendStatus(backend.name, why is None, why or backend.about) for backend, why in missing]


def choose_backend(name: str | None, device: str | torch.device = "cpu") -> tuple[Backend, str]:
    """The backend of that name, or the best one for None, and why. Raises ValueError for a name that cannot run."""
    missing = []
    for backend in REGISTERED:
        if name in (None, backend.name, family(backend)):
            why = backend.unavailable(torch.device(device))
            if why is None:
                return backend, "asked for by name" if name else f"the best here: {backend.about}"
            missing.append(why)
    if missing:
        raise ValueError(f"backend {name!r} cannot run here: {missing[0]}")
    known = dict.fromkeys(name for backend in REGISTERED for name in (family(backend), backend.name))
    raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(map(repr, known))}, or None to choose")


def family(backend: Backend) -> str:
    """The name that stands for the best of its variants."""
    return backend.name.partition("-")[0]
