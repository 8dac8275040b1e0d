"""Rotary positions that depend on the longest row of a batch: LongRoPE and dynamic NTK scaling.

LongRoPE (Ding et al. 2024) has one set of factors for texts up to its original length, and another for longer texts.
Dynamic NTK has other frequencies for every longer length. transformers chooses them by the longest row, and keeps
those of dynamic NTK until a short text follows.
"""

from typing import Any, NamedTuple

import torch
from torch import nn


class Regimes(NamedTuple):
    """Ranges of lengths in which all texts have the same rotary positions."""

    edges: tuple[int, ...] = ()  # the longest length of each regime except the last
    grows: bool = False  # beyond an edge, every length is a regime

    def of(self, length: int) -> int:
        """Return the regime of a text of this many tokens.

        >>> Regimes((4096,)).of(4096), Regimes((4096,)).of(4097), Regimes((64,), grows=True).of(80)
        (0, 1, 80)
        """
        passed = sum(edge < length for edge in self.edges)
        return length if passed and self.grows else passed

    def note(self, window: int) -> str | None:
        """Return a note for windows of this length if they may be in several regimes."""
        if not self.of(window):
            return None
        edge = f"{self.edges[0]:,} tokens"
        apart = f"texts longer than {edge} go apart by their length" if self.grows else f"windows up to {edge} go apart"
        return f"the model's rotary positions depend on the longest row of a batch: {apart}"


def read_regimes(model: nn.Module) -> Regimes:
    """Return the regimes of a transformers model: a single one if its rotary positions are fixed."""
    dependent = rotary(model)
    return Regimes(tuple(sorted({edge for _, _, edge, _ in dependent})), any(grows for *_, grows in dependent))


def rotary(model: nn.Module) -> "list[tuple[nn.Module, str | None, int, bool]]":
    """Return modules whose rotary positions depend on length, each with its layer type, edge and whether it grows."""
    dependent: list[tuple[nn.Module, str | None, int, bool]] = []
    for module in model.modules():
        types: Any = getattr(module, "rope_type", None)
        for layer, kind in types.items() if isinstance(types, dict) else [(None, types)]:
            if not isinstance(kind, str) or not (kind == "longrope" or "dynamic" in kind):
                continue
            edge = original_length(module, layer) if kind == "longrope" else getattr(module, "original_max_seq_len", 0)
            if isinstance(edge, int) and edge > 0:
                dependent.append((module, layer, edge, kind != "longrope"))
    return dependent


def original_length(module: Any, layer: str | None) -> Any:
    """Return the length up to which LongRoPE uses its short factors."""
    values = getattr(module.config, "rope_parameters", None) or {}
    values = values if layer is None else values.get(layer, {})
    return values.get("original_max_position_embeddings") or getattr(
        module.config, "original_max_position_embeddings", None
    )


class Forgetting:
    """Resets dynamic rotary positions, which otherwise stay those of a long text until a short one follows."""

    def __init__(self, model: nn.Module) -> None:
        self.growing = [(module, layer) for module, layer, _, grows in rotary(model) if grows]

    @torch.no_grad()
    def __call__(self) -> None:
        """Set them to those of a short text, as before the first call."""
        for module, layer in self.growing:
            x = next(module.buffers()).new_zeros(1, 1, 1)
            positions = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
            module(x, positions, **({} if layer is None else {"layer_type": layer}))
