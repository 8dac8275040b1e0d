"""Show the progress of a training: a live picture on a terminal, plain lines elsewhere, only errors when quiet."""

import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from cynosure.cli import common
from cynosure.cli.curve import curve
from cynosure.cli.progress import LINE_SECONDS, shown_progress
from cynosure.system.escapes import visible
from cynosure.system.numbers import counted
from cynosure.training import Figures, Watcher

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from cynosure.measure import Say
    from cynosure.training import TrainingPlan

SPEED_STEPS = 20  # steps over which the speed is averaged
CURVE_ROWS, CURVE_COLUMNS = 12, 78  # maximum size
LEAST_ROWS = 3  # minimum of the curve
AXIS_COLUMNS = 8  # to the left of the curve
SAMPLE_LINES = 2  # per sample of the model
WHITESPACE = re.compile(r"\s+")
MOST_POINTS = 400  # maximum of the curve


class Display(Watcher):
    """The state of a training, and how its metrics read; both displays share it."""

    def __init__(self) -> None:
        self.plan: TrainingPlan | None = None
        self.facts: Figures = {}
        self.steps: list[Figures] = []
        self.validations: list[Figures] = []
        self.samples: list[Figures] = []
        self.begun = time.monotonic()

    def begin(self, plan: "TrainingPlan", facts: Figures) -> None:
        self.plan, self.facts, self.begun = plan, facts, time.monotonic()
        statistics = facts["facts"]
        for note in statistics["notes"]:
            self.note(note)
        at = f", resuming at step {facts['resumed_at']:,}" if facts["resumed_at"] else ""
        texts = f"{counted(statistics['train_documents'], 'document')} of {statistics['train_tokens']:,} tokens"
        packing = facts.get("packing", {"strategy": "stream", "epoch_tokens": statistics["train_tokens"]})
        epochs = plan.tokens / packing["epoch_tokens"]
        parts = f", {plan.accumulation} times {plan.micro_rows} in each of {plan.processes}"
        self.say(
            f"{facts['parameters'] / 1e6:.1f}M parameters, vocabulary of {facts['n_classes']:,} tokens, matmuls in "
            f"{facts['dtype']}; {texts} to train on, {statistics['valid_documents']:,} held out"
        )
        self.say(
            f"{plan.steps:,} steps of {plan.batch_tokens:,} tokens ({plan.batch_rows} rows of {plan.row_tokens:,}"
            f"{parts if plan.micro_rows < plan.batch_rows else ''}), {epochs:.1f} epochs{at}"
        )
        if packing["strategy"] == "whole":
            self.say(kept_whole(packing))

    def say(self, text: str) -> None:
        common.say(f"cynosure: {text}")

    def note(self, text: str) -> None:
        self.say(f"note: {text}")

    def scoring(self, n_bytes: int) -> AbstractContextManager["Say | None"]:
        return shown_progress(n_bytes, False)

    def step(self, figures: Figures) -> None:
        self.steps.append(figures)

    def validation(self, figures: Figures, samples: list[Figures]) -> None:
        self.validations.append(figures)
        self.samples = samples

    @property
    def tokens_per_second(self) -> float:
        last = self.steps[-SPEED_STEPS:]
        return len(last) / float(sum(1 / line["tokens_per_second"] for line in last))

    @property
    def padded(self) -> str:
        """The percentage of padding tokens, in words; empty if rows are full."""
        fill = self.facts.get("packing", {"fill": 1.0})["fill"]
        return f", {1 - fill:.1%} padding" if fill < 1 else ""

    @property
    def peak_share(self) -> float:
        """The training's FLOP/s as a fraction of the machine's peak in matmuls."""
        return float(self.tokens_per_second * self.facts["flops_per_token"] / self.facts["peak_flops"])

    @property
    def seconds_left(self) -> float:
        """The remaining time by the clock, which includes validations and checkpoints."""
        assert self.plan is not None
        done = len(self.steps)
        left = self.plan.steps - self.steps[-1]["step"]
        return float(left * (time.monotonic() - self.begun) / done)

    def shown_metrics(self) -> dict[str, str]:
        """Return the metrics of the last step, as they are shown."""
        now = self.steps[-1]
        shown = {
            "loss": f"{now['loss']:.4f}",
            "smoothed": f"{now['smoothed']:.4f}",
            "perplexity": "" if now["perplexity"] is None else f"{now['perplexity']:,.1f}",
            "bits/byte": "" if now["bits_per_byte"] is None else f"{now['bits_per_byte']:.3f}",
            "grad norm": f"{now['grad_norm']:.2f}",
            "lr": f"{now['learning_rate']:.1e}",
            "tokens/s": f"{self.tokens_per_second:,.0f}",
            "MFU": f"{self.peak_share:.0%}",
            "ETA": clock(self.seconds_left),
        }
        if "objective" in now:
            shown["objective"] = f"{now['objective']:.4f}"
        if "columns_kept" in now:
            shown["columns kept"] = f"{now['columns_kept']:.1%}"
            errors = now["dhidden_error"], now["dweight_error"]
            shown["sampling error"] = "infinite" if None in errors else f"{max(errors):.2%}"
        return {name: value for name, value in shown.items() if value}


