"""The settings of a training, and the plan derived from them."""

import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from cynosure.models import PACKAGED
from cynosure.text import CHAT, OVERLONG, SPECIAL
from cynosure.training.presets import Preset, find_preset

SCHEDULES = ("cosine", "wsd")
DTYPES = ("auto", "float32", "bfloat16")
TOKENS = "tokens"  # the unit of settings that people write as 500k or 20M
TOLERANCE = "tolerance"  # the unit of a setting that is a number or "dtype"
EPOCHS = 4  # at most, by default, for a new model: more teach little (Muennighoff et al. 2023)
TOKENS_A_PARAMETER = 20  # by default, for a new model (Hoffmann et al. 2022)
MICRO_TOKENS = {"cpu": 4096}  # per forward pass, at most by default
MICRO_TOKENS_ELSEWHERE = 16384
VALIDATIONS = 10  # per run, by default
FINE_TUNING = {"row_tokens": 512, "batch_tokens": 4096}
WHOLE_ROWS = (512, 1024, 2048)  # row lengths to choose from when fine-tuning on whole documents
LEARNING_RATES = {"full": 2e-5, "lora": 2e-4}  # of fine-tuning


class Option(NamedTuple):
    """What a setting means; the command line generates its options from this."""

    help: str
    shown: str | None = None  # the default in words, if the field's value does not tell it
    choices: tuple[str, ...] = ()
    unit: str = ""
    metavar: str = ""


def option(default: Any, help: str, **more: Any) -> Any:
    """Return a field of `TrainSettings`, with its `Option`."""
    return field(default=default, metadata={"option": Option(help, **more)})


