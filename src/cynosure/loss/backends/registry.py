"""The registered backends, and the choice of one for a device.

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


class ColumnSums(NamedTuple):
    """Sums over the rows i of d(logits) d (r, V), in the accumulation dtype; the last two may be left out."""

    squares: Tensor  # (V,) sum of d_iv^2
    weighed: Tensor  # (V,) sum of weight_i d_iv^2
    projected: Tensor  # (V,) sum of along_i d_iv


@runtime_checkable
class Backend(Protocol):
    """A row kernel. It receives raw logits z in one of its `dtypes`, and may overwrite them.

    Logits of another dtype are copied to the accumulation dtype first, block by block.
    """

    name: str  # "family" or "family-variant": the family's name selects the best of its variants
    priority: int  # the backend with the highest priority is chosen among those that can run
    about: str  # the reason to choose it, for `explain`
    dtypes: tuple[torch.dtype, ...]
    in_place: bool  # whether it leaves z unchanged unless it writes the gradient there

    def unavailable(self, device: torch.device) -> str | None:
        """Return why it cannot run on this device, or None if it can."""

    def sizes(self, device: torch.device) -> Sizes:
        """Return the numbers of rows of logits that suit it on this device."""

    def loss_rows(self, z: Tensor, target: TargetRows, options: RowOptions, upstream: Tensor | None = None) -> Tensor:
        """Return the loss (r,) of whole rows (r, V); with upstream (r,), z becomes upstream * d(loss)/d(logits)."""

    def loss_piece(self, z: Tensor, piece: Piece, target: TargetRows, options: RowOptions) -> LossPart:
        """Return what a piece (r, v) adds to the loss; a dense target has the piece's probabilities (r, v)."""

    def stats_piece(
        self, z: Tensor, piece: Piece, index: Tensor, target_logit: Tensor, options: RowOptions, best: Best,
        beta: Sequence[float],
    ) -> StatsPart:  # fmt: skip
        """Return what a piece (r, v) adds to the statistics of `token_stats`; update `best`.

        index (r,) are the target classes, target_logit (r,) their raw logits; beta B ascending inverse temperatures.
        """

    def column_sums(self, dlogits: Tensor, weight: Tensor | None, along: Tensor | None) -> ColumnSums:
        """Sum over the rows of d(logits) (r, V) of any dtype; without weight and along (r,) each, only the squares."""

    def take_columns(self, dlogits: Tensor, ids: Tensor, factor: Tensor) -> Tensor:
        """Return the columns `ids` (K,) of d(logits) (r, V), each times its factor (K,), as a matrix (r, K)."""

    def row_squares(self, weight: Tensor) -> Tensor:
        """Return the squared norms (V,) of the rows of a weight (V, D) of any dtype, in the accumulation dtype."""


REGISTERED: list[Backend] = []  # best first


def register(*backends: Backend) -> None:
    """Add backends. Raises ValueError if a name is taken."""
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
    """List all backends for tensors on this device, best first, and why each can or cannot run.

    Args:
        device: device of the tensors.

    Returns:
        A list of (name, available, reason).

    Example:
        >>> backends()[-1]
        BackendStatus(name='torch', available=True, reason='torch operations run on any device and in any float dtype')
    """
    missing = [(backend, backend.unavailable(torch.device(device))) for backend in REGISTERED]
    return [BackendStatus(backend.name, why is None, why or backend.about) for backend, why in missing]


def choose_backend(name: str | None, device: str | torch.device = "cpu") -> tuple[Backend, str]:
    """Return the backend of that name, or the best one for None, and why. Raises ValueError if it cannot run."""
    missing = []
    for backend in REGISTERED:
        if name in (None, backend.name, family(backend)):
            why = backend.unavailable(torch.device(device))
            if why is None:
                return backend, "selected by name" if name else f"the best here: {backend.about}"
            missing.append(why)
    if missing:
        raise ValueError(f"backend {name!r} cannot run here: {missing[0]}")
    known = dict.fromkeys(name for backend in REGISTERED for name in (family(backend), backend.name))
    raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(map(repr, known))}, or None")


def family(backend: Backend) -> str:
    """Return the name that selects the best of the backend's variants."""
    return backend.name.partition("-")[0]
