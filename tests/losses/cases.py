"""Every loss with its options, random arguments for it, and its formula from `oracle.py`."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure import losses
from tests.losses import oracle

B, T = 4, 5
TRAINED = {"chosen", "rejected", "nll", "logprobs"}  # the other arguments are constants


class Case(NamedTuple):
    """A loss with options; `arguments` names what it takes, and `rows` those that are (B,)."""

    loss: Callable[..., Tensor]
    arguments: tuple[str, ...]
    rows: bool = False
    options: dict = {}  # noqa: RUF012

    @property
    def name(self):
        return "-".join([self.loss.__name__, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def truth(self):
        return getattr(oracle, self.loss.__name__)

    def draw(self, dtype=torch.float64, spread=1.0):
        """Random arguments. A row of the mask is empty, another full; log p of a constant is near the model's."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        shape = (B,) if self.rows else (B, T)
        model = -spread * normal(*shape).abs() - 0.05
        drawn = {}
        for name in self.arguments:
            if name == "advantages":
                value = normal(*(shape if self.options.get("advantages_of") == "tokens" else shape[:1]))
            elif name in ("mask", "desirable"):
                value = normal(*shape) > 0
                value[0], value[-1] = True, False
            elif name in ("chosen", "rejected", "nll"):
                value = (1 if name == "nll" else -1) * (spread * normal(*shape).abs() + 0.05)
            else:
                value = model if name == "logprobs" else (model + 0.5 * normal(*shape)).clamp(max=-0.01)
            drawn[name] = value if value.dtype == torch.bool else value.to(dtype)
        return {name: value.requires_grad_() if name in TRAINED else value for name, value in drawn.items()}

    def call(self, arguments, **more):
        return self.loss(**arguments, **self.given, **more)

    def formula(self, arguments, **more):
        return self.truth(**arguments, **self.given, **more)

    @property
    def given(self):
        return {name: value for name, value in self.options.items() if name != "advantages_of"}


PAIRS = ("chosen", "rejected")
REFERENCE = (*PAIRS, "ref_chosen", "ref_rejected")
KTO = ("logprobs", "ref_logprobs", "desirable", "kl_logprobs", "ref_kl_logprobs")
POLICY = ("logprobs", "old_logprobs", "advantages", "mask")
WITH_REFERENCE = (*POLICY, "ref_logprobs")

SEQUENCES = [
    Case(losses.dpo_loss, REFERENCE, True),
    Case(losses.dpo_loss, REFERENCE, True, {"beta": 0.5, "label_smoothing": 0.2}),
    *(Case(losses.dpo_loss, REFERENCE, True, {"variant": variant, "beta": 0.7}) for variant in ("ipo", "hinge")),
    Case(losses.dpo_loss, REFERENCE, True, {"variant": "robust", "label_smoothing": 0.1}),
    Case(losses.simpo_loss, PAIRS, True),
    Case(losses.simpo_loss, PAIRS, True, {"beta": 3.0, "gamma": 0.4, "label_smoothing": 0.3}),
    Case(losses.orpo_loss, (*PAIRS, "nll"), True),
    Case(losses.cpo_loss, (*PAIRS, "nll"), True, {"alpha": 0.5, "label_smoothing": 0.2}),
    Case(losses.cpo_loss, (*PAIRS, "nll"), True, {"variant": "hinge", "beta": 0.4}),
    Case(losses.kto_loss, KTO, True),
    Case(losses.kto_loss, KTO, True, {"beta": 0.6, "desirable_weight": 1.3, "undesirable_weight": 0.8}),
]
TOKENS = [
    Case(losses.ppo_loss, POLICY),
    Case(losses.ppo_loss, POLICY, options={"advantages_of": "tokens", "epsilon_high": 0.3, "delta": 1.4}),
    Case(losses.unlikelihood_loss, ("logprobs", "mask")),
    *(Case(losses.focal_loss, ("logprobs", "mask"), options={"gamma": gamma}) for gamma in (0.0, 0.5, 2.0)),
    Case(losses.sequence_kd_loss, ("logprobs", "mask")),
    *(
        Case(losses.on_policy_distillation_loss, ("logprobs", "teacher_logprobs", "mask"), options={"estimator": name})
        for name in ("k1", "k2", "k3")
    ),
]
REDUCED = [
    Case(losses.rloo_loss, POLICY),
    Case(losses.grpo_loss, POLICY),
    Case(losses.grpo_loss, POLICY, options={"advantages_of": "tokens", "normalizer": 37.0, "epsilon_high": 0.28}),
    *(
        Case(losses.grpo_loss, WITH_REFERENCE, options={"beta": 0.3, "importance": importance, "aggregate": aggregate})
        for importance in ("token", "sequence")
        for aggregate in ("grpo", "dapo", "luspo")
    ),
    Case(losses.grpo_loss, POLICY, options={"aggregate": "dr_grpo", "max_completion_length": 9, "delta": 1.5}),
]
ALL = [*SEQUENCES, *TOKENS, *REDUCED]