@dataclass(frozen=True)
class TrainSettings:
    """What to train, and how. None means the default of the preset, the model or the texts.

    `cynosure train --help` explains every setting.

    Raises:
        ValueError: a setting has an invalid value or contradicts another; the message names it.

    Example:
        >>> TrainSettings(init="smollm2", tokens=1_000_000).given
        {'init': 'smollm2', 'tokens': 1000000}
    """

    preset: str | None = option(
        None, "Size of a new model: tiny (1M parameters), small (10M) or base (124M).", shown="small, without `init`"
    )
    init: str | None = option(None, "Start from this model instead of a new one.", metavar="MODEL")
    lora: int | None = option(None, "Train only LoRA updates of this rank; needs `init`.", metavar="RANK")
    tokenizer: str | None = option(None, "Tokenizer of a new model: a folder or hub id.", shown="made from the texts")
    vocab_size: int | None = option(None, "Vocabulary size of a tokenizer made from the texts.", shown="the preset's")
    special: str = option("text", "Read special tokens in the texts as plain text, or parse them.", choices=SPECIAL)
    chat: str = option("assistant", "Chat turns to train on: the assistant's, or all.", choices=CHAT)
    hold_out: float = option(0.1, "Fraction of the documents to hold out.", shown="0.1; 0 with `valid`")
    tokens: int | None = option(
        None, "Total training tokens.", unit=TOKENS,
        shown="20 per parameter, at most 4 epochs; 1 epoch with `init`",
    )  # fmt: skip
    batch_tokens: int | None = option(
        None, "Tokens per step, over all processes.", unit=TOKENS, shown="the preset's; 4096 with `init`"
    )
    row_tokens: int | None = option(
        None, "Tokens per row, the context length.", unit=TOKENS,
        shown="the preset's; 512 with `init`, up to 2048 with prompts",
    )  # fmt: skip
    micro_rows: int | None = option(None, "Rows per forward pass of a process.", shown="what fits in memory")
    learning_rate: float | None = option(
        None, "Peak learning rate.", shown="the preset's; 2e-5 with `init`, 2e-4 with `lora`"
    )
    schedule: str = option(
        "cosine", "Learning rate schedule: cosine decay to zero, or warmup-stable-decay.", choices=SCHEDULES
    )
    warmup: float = option(0.05, "Fraction of the steps to warm up.")
    weight_decay: float = option(0.1, "Weight decay of matrices; vectors have none.")
    clip: float = option(1.0, "Maximum gradient norm.")
    z_loss: float = option(0.0, "Coefficient of the squared log-sum-exp in the objective.")
    label_smoothing: float = option(0.0, "Label smoothing in the objective, 0 to 1.")
    grad_tolerance: float | str = option(
        0.0, "Relative error, below 1, that sampling may add to the gradients of the loss: 0 is exact, dtype is the "
        "rounding of the matmuls. CPU only.", unit=TOLERANCE,
    )  # fmt: skip
    validate_every: int | None = option(
        None, "Training tokens between validations, each with a checkpoint.", unit=TOKENS, shown="a tenth of the total"
    )
    validate_tokens: int = option(
        32768, "Approximate held-out tokens per validation; the final one uses all.", unit=TOKENS
    )
    keep_documents_whole: bool = option(
        False, "Pad rows instead of cutting documents that fit. Always on for documents with prompts."
    )
    overlong: str = option(
        "cut", "What to do with a whole document longer than a row: cut its prompt's start, drop it, or stop.",
        choices=OVERLONG,
    )  # fmt: skip
    spike: float = option(3.0, "Stop when the loss exceeds its smoothed value by this many nats.")
    dtype: str = option(
        "auto", "Dtype of matmuls; weights stay float32. auto is bfloat16 where the hardware is fast at it.",
        choices=DTYPES,
    )  # fmt: skip
    device: str = option("auto", "cpu, cuda, mps, ...; auto is an accelerator if there is one.")
    fsdp: bool = option(False, "Shard the model over the processes of torchrun (FSDP).")
    seed: int = option(0, "Random seed of the initial weights and the order of the texts.")

    def __new__(cls, *args: Any, **options: Any) -> "TrainSettings":
        """Remember which fields were given: an explicit default differs from an open field."""
        settings = super().__new__(cls)
        names = (*(field.name for field in fields(cls)[: len(args)]), *options)
        object.__setattr__(settings, "_names_given", names)
        return settings

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were given, explicit defaults included; a field given as None is open."""
        values: tuple[str, ...] = self.__dict__.get("_names_given", ())
        return {name: getattr(self, name) for name in values if getattr(self, name) is not None}

    def with_(self, **changes: Any) -> "TrainSettings":
        """Return these settings with changes, which count as given too."""
        return type(self)(**(self.given | changes))

    def rooted(self) -> "TrainSettings":
        """Return these settings with absolute paths, so that they mean the same in any working directory."""
        changes = {name: absolute(value) for name in ("init", "tokenizer") if (value := getattr(self, name))}
        return self.with_(**changes)

    def __post_init__(self) -> None:
        if self.preset is not None:
            find_preset(self.preset)
            if self.init is not None:
                raise ValueError("give `preset` or `init`, not both")
        if self.init is None and self.lora is not None:
            raise ValueError("lora needs an existing model: give one as `init`")
        if self.fsdp and self.lora is not None:
            raise ValueError(
                "fsdp and lora cannot be combined, since lora trains too little to shard: give one of the two"
            )
        if self.init is not None and (self.tokenizer is not None or self.vocab_size is not None):
            raise ValueError("the model of `init` has its own tokenizer: leave `tokenizer` and `vocab_size` out")
        if self.tokenizer is not None and self.vocab_size is not None:
            raise ValueError("give `tokenizer` or `vocab_size`, not both: the latter is the size of a new tokenizer")
        if self.device.partition(":")[2] not in ("", "0"):
            raise ValueError(
                f"Trainer uses the first visible accelerator: instead of `device={self.device!r}` set "
                f"CUDA_VISIBLE_DEVICES, or use torchrun for several"
            )
        for name, choices in ((each.name, each.metadata["option"].choices) for each in fields(self)):
            if choices and getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: expected one of {', '.join(choices)}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("lora", "tokens", "batch_tokens", "micro_rows", "validate_every", "validate_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.row_tokens is not None and self.row_tokens < 8:
            raise ValueError(f"row_tokens must be at least 8, got {self.row_tokens}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")
        for name in ("learning_rate", "weight_decay", "z_loss"):
            value = getattr(self, name)
            if value is not None and math.isinf(value):
                raise ValueError(f"{name} must be finite, got {value}")
        for name in ("learning_rate", "clip", "spike"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        tolerance = self.grad_tolerance
        if tolerance != "dtype" and (isinstance(tolerance, str) or not 0 <= tolerance < 1):
            raise ValueError(f"grad_tolerance must be 'dtype', or at least 0 and below 1, got {tolerance!r}")
        for name, most in (("warmup", 1.0), ("label_smoothing", 1.0), ("weight_decay", None), ("z_loss", None)):
            value = getattr(self, name)
            if not value >= 0 or (most is not None and value > most):
                raise ValueError(f"{name} must be at least 0{f' and at most {most:g}' if most else ''}, got {value}")

    @property
    def size(self) -> Preset:
        """The preset of a new model."""
        return find_preset(self.preset or "small")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "TrainSettings":
        values = {"special": "parse"} | values  # as earlier versions did
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def row_sizes(self, max_positions: int | None, processes: int) -> list[int]:
        """Return the possible row lengths: the given one, or those that suit the model and the batch."""
        sizes = self.sizes(max_positions)
        if self.row_tokens is not None or self.init is None:
            return [sizes["row_tokens"]]
        batch, most = sizes["batch_tokens"], max_positions or max(WHOLE_ROWS)
        fitting = [row for row in WHOLE_ROWS if row <= most and batch % (row * processes) == 0]
        return fitting or [sizes["row_tokens"]]

    def sizes(self, max_positions: int | None) -> dict[str, Any]:
        """Return tokens per row and per batch, and the learning rate: as given, or what suits the model.

        Raises ValueError if a row is longer than the positions of the model.
        """
        if self.init is None:
            preset = self.size._asdict()
            default = {name: preset[name] for name in ("row_tokens", "batch_tokens", "learning_rate")}
        else:
            row = min(FINE_TUNING["row_tokens"], max_positions or FINE_TUNING["row_tokens"])
            learning_rate = LEARNING_RATES["lora" if self.lora else "full"]
            default = {**FINE_TUNING, "row_tokens": row, "learning_rate": learning_rate}
        chosen = {name: getattr(self, name) for name in default if getattr(self, name) is not None}
        sizes = default | chosen
        row = sizes["row_tokens"]
        if max_positions is not None and row > max_positions:
            raise ValueError(f"rows of {row:,} tokens are longer than the {max_positions:,} positions of {self.init}")
        if "batch_tokens" not in chosen:  # round to whole rows
            sizes["batch_tokens"] = max(1, round(sizes["batch_tokens"] / sizes["row_tokens"])) * sizes["row_tokens"]
        return sizes


class TrainingPlan(NamedTuple):
    """The numbers of a training, derived from settings, model and texts, and stored with the run."""

    row_tokens: int
    batch_tokens: int
    micro_rows: int
    accumulation: int  # micro-batches per step and process
    processes: int
    steps: int
    warmup_steps: int
    decay_steps: int  # at the end of the `wsd` schedule
    validate_steps: int  # between validations
    learning_rate: float

    @property
    def batch_rows(self) -> int:
        return self.batch_tokens // self.row_tokens

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens


def make_plan(
    settings: TrainSettings, n_parameters: int, epoch_tokens: int, max_positions: int | None, processes: int, kind: str
) -> TrainingPlan:
    """Derive the plan. `kind` is the type of the device; `epoch_tokens` includes padding.

    Raises ValueError for sizes that do not divide each other.
    """
    sizes = settings.sizes(max_positions)
    row, batch = sizes["row_tokens"], sizes["batch_tokens"]
    if batch % row:
        near = sorted({max(row, batch // row * row), (batch // row + 1) * row})
        raise ValueError(
            f"a batch of {batch:,} tokens is not a multiple of the {row:,} tokens of a row: "
            f"give {' or '.join(f'`batch_tokens={size}`' for size in near)}"
        )
    rows = batch // row
    if rows % processes:
        raise ValueError(
            f"the {rows} rows of a batch cannot be shared evenly by {processes} processes: "
            f"give `batch_tokens={-(-rows // processes) * processes * row}`"
        )
    share = rows // processes
    micro = settings.micro_rows or largest_part(share, MICRO_TOKENS.get(kind, MICRO_TOKENS_ELSEWHERE) // row)
    if share % micro:
        parts = ", ".join(str(part) for part in range(1, share + 1) if share % part == 0)
        raise ValueError(
            f"{share} rows of a process cannot be split into micro-batches of {micro}: expected one of {parts}"
        )
    default = epoch_tokens if settings.init else min(TOKENS_A_PARAMETER * n_parameters, EPOCHS * epoch_tokens)
    steps = max(1, -(-(settings.tokens or default) // batch))
    every = -(-steps // VALIDATIONS) if settings.validate_every is None else -(-settings.validate_every // batch)
    return TrainingPlan(
        row, batch, micro, share // micro, processes, steps,
        warmup_steps=round(settings.warmup * steps), decay_steps=max(1, round(0.2 * steps)),
        validate_steps=min(every, steps), learning_rate=sizes["learning_rate"],
    )  # fmt: skip


def shared_anew(plan: TrainingPlan, settings: TrainSettings, processes: int, kind: str) -> TrainingPlan:
    """Return the plan for another number of processes, with the same batches, or raise ValueError."""
    kept = replace(settings, row_tokens=plan.row_tokens, batch_tokens=plan.batch_tokens, micro_rows=None)
    new = make_plan(kept, 1, 1, None, processes, kind)
    share = new.micro_rows * new.accumulation
    micro = largest_part(share, settings.micro_rows or new.micro_rows)
    return plan._replace(micro_rows=micro, accumulation=share // micro, processes=processes)


def largest_part(n: int, most: int) -> int:
    """Return the largest divisor of n that is at most `most`, and at least 1.

    >>> largest_part(12, 5), largest_part(7, 5)
    (4, 1)
    """
    return max(part for part in range(1, n + 1) if n % part == 0 and part <= max(1, most))


def absolute(name: str) -> str:
    """Return the absolute path of an existing folder or file; other names, such as hub ids, stay unchanged."""
    path = Path(name).expanduser()
    return os.path.abspath(path) if name not in PACKAGED and path.exists() else name