class Lines(Display):
    """Prints a line every few seconds, and one for each validation."""

    last = 0.0

    def step(self, figures: Figures) -> None:
        super().step(figures)
        assert self.plan is not None
        now = time.monotonic()
        if now - self.last < LINE_SECONDS and figures["step"] != self.plan.steps:
            return
        self.last = now
        shown = ", ".join(f"{name} {value}" for name, value in self.shown_metrics().items())
        common.say(f"step {figures['step']:,}/{self.plan.steps:,}: {shown}")

    def validation(self, figures: Figures, samples: list[Figures]) -> None:
        super().validation(figures, samples)
        common.say(f"step {figures['step']:,}: held out {held_out(figures)}")


class Picture(Display):
    """Draws metrics, the curve and samples of the model again after every step."""

    def __init__(self, live: "Live") -> None:
        super().__init__()
        self.live = live

    def say(self, text: str) -> None:
        self.live.console.print(f"cynosure: {text}")

    def step(self, figures: Figures) -> None:
        super().step(figures)
        self.live.update(self.picture())

    def validation(self, figures: Figures, samples: list[Figures]) -> None:
        super().validation(figures, samples)
        if self.steps:
            self.live.update(self.picture())

    def scoring(self, n_bytes: int) -> AbstractContextManager["Say | None"]:
        self.live.stop()  # the last picture stays, above the progress bar
        return super().scoring(n_bytes)

    def picture(self) -> "RenderableType":
        """Return the whole picture; the curve takes the lines that the rest leaves free."""
        from rich.console import Group
        from rich.text import Text

        console = self.live.console
        title = Text("smoothed loss, and o held out, in nats/token, against million tokens", "dim")
        above, below = [self.head(), self.metrics(), title], [*self.best(), *self.written()]
        taken = sum(len(console.render_lines(part)) for part in (*above, *below))
        rows = max(LEAST_ROWS, min(CURVE_ROWS, console.height - 2 - taken))  # the axis and the cursor take two
        columns = min(CURVE_COLUMNS, console.width - AXIS_COLUMNS)
        lines = (Text(line, no_wrap=True) for line in drawn(self.steps, self.validations, columns, rows))
        return Group(*above, *lines, *below)

    def head(self) -> "RenderableType":
        """Return the progress: steps, a bar and tokens."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        assert self.plan is not None
        now = self.steps[-1]
        head = Table.grid(padding=(0, 1), expand=True)
        for no_wrap in (True, False, True):
            head.add_column(no_wrap=no_wrap)
        step, tokens = f"step {now['step']:,}/{self.plan.steps:,}", f"{now['tokens']:,} tokens{self.padded}"
        head.add_row(step, ProgressBar(self.plan.steps, now["step"]), tokens)
        return head

    def metrics(self) -> "RenderableType":
        """Return the metrics of the last step, in two rows of names and values."""
        from rich.table import Table

        metrics = list(self.shown_metrics().items())
        half = -(-len(metrics) // 2)
        table = Table.grid(padding=(0, 1), expand=True)
        for _ in range(half):
            table.add_column(justify="right", no_wrap=True)
        for part in (metrics[:half], metrics[half:]):
            table.add_row(*(name for name, _ in part), style="dim")
            table.add_row(*(value for _, value in part))
        return table

    def best(self) -> "list[RenderableType]":
        """Return a table of the last and the best validation."""
        from rich.table import Table

        if not self.validations:
            return []
        table = Table.grid(padding=(0, 1), expand=True)
        for justify in ("left", *["right"] * 7):
            table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_row("held out", "step", "nats/token", "95%", "perplexity", "bits/byte", "95%", "ECE", style="dim")
        table.add_row("last", *validation_cells(self.validations[-1]))
        table.add_row("best", *validation_cells(min(self.validations, key=mean_loss)))
        return [table]

    def written(self) -> "list[RenderableType]":
        """Return the beginning of each sample of the model."""
        from rich.console import Group
        from rich.text import Text

        console = self.live.console
        parts: list[RenderableType] = []
        for sample in self.samples:
            prompt, text = (visible(WHITESPACE.sub(" ", sample[name])) for name in ("prompt", "text"))
            shown = Text.assemble((prompt, "dim"), (text, "italic"))
            lines = list(shown.wrap(console, console.width))
            if len(lines) > SAMPLE_LINES:
                del lines[SAMPLE_LINES:]
                lines[-1].append("\u2026")
                lines[-1].truncate(console.width, overflow="ellipsis")
            parts.append(Group(*lines))
        return parts


def kept_whole(packing: Figures) -> str:
    """Describe how whole documents were packed, and what happened to those longer than a row."""
    kinds = (
        ("cut_prompts", "cut at the beginning of the prompt"),
        ("cut_completions", "cut at the end of the completion"),
        ("split", "split into rows"),
        ("dropped", "left out"),
    )
    overlong = ", ".join(f"{packing[name]:,} {words}" for name, words in kinds if packing[name])
    rest = f"; longer than a row, and so changed (increase --row-tokens to avoid this): {overlong}" if overlong else ""
    return f"documents are kept whole: rows are {packing['fill']:.1%} full, the rest is padding{rest}"


def drawn(steps: list[Figures], validations: list[Figures], columns: int, rows: int) -> list[str]:
    """Return a plot of the smoothed loss against tokens, with the validations as marks."""
    thinned = steps[:: -(-len(steps) // MOST_POINTS)]
    line = [(line["tokens"] / 1e6, line["smoothed"]) for line in thinned]
    marks = [(line["tokens"] / 1e6, mean_loss(line)) for line in validations if mean_loss(line) < math.inf]
    return curve(line, marks, columns, rows)


def mean_loss(validation: Figures) -> float:
    """Return the loss of a validation in nats per token; infinite if a token had probability 0."""
    value = validation["nats_per_token"]["value"]
    return math.inf if value is None else float(value)


def validation_cells(validation: Figures) -> list[str]:
    """Return a validation as the cells of a table; unknown values are empty."""
    nats, bits, calibration = validation["nats_per_token"], validation["bits_per_byte"], validation["calibration"]
    perplexity = validation["token_perplexity"]["value"]
    return [
        f"{validation['step']:,}",
        "infinite" if nats["value"] is None else f"{nats['value']:.4f}",
        ends(nats),
        "" if perplexity is None else f"{perplexity:,.1f}",
        "" if bits["value"] is None else f"{bits['value']:.3f}",
        ends(bits),
        f"{calibration['ece']:.3f}" if calibration else "",
    ]


def ends(metric: Figures) -> str:
    """Return the interval of a metric in few characters."""
    if metric["low"] is None:
        return ""
    digits = 3 if metric["high"] < 10 else 2
    return f"{metric['low']:.{digits}f}-{metric['high']:.{digits}f}"


def held_out(validation: Figures) -> str:
    """Describe a validation."""
    nats, bits = validation["nats_per_token"], validation["bits_per_byte"]
    if nats["value"] is None:
        return "the loss is infinite: the model gave a token probability 0"
    text = f"{nats['value']:.4f} nats/token{interval(nats)}"
    if (perplexity := validation["token_perplexity"]["value"]) is not None:
        text += f", perplexity {perplexity:,.1f}"
    if bits["value"] is not None:
        text += f", {bits['value']:.3f} bits/byte{interval(bits)}"
    return text + (f", ECE {validation['calibration']['ece']:.3f}" if validation["calibration"] else "")


def interval(metric: Figures) -> str:
    return "" if metric["low"] is None else f" ({metric['low']:.3f} to {metric['high']:.3f})"


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds.

    >>> clock(59), clock(3725)
    ('0:59', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def shown_training(quiet: bool) -> Iterator[Watcher]:
    """Yield the display of a training. With several processes, only the first shows anything."""
    if quiet or not common.leads():
        yield Watcher()
    elif sys.stderr.isatty():
        from rich.live import Live

        from cynosure.cli.screen import stderr

        with Live(console=stderr(), refresh_per_second=4) as live:
            yield Picture(live)
    else:
        yield Lines()
