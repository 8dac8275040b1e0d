"""The race in fine-tuning a real model on a real text by Trainer; loss curves are held to one with an exact head.

Two curves differ by the rounding of each loss, and by what rounded gradients have made of the weights since. How much
that is depends on the model, so it is measured: the same training is run with the head's products, the loss and their
gradients in a wider dtype, the body as it is. Over all steps ours may go twice as far from that curve as the model's
own loss does, and one rounding of a float32 loss farther: the rule for a loss and its gradients, of a whole curve.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import Contestant
from benchmarks.process import Process
from benchmarks.race import (
    DTYPES,
    PATIENCE,
    Racer,
    Say,
    Steps,
    check_dtypes,
    complaints,
    new_report,
    prepared_by,
    race,
)
from benchmarks.results import TRANSFORMERS, Report, Row, TrainCase, largest_difference
from benchmarks.trainers import Step, TrainWork, build_exact
from benchmarks.worker import Worker, measured, settle

if TYPE_CHECKING:
    from cynosure.models import LanguageModel

TRAIN_DTYPES = (*DTYPES, "autocast")
LOSS_EPS = 2.0**-23  # every loss is a float32, whatever the model is


@dataclass(frozen=True)
class TrainSettings:
    """What is raced, and for how long. `models` are names that `load` takes, or new ones such as `small:32768`."""

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    dtypes: tuple[str, ...] = DTYPES
    n_rows: int = 2
    n_tokens: int = 512  # of a row
    n_steps: int = 50
    cutoff_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_dtypes(self.dtypes, TRAIN_DTYPES)
        if not self.models or not self.dtypes:
            raise ValueError("nothing to race: name at least one model and one dtype")
        if self.n_rows < 1 or not self.cutoff_seconds > 0:
            raise ValueError("rows and the cut-off must be positive")
        if min(self.n_tokens, self.n_steps) < 2:
            raise ValueError("tokens and steps must be at least 2: a token to predict, and a step after the first")

    @property
    def runs(self) -> int:
        return self.n_steps - 1  # the first, in which everything is new, belongs to getting ready

    @property
    def slow_seconds(self) -> float:
        return float("inf")  # everyone runs as often


class TrainWorker(Worker):
    """A model in training, of which a run is one step."""

    def __init__(self, contestant: Contestant, name: str, dtype: str, settings: TrainSettings) -> None:
        self.contestant, self.name, self.dtype, self.settings = contestant, name, dtype, settings
        self.step: Step | None = None
        self.losses: list[float] = []

    def build(self, n_tokens: int) -> dict[str, Any]:
        self.step = self.contestant.build(new_work(self.name, self.dtype, self.settings))
        self.losses = [self.step()]
        return {}

    def run(self, compare: bool) -> dict[str, Any]:
        assert self.step is not None
        # Memory is that of the first run. The others go on with what the process holds free, as training does.
        loss, reply = measured(self.step, give_back=compare)
        self.losses.append(loss)
        return reply | ({"losses": self.losses} if self.contestant.checked else {})


def new_work(name: str, dtype: str, settings: TrainSettings) -> TrainWork:
    import torch

    from benchmarks.fresh import FRESH, fresh_model
    from cynosure.models import load

    autocast = dtype == "autocast"
    weights = "float32" if autocast else dtype
    new = FRESH.fullmatch(name)
    model = (
        fresh_model(name, getattr(torch, weights), settings.n_tokens)
        if new
        else load(name, dtype=weights, device="cpu")
    )
    return TrainWork(model, texts_of(model, settings), settings.n_rows, settings.n_steps, autocast)


def texts_of(model: "LanguageModel", settings: TrainSettings) -> list[list[int]]:
    """The addresses of US presidents cut into rows of so many tokens, each opened as the model expects it."""
    from benchmarks.inputs import text_ids
    from cynosure.text import prefix_token

    prefix = prefix_token(model.tokenizer)
    opening = [] if prefix is None else [prefix]
    ids = text_ids(model.tokenizer)
    n_rows = settings.n_rows * settings.n_steps
    rows = [[*opening, *islice(ids, settings.n_tokens - len(opening))] for _ in range(n_rows)]
    if len(rows[-1]) < settings.n_tokens:
        raise ValueError(f"there are no {n_rows * settings.n_tokens:,} tokens of addresses")
    return rows


def prepare_exact(pipe: Connection, log: str, name: str, settings: TrainSettings) -> None:
    """A process that trains with an exact head in each dtype: it sends {"say": line}, and at last one reply."""
    settle(log)
    from benchmarks.environment import environment

    curves: dict[str, list[float]] = {}
    title = ""
    try:
        for dtype in settings.dtypes:
            work = new_work(name, dtype, settings)
            title = work.model.name
            check_plain(work.model)
            step, curves[dtype] = build_exact(work), []
            for number in range(settings.n_steps):
                pipe.send({"say": f"{name}, {dtype}: training with an exact head, step {number + 1}"})
                curves[dtype].append(step())
        pipe.send({"title": title, "curves": curves, "environment": environment()})
    except ModuleNotFoundError as error:
        pipe.send({"unavailable": f"{error.name} is not installed"})
    except (FileNotFoundError, ValueError) as error:
        pipe.send({"unavailable": str(error)})


def check_plain(model: "LanguageModel") -> None:
    from cynosure.models import read_head

    head = read_head(model.model)
    if head.bias is not None or head.scale != 1.0 or head.softcap is not None:
        raise ValueError(f"the head of {model.name} is more than a matrix, which the exact loss here does not know")


def bench_train(
    settings: TrainSettings, contestants: Iterable[Contestant], say: Say = lambda *_: None
) -> Report[TrainCase]:
    """Race the contestants through every model and dtype."""
    field = list(contestants)
    n_cases = len(settings.models) * len(settings.dtypes)
    steps = Steps(say, len(settings.models) + n_cases * len(field) * settings.n_steps)
    report: Report[TrainCase] = new_report("train", settings, field)
    for name in settings.models:
        process = Process(prepare_exact, name, settings)
        steps.next(f"{name}: training with an exact head")
        reply = prepared_by(process, steps)
        if "unavailable" in reply:
            report.skipped[name] = reply["unavailable"]
            continue
        report.environment = reply["environment"]
        for dtype in settings.dtypes:
            exact, sizes = reply["curves"][dtype], (settings.n_rows, settings.n_tokens, settings.n_steps)
            rows = race_trainers(name, dtype, settings, field, steps)
            judge(rows, exact)
            report.cases.append(TrainCase(name, reply["title"], dtype, *sizes, exact, rows))
    return report


def race_trainers(name: str, dtype: str, settings: TrainSettings, field: list[Contestant], steps: Steps) -> list[Row]:
    """Everyone loads the model and takes a step; then a step of each in turn."""
    racers: list[Racer] = []
    try:
        for contestant in field:
            given = (name, dtype, settings)
            racers.append(Racer(TrainWorker, contestant, *given, cutoff_seconds=settings.cutoff_seconds))
        return race(racers, settings.n_rows * settings.n_tokens, settings, steps, f"{name}, {dtype}")
    finally:
        for racer in racers:
            racer.process.end(PATIENCE)


def judge(rows: list[Row], exact: list[float]) -> None:
    """How far each curve goes from the exact one, and red for whoever goes too far.

    Where the model's own loss has no curve there is nothing to judge by, and errors are all that is said.
    """
    curves = {row.contestant: row for row in rows if row.status == "ok" and row.losses}
    for row in curves.values():
        row.errors = {"loss": largest_difference(row.losses or [], exact)}
    own = curves.get(TRANSFORMERS)
    if own is None or not own.errors:
        return
    allowed = 2 * own.errors["loss"] + LOSS_EPS * max(exact)
    for row in curves.values():
        row.allowed = {"loss": allowed}
        if wrong := complaints(row.errors or {}, row.allowed):
            row.status, row.reason = "red", f"over {len(exact)} steps {wrong}"
