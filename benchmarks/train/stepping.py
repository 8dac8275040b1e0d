"""Fine-tuning by Hugging Face's Trainer a step at a time, with the model's own loss or another in its place."""

import functools
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.loss.implementations import Inputs, Outputs
from benchmarks.loss.limit import best_provider, chunked_gemms, whole_gemms
from benchmarks.train.implementations import TrainWork
from cynosure.models.head import Tracer
from cynosure.patching.heads import Deferring

LEARNING_RATE = 1e-5
BLOCK = 256  # rows of logits that the exact loss holds at a time

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # hidden (N, D), weight (V, D), target (N,), their number


class Recording(Trainer):
    """Trainer, which keeps the loss of every step as it is, where the logger would round it."""

    losses: list[float]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


class Stepper(TrainerCallback):
    """Each call is one step of `trainer.train()`, from the end of the step before: batch, model, clipping, optimizer.

    Trainer runs in a thread of its own, which waits between calls. It ends with the last step, or when one fails: the
    call raises what was raised there.
    """

    def __init__(self, trainer: Recording) -> None:
        self.trainer = trainer
        trainer.losses = []
        trainer.add_callback(self)
        self.error: BaseException | None = None
        self.may_go, self.has_gone = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self.train, daemon=True).start()

    def __call__(self) -> float:
        self.may_go.release()
        self.has_gone.acquire()
        if self.error is not None:
            raise self.error
        return self.trainer.losses[-1]

    def train(self) -> None:
        self.may_go.acquire()
        try:
            self.trainer.train()
        except BaseException as error:  # raised again where the step was asked for
            self.error = error
        self.has_gone.release()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < state.max_steps:
            self.has_gone.release()
            self.may_go.acquire()


def stepper(work: TrainWork) -> Stepper:
    """Steps of Trainer on these texts."""
    data = [{"input_ids": ids, "labels": ids} for ids in work.texts]
    with tempfile.TemporaryDirectory() as folder:  # nothing is ever saved, but it asks for one
        return Stepper(Recording(work.model.model, arguments(work, folder), train_dataset=data))


def arguments(work: TrainWork, folder: str) -> TrainingArguments:
    """AdamW, clipping and batches as Trainer has them by default; nothing is logged or saved."""
    return TrainingArguments(output_dir=folder, **options(work.n_steps, work.n_rows, work.autocast))


def options(n_steps: int, n_rows: int, autocast: bool) -> dict[str, Any]:
    return {
        "max_steps": n_steps,
        "per_device_train_batch_size": n_rows,
        "train_sampling_strategy": "sequential",  # in the order in which a loop of one's own goes through them
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": autocast,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }


def replace_loss(model: Any, loss_of: Loss) -> None:
    """Make the model's forward one of its backbone and this loss."""
    weight, own = model.get_output_embeddings().weight, model.forward

    @functools.wraps(model.forward)
    def forward(*, input_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor, **_: Any) -> dict[str, Tensor]:
        with Deferring(model, Tracer()):
            hidden = own(input_ids=input_ids, use_cache=False).logits.recipe.hidden
        rows, target = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return {"loss": loss_of(rows, weight, target, num_items_in_batch)}

    model.forward = forward


def exact_loss(hidden: Tensor, weight: Tensor, target: Tensor, n_items: Tensor) -> Tensor:
    """The cross-entropy in a wider dtype than the model's: its gradients are rounded once, when they are done."""
    wide = torch.float64 if weight.dtype == torch.float32 else torch.float32
    with torch.autocast("cpu", enabled=False):
        rows, by_class = hidden.to(wide), weight.to(wide)
        blocks = zip(torch.split(rows, BLOCK), torch.split(target, BLOCK), strict=True)
        nats = [checkpoint(block_nats, block, by_class, wanted, use_reentrant=False) for block, wanted in blocks]
        return torch.stack(nats).sum() / n_items


def block_nats(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target, reduction="sum")


class Products(torch.autograd.Function):
    """Costs what the matmuls of `make` cost, forward and backward. Its value is 0, its gradients mean nothing."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, make: Callable[[Inputs], Outputs]) -> Tensor:
        made = make(Inputs(hidden, weight, hidden.new_empty(0)))
        ctx.gradients = made.dhidden, made.dweight
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor, None]:
        dhidden, dweight = ctx.gradients
        del ctx.gradients
        return dhidden, dweight, None


def products_only(work: TrainWork) -> Loss:
    """The head's three matmuls by the fastest library, all rows at once or in our chunks, whichever is faster."""
    weight = work.model.model.get_output_embeddings().weight.detach()
    dtype = torch.bfloat16 if work.autocast else weight.dtype
    n_tokens = work.n_rows * (len(work.texts[0]) - 1)
    trial = Inputs(torch.randn(n_tokens, weight.shape[1]).to(dtype), weight.to(dtype), torch.empty(0))
    provider = best_provider(trial)

    def seconds(gemms: Callable[[Inputs, str], Outputs]) -> float:
        start = time.perf_counter()
        gemms(trial, provider)
        return time.perf_counter() - start

    fastest = min((whole_gemms, chunked_gemms), key=seconds)

    def loss_of(hidden: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
        made: Tensor = Products.apply(hidden.to(dtype), weight.to(dtype), lambda inputs: fastest(inputs, provider))  # type: ignore[no-untyped-call]
        return made

    return loss_of
