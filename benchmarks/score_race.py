"""The race in scoring a real text with a real model; everyone is checked against the model's own float32 logits."""

from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import Contestant
from benchmarks.process import Process
from benchmarks.race import DTYPES, PATIENCE, Racer, Say, Steps, check_dtypes, new_report, prepared_by, race
from benchmarks.results import Report, ScoreCase
from benchmarks.scorers import Work, build_transformers, windows
from benchmarks.worker import Worker, measured, settle

if TYPE_CHECKING:
    from cynosure.models import LanguageModel

FLOAT32_ALLOWED = 1e-5  # relative, of the nats of a whole text
HALF_ALLOWED = 2.0**-10  # beside twice the error of transformers in the same dtype


@dataclass(frozen=True)
class ScoreSettings:
    """What is raced, and for how long. `models` are names that `load` takes."""

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    dtypes: tuple[str, ...] = DTYPES
    n_tokens: int = 20_000
    window: int = 1024
    runs: int = 3
    cutoff_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_dtypes(self.dtypes)
        if not self.models or not self.dtypes:
            raise ValueError("nothing to race: name at least one model and one dtype")
        if min(self.n_tokens, self.window, self.runs) < 1 or not self.cutoff_seconds > 0:
            raise ValueError("tokens, window, runs and the cut-off must all be positive")

    @property
    def slow_seconds(self) -> float:
        return float("inf")  # everyone runs as often

    @property
    def check_tokens(self) -> int:
        """Of the check before anything is timed: two seams."""
        return min(self.n_tokens, 5 * self.window // 2)


class ScoreWorker(Worker):
    """A way of scoring, with a model of its own in memory."""

    def __init__(self, contestant: Contestant, name: str, dtype: str, window: int, truth: dict[str, float]) -> None:
        self.contestant, self.name, self.dtype, self.window, self.truth = contestant, name, dtype, window, truth
        self.model: LanguageModel | None = None
        self.step: Any = None
        self.checked: dict[str, Any] = {}

    def build(self, n_tokens: int) -> dict[str, Any]:
        from cynosure.models import load

        if self.model is None:
            self.model = load(self.name, dtype=self.dtype, device="cpu")
        self.step = self.contestant.build(Work(self.model, text_of(self.model.tokenizer, n_tokens), self.window))
        return {}

    def run(self, compare: bool) -> dict[str, Any]:
        nats, reply = measured(self.step)
        if compare and self.contestant.checked and not self.checked:  # the truth is that of the first tokens alone
            error = {"nats": abs(nats / self.truth["nats"] - 1)}
            self.checked = {"errors": error, "allowed": {"nats": self.truth["allowed"]}}
        return reply | self.checked


def text_of(tokenizer: Any, n_tokens: int) -> str:
    """The beginning, of so many tokens, of addresses of US presidents."""
    from benchmarks.inputs import addresses

    text = ""
    for address in addresses():
        text += address
        encoding = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        if len(encoding["input_ids"]) >= n_tokens:
            return text[: encoding["offset_mapping"][n_tokens - 1][1]]
    raise ValueError(f"there are no {n_tokens:,} tokens of addresses")


def prepare_truth(pipe: Connection, log: str, name: str, settings: ScoreSettings) -> None:
    """A process that finds the nats of the check: it sends one reply, with what is allowed in each dtype."""
    settle(log)
    from benchmarks.environment import environment
    from cynosure.models import load

    try:
        model = load(name, dtype="float32", device="cpu")
        work = Work(model, text_of(model.tokenizer, settings.check_tokens), settings.window)
        nats = float64_nats(work)
        truths = {}
        for dtype in settings.dtypes:
            allowed = FLOAT32_ALLOWED
            if dtype != "float32":
                half = work._replace(model=load(name, dtype=dtype, device="cpu"))
                allowed = HALF_ALLOWED + 2 * abs(build_transformers(half)() / nats - 1)
            truths[dtype] = {"nats": nats, "allowed": allowed}
        pipe.send({"title": model.name, "truths": truths, "environment": environment()})
    except ModuleNotFoundError as error:
        pipe.send({"unavailable": f"{error.name} is not installed"})
    except (FileNotFoundError, ValueError) as error:
        pipe.send({"unavailable": str(error)})


def float64_nats(work: Work) -> float:
    """Of the model's own logits, everything after them in float64."""
    import torch

    total = 0.0
    with torch.no_grad():
        for ids, target in windows(work):
            logits = work.model.model(input_ids=ids, use_cache=False).logits[0]
            for start in range(0, len(logits), 64):
                rows, wanted = logits[start : start + 64].double(), target[0, start : start + 64]
                total += torch.nn.functional.cross_entropy(rows, wanted, reduction="sum").item()
    return total


def bench_score(
    settings: ScoreSettings, contestants: Iterable[Contestant], say: Say = lambda *_: None
) -> Report[ScoreCase]:
    """Race the contestants through every model and dtype."""
    field = list(contestants)
    n_cases = len(settings.models) * len(settings.dtypes)
    steps = Steps(say, len(settings.models) + n_cases * len(field) * (2 + settings.runs))
    report: Report[ScoreCase] = new_report("score", settings, field)
    for name in settings.models:
        process = Process(prepare_truth, name, settings)
        steps.next(f"{name}: the loss in float64")
        reply = prepared_by(process, steps)
        if "unavailable" in reply:
            report.skipped[name] = reply["unavailable"]
            continue
        report.environment = reply["environment"]
        for dtype in settings.dtypes:
            entered = [contestant for contestant in field if dtype in contestant.dtypes]
            rows = race_scorers(name, dtype, reply["truths"][dtype], settings, entered, steps)
            report.cases.append(ScoreCase(name, reply["title"], dtype, settings.n_tokens, settings.window, rows))
    return report


def race_scorers(
    name: str, dtype: str, truth: dict[str, float], settings: ScoreSettings, entered: list[Contestant], steps: Steps
) -> Any:
    """Everyone starts and is checked, then scores all tokens."""
    where = f"{name}, {dtype}"
    racers: list[Racer] = []
    try:
        for contestant in entered:
            given = (name, dtype, settings.window, truth)
            racers.append(Racer(ScoreWorker, contestant, *given, cutoff_seconds=settings.cutoff_seconds))
            steps.next(f"{where}: {contestant.name}, nats against float64")
            racers[-1].check(settings.check_tokens)
        return race(racers, settings.n_tokens, settings, steps, f"{where}, {settings.n_tokens:,} tokens")
    finally:
        for racer in racers:
            racer.process.end(PATIENCE)
