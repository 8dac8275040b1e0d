"""Write what a report shows as files: every chart as SVG, PNG and CSV, and a summary as JSON and Markdown."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cynosure.reporting.charts.chart import Chart
from cynosure.reporting.charts.draw import is_known
from cynosure.reporting.charts.theme import png_file, svg_file
from cynosure.system.escapes import visible
from cynosure.system.files import write_whole
from cynosure.system.folders import check_is_folder, first_foreign
from cynosure.system.numbers import number

SUMMARY, MARKDOWN = "summary.json", "summary.md"
MARK = "<!-- written by cynosure report -->"  # first in the Markdown: the folder is ours
KINDS = ("svg", "png", "csv")
LINKED = re.compile(r"Values: \[([a-z0-9-]+)\.csv\]")  # in the Markdown, where text has no bare brackets
PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial$")  # of an interrupted `write_whole`
SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")  # characters that Markdown obeys
DIGITS = 4
SINGLE = (str, int, float)
RESAMPLING = "interval"  # says how the intervals were made


def write_figures(folder: Path, charts: list[Chart], values: dict[str, Any], title: str) -> None:
    """Write all charts, their values and a summary into a folder.

    Args:
        folder: where; created if it is not there. The files of an earlier report there are replaced.
        charts: the charts of the report.
        values: what `summary.json` will hold, the JSON of the scores, of the comparison, or of the training.
        title: the heading of the Markdown.

    Raises:
        ValueError: the folder holds anything else.
    """
    stale = check_figures(folder) - {chart.name for chart in charts}
    folder.mkdir(parents=True, exist_ok=True)
    for name in files(stale):
        (folder / name).unlink(missing_ok=True)
    write_whole(folder / MARKDOWN, markdown(charts, values, title).encode())
    write_whole(folder / SUMMARY, json.dumps(values, indent=2, allow_nan=False).encode())
    for chart in charts:
        write_whole(folder / f"{chart.name}.svg", svg_file(chart).encode())
        write_whole(folder / f"{chart.name}.png", png_file(chart))
        write_whole(folder / f"{chart.name}.csv", table(chart.rows).encode("utf-8", "backslashreplace"))


def check_figures(folder: Path) -> set[str]:
    """Return the charts that an earlier report wrote into a folder, which may not hold anything else.

    Raises:
        ValueError: it does, or it is no folder.
    """
    check_is_folder(folder)
    if not folder.is_dir():
        return set()
    earlier = charts_of(folder / MARKDOWN)
    ours = set() if earlier is None else {SUMMARY, MARKDOWN, *files(earlier)}
    other = first_foreign(folder, lambda name: name in ours or PARTIAL.search(name) is not None)
    if other is not None:
        raise ValueError(f"{folder} holds {visible(other)}, which is not of a report: give another folder")
    return earlier or set()


def charts_of(path: Path) -> set[str] | None:
    """Return the names of the charts in the Markdown of a report; None if it is no such file."""
    if not path.is_file() or path.is_symlink():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    return set(LINKED.findall(text)) if text.startswith(MARK) else None


def files(names: set[str]) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in KINDS}


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV, with a column for each key; unknown values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list({name: None for row in rows for name in row}), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(charts: list[Chart], values: dict[str, Any], title: str) -> str:
    """Return the main numbers, and every chart with its caption."""
    parts = [MARK, f"# {plain(title)}", metrics(values), changes(values), facts(values)]
    parts += ["\n".join(f"- {plain(note)}" for note in values.get("notes") or ())]
    for chart in charts:
        name, heading = chart.name, plain(chart.title)
        values_link = f"Values: [{name}.csv]({name}.csv)."
        parts += [f"## {heading}", f"![{heading}]({name}.svg)", f"{plain(chart.caption)} {values_link}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics(values: dict[str, Any]) -> str:
    """Return a table of the metrics that have an interval."""
    rows = [
        (name, number(metric["value"], DIGITS), interval(metric))
        for name, metric in values.items()
        if isinstance(metric, dict) and is_known(metric.get("value"))
    ]
    return grid(("metric", "value", "95% interval"), rows)


def changes(values: dict[str, Any]) -> str:
    """Return a table of the metrics that have a difference."""
    rows = [
        (name, *(number(metric[key], DIGITS) for key in "ab"), number(metric["difference"]["value"], DIGITS),
         interval(metric["difference"]), number(metric.get("p"), DIGITS))
        for name, metric in values.items()
        if isinstance(metric, dict) and isinstance(metric.get("difference"), dict)
    ]  # fmt: skip
    return grid(("metric", "A", "B", "change", "95% interval", "p"), rows)


def interval(metric: dict[str, Any]) -> str:
    low, high = metric.get("low"), metric.get("high")
    return f"{number(low, DIGITS)} to {number(high, DIGITS)}" if is_known(low) and is_known(high) else ""


def facts(values: dict[str, Any]) -> str:
    """Return a table of all other single values."""
    return grid(("", "value"), [(name, shown(value)) for name, value in single(values)])


def single(values: dict[str, Any]) -> Iterator[tuple[str, str | float]]:
    """Yield each known text and number, those one level down with both names. Metrics have tables of their own."""
    for name, value in values.items():
        if isinstance(value, SINGLE):
            yield name, value
        elif isinstance(value, dict) and name != RESAMPLING and not {"value", "difference"} & set(value):
            yield from ((f"{name}: {key}", x) for key, x in value.items() if isinstance(x, SINGLE))


def shown(value: str | float) -> str:
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else number(value, DIGITS)


def grid(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table of Markdown; empty without rows."""
    lines = [" | ".join(plain(cell) for cell in (row[0].replace("_", " "), *row[1:])) for row in (columns, *rows)]
    lines.insert(1, " | ".join("---" for _ in columns))
    return "\n".join(f"| {line} |" for line in lines) if rows else ""


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", visible(text))
