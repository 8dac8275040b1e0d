"""TRL's trainers a step at a time, with their own head or an exact one."""

import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.train.stepping import BLOCK, Recording, Stepper, options
from benchmarks.trainers.implementations import TrainersWork, letters

trl: Any = import_module("trl")  # it resolves its names when asked for, so that a type checker sees none

N_ITERATIONS = 2  # steps on each generation: in the first, the loss of a policy is 0 whatever the log-probabilities are


class Timed(Recording):
    """A trainer that keeps the seconds of every loss with its backward, without what comes before: generation."""

    loss_seconds: list[float]
    rewards: list[float]
    reward: str  # the name of these among its metrics
    _metrics: dict[str, dict[str, list[float]]]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.began = time.perf_counter()
        return super().compute_loss(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.loss_seconds.append(time.perf_counter() - self.began)
        self.rewards = list(self._metrics["train"][self.reward])  # of all steps, until the training ends
        return loss


class TimedDPO(Timed, trl.DPOTrainer):  # type: ignore[misc]
    reward = "rewards/margins"


class TimedGRPO(Timed, trl.GRPOTrainer):  # type: ignore[misc]
    reward = "reward"


def stepper(work: TrainersWork, change: Callable[[Any], Any] = lambda trainer: None) -> Stepper:
    """Steps of the trainer after `change` was applied to it."""
    with tempfile.TemporaryDirectory() as folder:  # nothing is ever saved, but it asks for one
        trainer = TRAINERS[work.trainer](work, folder)
    trainer.loss_seconds = []
    change(trainer)
    torch.manual_seed(0)  # of what a policy samples
    return Stepper(trainer)


def dpo(work: TrainersWork, folder: str) -> Timed:
    n_pairs = work.n_texts // 2
    settings = options(work.n_steps, n_pairs, work.autocast)
    model, reference = work.load(), work.load()
    made: Timed = TimedDPO(
        model.model, reference.model, trl.DPOConfig(folder, gradient_checkpointing=False, max_length=None, **settings),
        train_dataset=Dataset.from_list(work.rows), processing_class=padding(model.tokenizer),
    )  # fmt: skip
    return made


def grpo(work: TrainersWork, folder: str) -> Timed:
    """All completions of a step are of one prompt."""
    settings = options(work.n_steps, work.n_texts, work.autocast)
    settings |= {"num_generations": work.n_texts, "max_completion_length": work.n_new, "num_iterations": N_ITERATIONS}
    settings |= {"steps_per_generation": 1, "shuffle_dataset": False}
    model = work.load()
    kind: Any = TimedGRPO
    made: Timed = kind(
        model.model, letters, trl.GRPOConfig(folder, gradient_checkpointing=False, **settings),
        train_dataset=Dataset.from_list(work.rows), processing_class=padding(model.tokenizer),
    )  # fmt: skip
    return made


TRAINERS: dict[str, Callable[[TrainersWork, str], Timed]] = {"dpo": dpo, "grpo": grpo}


def padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def widen_head() -> None:
    """Let TRL compute log-probabilities, and their gradients, in a wider dtype than the model's, in this process."""
    utils = import_module("trl.trainer.utils")

    class Wide:
        apply = staticmethod(wide_logprobs)

    setattr(utils, "_ChunkedLogProbFunction", Wide)  # noqa: B010


def wide_logprobs(hidden: Tensor, weight: Tensor, bias: None, targets: Tensor, *others: Any) -> tuple[Any, ...]:
    """What `ChunkedLogProbFunction` returns, its log-probabilities rounded once: of a head that is but a matrix."""
    from trl.kernels import ChunkedLogProbFunction

    call: Any = ChunkedLogProbFunction.apply
    with torch.no_grad():
        _, *metrics = call(hidden, weight, bias, targets, *others)
    wide = torch.float64 if weight.dtype == torch.float32 else torch.float32
    with torch.autocast("cpu", enabled=False):
        rows, by_class = hidden.to(wide), weight.to(wide)
        blocks = zip(torch.split(rows, BLOCK), torch.split(targets, BLOCK), strict=True)
        nats = [checkpoint(block_nats, block, by_class, wanted, use_reentrant=False) for block, wanted in blocks]
        return -torch.cat(nats).float(), *metrics


def block_nats(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target, reduction="none")
