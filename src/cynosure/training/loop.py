"""Hugging Face's Trainer on packed rows: exact means over tokens, metrics per step, and whole checkpoints."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from cynosure.loss import GradTolerance, SampledBackward, TokenSums, perplexity, record_sampling
from cynosure.patching import Objective, Patch
from cynosure.system.numbers import finite
from cynosure.system.quiet import quiet_transformers
from cynosure.training.folder import METRICS, PARTIAL, RunFolder, whole_or_nothing
from cynosure.training.integrity import reading, way_out_of
from cynosure.training.lora import name_base
from cynosure.training.packing import Packed
from cynosure.training.settings import TrainingPlan, TrainSettings
from cynosure.training.sharding import is_sharded, load_optimizer, load_weights, save_optimizer
from cynosure.training.watch import Diverged, Figures, Smoothed, Watcher, odd_beginning, what_is_wrong
from cynosure.training.whole import WholePacked

Validate = Callable[[int, int], Figures]  # (step, tokens so far) -> metrics
LARGE_BATCH = 32768  # tokens: smaller batches have noisier gradients, so their squares are averaged over more steps
SLOW, FAST = 0.99, 0.95  # beta2 of AdamW


class Rows(Dataset[dict[str, Tensor]]):
    """All rows of a training, in training order."""

    def __init__(self, packed: Packed | WholePacked, n_rows: int) -> None:
        self.packed, self.n_rows = packed, n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        row = self.packed[number]
        return {
            "input_ids": torch.from_numpy(row.input_ids),
            "labels": torch.from_numpy(row.targets),
            "position_ids": torch.from_numpy(row.position_ids),
        }


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows into a batch. Their labels are shifted already, which transformers calls `shift_labels`."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"shift_labels": batch["labels"]}


class Job(NamedTuple):
    """What a training needs besides its model and its rows."""

    settings: TrainSettings
    plan: TrainingPlan
    folder: RunFolder
    watcher: Watcher
    validate: Validate | None
    widths: NDArray[np.int64] | None  # bytes of each token; None if unknown
    fresh: bool  # the model is untrained


class Training(Trainer):
    """A Trainer on packed rows and the fused loss. Devices, processes, schedule and reporting stay Trainer's."""

    def __init__(self, model: Any, tokenizer: Any, rows: Rows, arguments: TrainingArguments, job: Job) -> None:
        eval_rows = rows if job.validate else None  # Trainer requires a data set; our validation ignores it
        arguments.save_only_model = is_sharded(model)  # Trainer cannot save a sharded optimizer: we do
        super().__init__(model, arguments, collate, rows, eval_dataset=eval_rows, processing_class=tokenizer)
        arguments.save_only_model = False
        self.remove_callback(PrinterCallback)
        self.settings, self.plan, self.folder, self.watcher, self.validate, widths, self.fresh = job
        self.widths = None if widths is None else torch.from_numpy(widths)
        self.tokenizer, self.packed = tokenizer, rows.packed
        self.patched = Patch.on(self.model)
        self.patched.objective = Objective(self.settings.z_loss, self.settings.label_smoothing)
        self.patched.grad_tolerance = cast(GradTolerance, self.settings.grad_tolerance)
        self.patched.generator = self.draws = torch.Generator()
        if not self.model_accepts_loss_kwargs:
            raise ValueError(f"{type(model).__name__} takes no num_items_in_batch, which the mean of a batch needs")
        before = self.folder.lines(METRICS)
        # Of this step and process: its shares of the mean loss and objective, its tokens, its bytes.
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.sampled = torch.zeros(4, dtype=torch.float64)  # the `sampling_sums` of this step
        self.n_micro = 0  # micro-batches of this step so far
        self.smoothed = Smoothed(line["loss"] for line in before)
        self.batch: list[dict[str, Tensor]] = []
        self.last = time.perf_counter()
        self.started = self.last - (before[-1]["seconds"] if before else 0.0)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the names of all matrices: gains and biases do not decay."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Call Trainer's method and remember the batch, in case the loss diverges on it."""
        samples = super().get_batch_samples(*args, **kwargs)
        self.batch = samples[0]
        return samples

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call Trainer's method, and add what its backward sampled to the sums of this step."""
        with record_sampling() as records:
            loss: Tensor = super().training_step(*args, **kwargs)
        self.sampled += sampling_sums(records)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the objective as Trainer computes it; the plain loss is added to the sums of this step."""
        seed, step, rank = self.settings.seed, self.state.global_step, self.args.process_index
        self.draws.manual_seed(seed_of(seed, step, rank, self.n_micro))
        self.n_micro += 1
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs["shift_labels"]
        counted = targets[targets >= 0]
        if self.patched.plain is None:
            name = type(self.patched.model).__name__
            raise ValueError(f"{name} does not divide its loss by the number of tokens of the whole batch")
        nats = float(self.patched.plain) / float(num_items_in_batch)
        objective = float(loss.detach()) / self.accelerator.num_processes
        n_bytes = 0 if self.widths is None else int(self.widths[counted.cpu()].sum())
        self.sums += torch.tensor([nats, objective, counted.numel(), n_bytes], dtype=torch.float64)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the metrics of a step to the run's folder, and pass them to the watcher and Trainer's reporters.

        Raises Diverged if the loss diverges; nothing has been saved since then.
        """
        if "learning_rate" not in logs:
            return  # Trainer's summary at the end
        metrics = self.metrics(logs["grad_norm"], logs["learning_rate"])
        wrong = what_is_wrong(metrics["loss"], metrics["grad_norm"], self.smoothed.value, self.settings.spike)
        if wrong:
            self.stop(wrong)
        if self.state.global_step == 1:
            odd = odd_beginning(self.patched.model, metrics["loss"], self.n_classes, self.fresh)
            if odd:
                self.watcher.note(odd)
        self.smoothed.add(metrics["loss"])
        metrics["smoothed"] = metrics["loss"] if self.smoothed.value is None else self.smoothed.value
        if self.args.should_save:
            self.folder.append(METRICS, metrics)
        self.watcher.step(metrics)
        shown = {
            name: value for name, value in metrics.items() if value is not None and name not in ("step", "seconds")
        }
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, shown)

    @property
    def n_classes(self) -> int:
        return int(self.patched.model.get_output_embeddings().weight.shape[0])

    def metrics(self, grad_norm: float, learning_rate: float) -> Figures:
        """Return the metrics of the last step, over all processes.

        `tokens` counts all rows so far, with padding; other counts are of this step. The last two depend on the clock.
        """
        local = torch.cat([self.sums, self.sampled])
        self.sums, self.sampled, self.n_micro = torch.zeros_like(self.sums), torch.zeros_like(self.sampled), 0
        if self.accelerator.num_processes > 1:
            local = self.accelerator.reduce(local.to(self.accelerator.device), "sum").cpu()
        nats, objective, tokens, n_bytes, *sampled = local.tolist()
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        step, n_rows = self.state.global_step, self.plan.batch_rows
        n_padding = self.packed.n_padding((step - 1) * n_rows, step * n_rows)
        return {
            "step": step,
            "tokens": step * self.plan.batch_tokens,
            "predicted_tokens": int(tokens),
            "padding_tokens": n_padding,
            "loss": nats,
            **({} if self.patched.objective == Objective() else {"objective": objective}),
            "perplexity": finite(perplexity(nats)),
            "bits_per_byte": finite(TokenSums(int(tokens), nats * tokens, n_bytes=int(n_bytes)).bits_per_byte),
            "grad_norm": grad_norm,
            **sampling_metrics(*sampled),
            "learning_rate": learning_rate,
            "seconds": now - self.started,
            "tokens_per_second": (self.plan.batch_tokens - n_padding) / seconds,
        }

    def stop(self, why: str) -> None:
        """Save the batch that diverged, and raise Diverged."""
        step, rank = self.state.global_step, self.args.process_index
        name = f"diverged-{step:06d}{f'-process-{rank}' if self.args.world_size > 1 else ''}.json"
        decode = self.tokenizer.decode
        texts = [decode(row) for batch in self.batch for row in batch["input_ids"]]
        ids = [row.tolist() for batch in self.batch for row in batch["input_ids"]]
        self.folder.put(name, {"step": step, "why": why, "texts": texts, "input_ids": ids})
        last = next(reversed(self.folder.checkpoints.values()), None)
        way_on = "there is no checkpoint yet: start again with a lower `learning_rate`"
        if last:
            again = str(self.settings.init if self.settings.lora else last)
            way_on = f"the last good checkpoint is {last}: start from `init={again!r}` with a lower `learning_rate`"
        raise Diverged(f"training diverged at step {step:,}: {why}; the batch is in {self.folder / name}; {way_on}")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Run our validation instead of Trainer's evaluation."""
        assert self.validate is not None
        step = self.state.global_step
        self.patched.model.eval()
        validation = self.validate(step, step * self.plan.batch_tokens)
        self.last = time.perf_counter()  # the next step's time excludes the validation
        metrics = {"eval_loss": validation["nats_per_token"]["value"]}
        if validation["bits_per_byte"]["value"] is not None:
            metrics["eval_bits_per_byte"] = validation["bits_per_byte"]["value"]
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model for its users, with its cache of keys and values on."""
        config = self.patched.model.config
        config.use_cache = True
        try:
            with quiet_transformers():
                super().save_model(output_dir, _internal_call)
        finally:
            config.use_cache = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights, with Trainer only if they are an adapter: it skips those saved under other names."""
        place = Path(resume_from_checkpoint)
        if self.settings.lora is None:
            load_weights(self.model, place)
        else:
            with reading(place, way_out_of(place)):
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save both, without Trainer if the model is sharded: it saves only the leader's part."""
        if not self.settings.fsdp:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        save_optimizer(self.model, self.optimizer, Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, or raise: Trainer silently continues without missing files."""
        if checkpoint is None:
            return
        place = Path(checkpoint)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        if self.settings.fsdp:
            load_optimizer(self.model, self.optimizer, place)
        else:
            self.optimizer.load_state_dict(tensors_in(place / OPTIMIZER_NAME))
        self.lr_scheduler.load_state_dict(tensors_in(place / SCHEDULER_NAME))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load the random state, or raise: Trainer silently continues without a missing one."""
        if checkpoint is None:
            return
        number = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        path = Path(checkpoint) / f"rng_state{number}.pth"
        with reading(path, way_out_of(path.parent)):
            if not any(path.parent.glob("rng_state*.pth")):  # another number of processes wrote other names
                raise FileNotFoundError("it is missing")
            super()._load_rng_state(checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / PARTIAL)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as Trainer does, but in a temporary place, from which it is renamed."""
        partial = Path(self._get_output_dir(trial))
        if self.args.should_save:
            partial.mkdir(exist_ok=True)
        self.accelerator.wait_for_everyone()
        with whole_or_nothing(partial):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                step = self.state.global_step
                checkpoint = partial / f"checkpoint-{step}"
                if self.settings.lora is not None:
                    name_base(checkpoint, self.settings, self.folder.manifest.get("init_sha256"))
                self.folder.keep(checkpoint, step)
        self.accelerator.wait_for_everyone()
        self.last = time.perf_counter()


def seed_of(*numbers: int) -> int:
    """Mix numbers into a seed: a resumed run draws as an uninterrupted one, other processes and steps differently.

    >>> seed_of(0, 1, 0, 0) == seed_of(0, 1, 0, 0), seed_of(0, 1, 0, 0) == seed_of(0, 0, 1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def sampling_sums(records: list[SampledBackward]) -> Tensor:
    """Return (4,): the tokens of the records; their sums of the share of columns, and of both squared errors."""
    rows = [[1.0, r.columns_kept, r.dhidden_error**2, r.dweight_error**2] for r in records]
    tokens = torch.tensor([r.n_tokens for r in records], dtype=torch.float64)
    return tokens @ torch.tensor(rows, dtype=torch.float64).view(-1, 4)


def sampling_metrics(tokens: float, columns: float, dhidden: float, dweight: float) -> Figures:
    """Return the mean share of columns kept and the root mean square errors; {} if no backward was sampled."""
    if not tokens:
        return {}
    errors = {"dhidden_error": dhidden, "dweight_error": dweight}
    return {"columns_kept": columns / tokens} | {name: finite(math.sqrt(x / tokens)) for name, x in errors.items()}


def tensors_in(path: Path) -> Any:
    """Load a torch file of tensors and numbers. Raises Damaged for anything else: no code in it is run."""
    with reading(path, way_out_of(path.parent)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise ValueError("it is damaged, or holds more than tensors and numbers") from error


def check_state(checkpoint: Path, step: int) -> None:
    """Raise Damaged unless Trainer's state in a checkpoint is of this step."""
    path = checkpoint / TRAINER_STATE_NAME
    with reading(path, way_out_of(checkpoint)):
        state = TrainerState.load_from_json(str(path))
        if state.global_step != step:
            raise ValueError(f"it is of step {state.global_step}")


def arguments_of(
    settings: TrainSettings, plan: TrainingPlan, folder: RunFolder, *, bfloat16: bool, cpu: bool,
    report_to: tuple[str, ...], validated: bool,
) -> TrainingArguments:  # fmt: skip
    """Return the arguments of Trainer: AdamW, the schedule, clipping, one line of metrics per step."""
    schedule = {"cosine": ("cosine", {}), "wsd": ("warmup_stable_decay", {"num_decay_steps": plan.decay_steps})}
    kind, options = schedule[settings.schedule]
    arguments = TrainingArguments(
        output_dir=str(folder.path),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_rows,
        gradient_accumulation_steps=plan.accumulation,
        train_sampling_strategy="sequential",  # the rows are in order already
        remove_unused_columns=False,
        use_cache=False,  # with a cache, transformers does not keep the documents of a row apart
        optim="adamw_torch_fused",
        adam_beta2=SLOW if plan.batch_tokens < LARGE_BATCH else FAST,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=options,
        warmup_steps=plan.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        average_tokens_across_devices=True,
        bf16=bfloat16,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validated else "no",
        eval_steps=plan.validate_steps if validated else None,
        metric_for_best_model="loss" if validated else None,
        greater_is_better=False if validated else None,
        save_strategy="steps",
        save_steps=plan.validate_steps,
        report_to=list(report_to),
        disable_tqdm=True,
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and plan.processes > 1 else None,
        seed=settings.seed,
    )
    # One device per process: with several, Trainer would use DataParallel and multiply the batch.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
