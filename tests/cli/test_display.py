"""What a terminal shows of a training: all of it fits 80 columns and 24 lines, at any stage."""

import math
from typing import Any

import pytest
from rich.cells import cell_len
from rich.live import Live

from cynosure.cli.screen import Console
from cynosure.cli.training import Picture
from cynosure.training.settings import TrainingPlan

COLUMNS, LINES = 80, 24
STEPS = 123_456
SAMPLES = [
    {"prompt": "", "text": "Once upon a time. " * 30},
    {"prompt": "Fellow citizens of the Senate", "text": " and\nof \x1b[2J " + "representatives" * 20},
]
BRAILLE = [chr(code) for code in range(0x2801, 0x2900)]


def picture(columns: int = COLUMNS, lines: int = LINES, fill: float = 0.876) -> Picture:
    """Of a training that has begun; its figures are as long as those of large ones."""
    console = Console(width=columns, height=lines, force_terminal=True, color_system=None, quiet=True)
    shown = Picture(Live(console=console, auto_refresh=False))
    facts = {"train_documents": 9, "train_tokens": 4000, "valid_documents": 1, "notes": []}
    told = {"parameters": 10**6, "n_classes": 300, "dtype": "float32", "facts": facts, "resumed_at": 0}
    packing = {"strategy": "stream", "epoch_tokens": 10**9, "fill": fill}
    told |= {"peak_flops": 1e11, "flops_per_token": 6e4, "packing": packing}
    shown.begin(TrainingPlan(16, 128, 8, 1, 1, STEPS, 2, 10, 5, 1e-3), told)
    return shown


def step(number: int, **changed: Any) -> dict[str, Any]:
    loss = 11.5 * math.exp(-number / STEPS)
    return {
        "step": number, "tokens": 123_456 * number, "loss": loss, "smoothed": loss, "perplexity": 98_765.4,
        "grad_norm": 1234.56, "bits_per_byte": 12.345, "learning_rate": 1.2e-3, "tokens_per_second": 1_234_567.0,
        "objective": loss + 0.01,
    } | changed  # fmt: skip


def validation(number: int, nats: float | None) -> dict[str, Any]:
    def metric(value: float | None) -> dict[str, float | None]:
        return {"value": value, "low": value and value - 0.1, "high": value and value + 0.1}

    return {
        "step": number, "tokens": 123_456 * number, "nats_per_token": metric(nats), "bits_per_byte": metric(nats),
        "token_perplexity": {"value": nats and math.exp(nats)}, "calibration": {"ece": 0.01234},
    }  # fmt: skip


def drawn(shown: Picture) -> list[str]:
    """The lines of the picture as the terminal would show them, wherever it is cut or wrapped."""
    console = shown.live.console
    console.quiet = False
    with console.capture() as captured:
        console.print(shown.picture())
    lines = captured.get().splitlines()
    assert len(lines) < console.height  # the cursor stands on the last
    assert max(map(cell_len, lines)) <= console.width
    return [line.rstrip() for line in lines]


def holds(lines: list[str], *parts: str) -> None:
    for part in parts:
        assert any(part in line for line in lines), (part, lines)


def test_the_first_step() -> None:
    shown = picture()
    shown.step(step(1))
    lines = drawn(shown)
    holds(lines, f"step 1/{STEPS:,}", "123,456 tokens, 12.4% padding", "11.4999", "98,765.4", "12.345", "1234.56")
    holds(lines, "1.2e-03", "1,234,567", "MFU", "objective", "11.5099", "ETA", "smoothed loss")
    assert "\u2026" not in "".join(lines)


def test_what_was_sampled() -> None:
    shown = picture()
    shown.step(step(1, columns_kept=0.12345, dhidden_error=0.0039, dweight_error=0.0036))
    lines = drawn(shown)
    holds(lines, "columns kept", "12.3%", "sampling error", "0.39%", "98,765.4", "1,234,567")
    assert "\u2026" not in "".join(lines)


def test_in_the_middle_with_a_validation_and_samples() -> None:
    shown = picture()
    for number in range(1, STEPS, STEPS // 50):
        shown.step(step(number))
    shown.validation(validation(40_000, 10.25), SAMPLES)
    shown.validation(validation(80_000, 11.1), SAMPLES)
    lines = drawn(shown)
    last, best = (next(line for line in lines if line.startswith(name)) for name in ("last", "best"))
    assert last.split() == ["last", "80,000", "11.1000", "11.00-11.20", "66,171.2", "11.100", "11.00-11.20", "0.012"]
    assert best.split()[:3] == ["best", "40,000", "10.2500"]
    assert sum(any(dot in line for dot in BRAILLE) for line in lines) >= 6
    holds(lines, "Once upon a time. Once upon", "Fellow citizens of the Senate and of \\x1b[2J")
    holds(lines, "12.4% padding")
    assert sum(line.endswith("\u2026") for line in lines) == "".join(lines).count("\u2026") == 2


def test_the_end_and_what_is_not_known() -> None:
    shown = picture(fill=1.0)
    for number in range(1, STEPS + 1, STEPS // 50):
        shown.step(step(number, perplexity=None, bits_per_byte=None))
    shown.step(step(STEPS))
    shown.validation(validation(1, 5.0), SAMPLES[:1])
    shown.validation(validation(STEPS, None), [])
    lines = drawn(shown)
    holds(lines, f"step {STEPS:,}/{STEPS:,}", f"{123_456 * STEPS:,} tokens", "0:00")
    assert next(line for line in lines if line.startswith("last")).split()[:3] == ["last", "123,456", "infinite"]
    assert next(line for line in lines if line.startswith("best")).split()[1] == "1"


@pytest.mark.parametrize(("columns", "lines"), [(80, 40), (200, 24), (200, 60)])
def test_larger_terminals(columns: int, lines: int) -> None:
    shown = picture(columns, lines)
    for number in range(1, 40):
        shown.step(step(number))
    shown.validation(validation(39, 10.0), SAMPLES)
    assert sum(any(dot in line for dot in BRAILLE) or line[8:].strip() == "o" for line in drawn(shown)) <= 12
