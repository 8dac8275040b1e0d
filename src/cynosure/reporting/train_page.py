"""The page of a training run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cynosure.measure import open_run
from cynosure.reporting import sentences
from cynosure.reporting.page import Page
from cynosure.reporting.score_page import view_of

if TYPE_CHECKING:
    from cynosure.measure import Scores
    from cynosure.reporting.charts.chart import Chart
    from cynosure.training import RunFolder

Lines = list[dict[str, Any]]
SHOWN_SAMPLES = 6  # steps whose samples are shown


def train_page(folder: "RunFolder") -> Page:
    """Return the page of a training, finished or not. Raises ValueError if a file of the run is damaged."""
    from cynosure.reporting.charts.train import train_charts
    from cynosure.training import METRICS, SAMPLES, SCORES, VALIDATION

    steps, validations, samples = (folder.lines(name) for name in (METRICS, VALIDATION, SAMPLES))
    manifest = folder.manifest
    if not steps:
        raise ValueError(f"{folder.path} has no step yet: resume the run first")
    scores = stored_scores(folder / SCORES)
    ends = [validations[0], validations[-1]] if validations else []
    values = {
        "run": folder.path.resolve().name,
        "settings": manifest["settings"],
        "plan": manifest["plan"],
        "facts": manifest["facts"],
        "parameters": manifest["parameters"],
        "last": steps[-1],
        "validations": ends,
        "diverged": divergence(folder.path),
        "scores": scores and scores.to_json(),
        "samples": spread(samples),
    }
    charts, calibration = train_charts(steps, validations), calibration_charts(folder, ends)
    context = {
        "sentences": sentences,
        "device": f"{manifest['dtype']} on {manifest['device']}",
        "curves": [chart.name for chart in charts if chart.name != "calibration"],
        "calibration": calibration,
        "view": scores and view_of(scores),
    }
    title = f"{values['run']}: a training run"
    return Page("train.html.j2", title, str(folder.path), values, [*charts, *calibration], context)


def stored_scores(folder: Path) -> "Scores | None":
    """Return the scores of the best model; None if the run has none, or not all of them yet."""
    try:
        return open_run(folder)
    except FileNotFoundError:
        return None


def divergence(folder: Path) -> dict[str, Any] | None:
    """Return at which step a run diverged last, and why; None if it did not."""
    files = sorted(folder.glob("diverged-*.json"))
    if not files:
        return None
    values = json.loads(files[-1].read_bytes())
    return {name: values[name] for name in ("step", "why")}


def spread(samples: Lines) -> Lines:
    """Return the samples of a few steps, evenly spaced, the first and the last among them."""
    steps = sorted({sample["step"] for sample in samples})
    n = min(SHOWN_SAMPLES, len(steps))
    chosen = {steps[round(i * (len(steps) - 1) / max(1, n - 1))] for i in range(n)}
    return [sample for sample in samples if sample["step"] in chosen]


def calibration_charts(folder: "RunFolder", ends: Lines) -> "list[Chart]":
    """Return the reliability of the model at the first validation and at the last."""
    from cynosure.reporting.charts.score import reliability
    from cynosure.training import VALIDATIONS

    charts = []
    for line in ends:
        scores = stored_scores(folder / VALIDATIONS / f"step-{line['step']:06d}")
        found = scores and scores.calibration
        if found and (chart := reliability(list(found.to_json()["bins"]))):
            step = line["step"]
            charts.append(chart._replace(name=f"reliability-{step}", title=f"Reliability at step {step:,}"))
    return charts
