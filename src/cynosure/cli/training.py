"""How a training reads as it goes: a live picture on a terminal, plain lines elsewhere, errors alone when quiet."""

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

RATE_STEPS = 20  # over which the rate is told
CURVE_ROWS, CURVE_COLUMNS = 12, 78  # at most
LEAST_ROWS = 3  # of the curve
AXIS_COLUMNS = 8  # left of the curve
SAMPLE_LINES = 2  # of each text that the model writes
WHITESPACE = re.compile(r"\s+")
MOST_POINTS = 400  # of the curve


class Display(Watcher):
    """What both ways of showing share: the state of a training, and how its figures read."""

    def __init__(self) -> None:
        self.plan: TrainingPlan | None = None
        self.facts: Figures = {}
        self.steps: list[Figures] = []
        self.validations: list[Figures] = []
        self.samples: list[Figures] = []
        self.begun = time.monotonic()

    def begin(self, plan: "TrainingPlan", facts: Figures) -> None:
        self.plan, self.facts, self.begun = plan, facts, time.monotonic()
        told = facts["facts"]
        for note in told["notes"]:
            self.note(note)
        at = f", going on at step {facts['resumed_at']:,}" if facts["resumed_at"] else ""
        texts = f"{counted(told['train_documents'], 'document')} of {told['train_tokens']:,} tokens"
        packing = facts.get("packing", {"strategy": "stream", "epoch_tokens": told["train_tokens"]})
        epochs = plan.tokens / packing["epoch_tokens"]
        parts = f", {plan.accumulation} times {plan.micro_rows} in each of {plan.processes}"
        self.say(
            f"{facts['parameters'] / 1e6:.1f}M parameters, {facts['n_classes']:,} tokens of vocabulary, products in "
            f"{facts['dtype']}; {texts} to train on, {told['valid_documents']:,} held out"
        )
        self.say(
            f"{plan.steps:,} steps of {plan.batch_tokens:,} tokens ({plan.batch_rows} rows of {plan.row_tokens:,}"
            f"{parts if plan.micro_rows < plan.batch_rows else ''}), {epochs:.1f} times through the text{at}"
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
        last = self.steps[-RATE_STEPS:]
        return len(last) / float(sum(1 / line["tokens_per_second"] for line in last))

    @property
    def padded(self) -> str:
        """The share of the tokens that is padding, in words; nothing where rows are full."""
        fill = self.facts.get("packing", {"fill": 1.0})["fill"]
        return f", {1 - fill:.1%} padding" if fill < 1 else ""

    @property
    def peak_share(self) -> float:
        """Of what the machine's matrix products do, what the training's own come to."""
        return float(self.tokens_per_second * self.facts["flops_per_token"] / self.facts["peak_flops"])

    @property
    def seconds_left(self) -> float:
        """By the clock, so that validations and checkpoints are counted as they have come so far."""
        assert self.plan is not None
        done = len(self.steps)
        left = self.plan.steps - self.steps[-1]["step"]
        return float(left * (time.monotonic() - self.begun) / done)

    def figures(self) -> dict[str, str]:
        """The last step in words."""
        now = self.steps[-1]
        found = {
            "loss": f"{now['loss']:.4f}",
            "smoothed": f"{now['smoothed']:.4f}",
            "perplexity": "" if now["perplexity"] is None else f"{now['perplexity']:,.1f}",
            "bits/byte": "" if now["bits_per_byte"] is None else f"{now['bits_per_byte']:.3f}",
            "gradient": f"{now['grad_norm']:.2f}",
            "rate": f"{now['learning_rate']:.1e}",
            "tokens/s": f"{self.tokens_per_second:,.0f}",
            "of peak": f"{self.peak_share:.0%}",
            "left": clock(self.seconds_left),
        }
        if "objective" in now:
            found["objective"] = f"{now['objective']:.4f}"
        return {name: value for name, value in found.items() if value}


class Lines(Display):
    """A line every few seconds, and one for each validation."""

    last = 0.0

    def step(self, figures: Figures) -> None:
        super().step(figures)
        assert self.plan is not None
        now = time.monotonic()
        if now - self.last < LINE_SECONDS and figures["step"] != self.plan.steps:
            return
        self.last = now
        told = ", ".join(f"{name} {value}" for name, value in self.figures().items())
        common.say(f"step {figures['step']:,}/{self.plan.steps:,}: {told}")

    def validation(self, figures: Figures, samples: list[Figures]) -> None:
        super().validation(figures, samples)
        common.say(f"step {figures['step']:,}: held out {held_out(figures)}")


class Picture(Display):
    """Figures, the curve and what the model writes, drawn anew after every step."""

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
        self.live.stop()  # its last picture stays, and the bar comes below it
        return super().scoring(n_bytes)

    def picture(self) -> "RenderableType":
        """All of it, as many lines as the terminal has: the curve takes what the rest leaves."""
        from rich.console import Group
        from rich.text import Text

        console = self.live.console
        title = Text("smoothed loss, and o held out, in nats/token, against million tokens", "dim")
        above, below = [self.head(), self.metrics(), title], [*self.best(), *self.written()]
        taken = sum(len(console.render_lines(part)) for part in (*above, *below))
        rows = max(LEAST_ROWS, min(CURVE_ROWS, console.height - 2 - taken))  # less the axis and the cursor's line
        columns = min(CURVE_COLUMNS, console.width - AXIS_COLUMNS)
        lines = (Text(line, no_wrap=True) for line in drawn(self.steps, self.validations, columns, rows))
        return Group(*above, *lines, *below)

    def head(self) -> "RenderableType":
        """How far it is."""
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
        """The last step, in two lines of names and values."""
        from rich.table import Table

        found = list(self.figures().items())
        half = -(-len(found) // 2)
        table = Table.grid(padding=(0, 1), expand=True)
        for _ in range(half):
            table.add_column(justify="right", no_wrap=True)
        for part in (found[:half], found[half:]):
            table.add_row(*(name for name, _ in part), style="dim")
            table.add_row(*(value for _, value in part))
        return table

    def best(self) -> "list[RenderableType]":
        """The last validation and the best."""
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
        """The beginning of each text that the model writes."""
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
    """How documents were packed that are kept whole, and what became of those longer than a row."""
    found = (
        ("cut_prompts", "cut at the beginning of the prompt"),
        ("cut_completions", "cut at the end of the completion"),
        ("split", "split into rows"),
        ("dropped", "left out"),
    )
    overlong = ", ".join(f"{packing[name]:,} {words}" for name, words in found if packing[name])
    rest = f"; longer than a row, and so changed (--row-tokens makes rows longer): {overlong}" if overlong else ""
    return f"documents are kept whole: rows are {packing['fill']:.1%} full, the rest is padding{rest}"


def drawn(steps: list[Figures], validations: list[Figures], columns: int, rows: int) -> list[str]:
    """Smoothed loss against tokens, and the validations on it."""
    thinned = steps[:: -(-len(steps) // MOST_POINTS)]
    line = [(line["tokens"] / 1e6, line["smoothed"]) for line in thinned]
    marks = [(line["tokens"] / 1e6, mean_loss(line)) for line in validations if mean_loss(line) < math.inf]
    return curve(line, marks, columns, rows)


def mean_loss(validation: Figures) -> float:
    """In nats; infinite where a token was impossible."""
    value = validation["nats_per_token"]["value"]
    return math.inf if value is None else float(value)


def validation_cells(figures: Figures) -> list[str]:
    """A validation in the columns of a table; nothing where a value is not known."""
    nats, bits, calibration = figures["nats_per_token"], figures["bits_per_byte"], figures["calibration"]
    perplexity = figures["token_perplexity"]["value"]
    return [
        f"{figures['step']:,}",
        "infinite" if nats["value"] is None else f"{nats['value']:.4f}",
        ends(nats),
        "" if perplexity is None else f"{perplexity:,.1f}",
        "" if bits["value"] is None else f"{bits['value']:.3f}",
        ends(bits),
        f"{calibration['ece']:.3f}" if calibration else "",
    ]


def ends(figure: Figures) -> str:
    """The interval of a metric in few characters."""
    if figure["low"] is None:
        return ""
    digits = 3 if figure["high"] < 10 else 2
    return f"{figure['low']:.{digits}f}-{figure['high']:.{digits}f}"


def held_out(figures: Figures) -> str:
    """A validation in words."""
    nats, bits = figures["nats_per_token"], figures["bits_per_byte"]
    if nats["value"] is None:
        return "the loss is infinite: the model gave a token no probability at all"
    told = f"{nats['value']:.4f} nats/token{interval(nats)}"
    if (perplexity := figures["token_perplexity"]["value"]) is not None:
        told += f", perplexity {perplexity:,.1f}"
    if bits["value"] is not None:
        told += f", {bits['value']:.3f} bits/byte{interval(bits)}"
    return told + (f", ECE {figures['calibration']['ece']:.3f}" if figures["calibration"] else "")


def interval(figure: Figures) -> str:
    return "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(59), clock(3725)
    ('0:59', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def shown_training(quiet: bool) -> Iterator[Watcher]:
    """Whoever watches a training: of several processes only the first shows anything."""
    if quiet or not common.leads():
        yield Watcher()
    elif sys.stderr.isatty():
        from rich.live import Live

        from cynosure.cli.screen import stderr

        with Live(console=stderr(), refresh_per_second=4) as live:
            yield Picture(live)
    else:
        yield Lines()
