"""Put TRL's trainers that compute log-probabilities of preferred texts from full logits on the fused loss."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cynosure.patching.labelled import EXACT, IGNORED, Labelled, Sampled
from cynosure.patching.pending import deferred_recipe
from cynosure.patching.recipe import Recipe
from cynosure.patching.replaced import agree, arguments
from cynosure.patching.served import refused
from cynosure.patching.trainer import TrainerPatch
from cynosure.patching.verify import attribute

LOGITS = slice(2, 4)  # of the chosen and the rejected texts, in what `concatenated_forward` returns
UNLIKE = "its log-probabilities are not those of TRL 1.16: train it unpatched"


class PreferencePatch(TrainerPatch):
    """The handle of a patched CPOTrainer or ORPOTrainer, whose logits serve log-probabilities, a loss, and a mean."""

    REPLACED = ("concatenated_forward", "get_batch_logps")

    @staticmethod
    def check(trainer: Any) -> None:
        """Raise ValueError if the trainer's log-probabilities are not those that we know."""
        if not agree(both_logps(trainer.get_batch_logps)):
            raise refused(UNLIKE)

    def replace(self) -> None:
        trainer = self.trainer
        self.own_forward, self.own_logps = trainer.concatenated_forward, trainer.get_batch_logps
        trainer.concatenated_forward, trainer.get_batch_logps = self.concatenated_forward, self.get_batch_logps

    def concatenated_forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call the trainer's own with deferred logits; return the means over the classes in place of two logits.

        The trainer takes the means of these logits, for its log. All tokens have equally many classes.
        """
        with attribute(self.model_patch, "without_labels", True):
            parts = list(self.own_forward(*args, **kwargs))
        parts[LOGITS] = (mean_logits(logits) for logits in parts[LOGITS])
        return tuple(parts)

    def get_batch_logps(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute what the trainer's own function would."""
        given = arguments(self.own_logps, *args, **kwargs)
        recipe = deferred_recipe(given["logits"])
        if recipe is None or given["labels"].shape != recipe.rows:
            return self.own_logps(*args, **kwargs)  # type: ignore[no-any-return]
        self.model_patch.ready()
        return recipe.hooked(batch_logps(recipe, given, self.model_patch.sampled))


def batch_logps(recipe: Recipe, given: dict[str, Any], sampled: Sampled = EXACT) -> Tensor:
    """Return what TRL's function does for the logits of a recipe: the log-probability of each text, (B,)."""
    shift = 0 if given["is_encoder_decoder"] else 1
    labels = given["labels"].to(recipe.hidden.device)
    total = -Labelled(recipe, labels, shift).loss("none", sampled=sampled).sum(-1)
    return total / (labels[:, shift:] != IGNORED).sum(-1) if given["average_log_prob"] else total


def mean_logits(logits: Any) -> Any:
    """Return the mean (...) of each token's logits (..., V) if these are deferred; others as they are."""
    recipe = deferred_recipe(logits)
    if recipe is None:
        return logits
    return Labelled(recipe, torch.zeros(recipe.rows, dtype=torch.long, device=recipe.hidden.device)).mean_logits()


def both_logps(own: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the results of `batch_logps` and of a trainer's own function on a few random tokens."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    dtype = torch.float32
    recipe = Recipe(draw(2, 4, 3), draw(7, 3), None, 1.0, None, dtype, dtype, dtype)
    labels = torch.tensor([[IGNORED, 1, 2, 3], [0, IGNORED, 6, IGNORED]])
    for average, shifted in ((True, False), (False, True)):
        call = arguments(own, recipe.logits(), labels.clone(), average, shifted)
        yield batch_logps(recipe, call), own(**call)
