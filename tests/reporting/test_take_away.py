"""The figures of a report as files."""

import csv
import json
from pathlib import Path

import pytest

from cynosure.reporting.charts.compare import compare_charts
from cynosure.reporting.charts.score import score_charts
from cynosure.reporting.take_away import write_figures
from tests.reporting.values import HOSTILE, comparison_values, score_values

SOME = ("confidence", "loss-by-document")


def write(folder: Path, title: str = "A title") -> None:
    values = score_values()
    write_figures(folder, [each for each in score_charts(values) if each.name in SOME], values, title)


def test_every_chart_is_written_three_times_with_a_summary(tmp_path: Path) -> None:
    write(tmp_path / "new" / "figures")
    folder = tmp_path / "new" / "figures"
    names = {f"{name}.{kind}" for name in SOME for kind in ("svg", "png", "csv")}
    assert {path.name for path in folder.iterdir()} == names | {"summary.json", "summary.md"}
    assert json.loads((folder / "summary.json").read_text()) == score_values()
    assert (folder / "confidence.svg").read_text(encoding="utf-8").startswith("<svg")
    assert (folder / "confidence.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_every_value_and_nothing_for_unknown_ones(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / "loss-by-document.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = {row["document"]: row for row in score_values()["by_document"]}
    assert len(rows) == 59
    assert all(float(row["bits_per_byte"]) == known[row["document"]]["bits_per_byte"] for row in rows)
    assert {row["document"]: row["low"] for row in rows}["texts/02.txt"] == ""
    assert HOSTILE in known


def test_a_name_that_is_not_unicode_is_written_as_escapes(tmp_path: Path) -> None:
    values = score_values()
    for row in values["by_document"]:
        row["document"] = f"{row['document']}\udcff"
    write_figures(tmp_path, score_charts(values)[4:5], values, "\udcff")
    assert "texts/00.txt\\udcff" in (tmp_path / "loss-by-document.csv").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "summary.json").read_text()) == values


def test_the_markdown_reads_as_a_summary(tmp_path: Path) -> None:
    write(tmp_path, title=f"Of {HOSTILE}")
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| nats per token | 3.0000 | 2.9000 to 3.1000 |" in text
    assert "word perplexity" not in text
    assert "| tokens | 1,000 |" in text
    assert "| calibration: best temperature | 1.1000 |" in text
    assert "seed" not in text
    assert "- a note" in text
    assert "![Confidence](confidence.svg)" in text
    assert "\\</script\\>\\<img" in text
    assert "\x00" not in text


def test_the_markdown_of_a_comparison_has_the_changes(tmp_path: Path) -> None:
    values = comparison_values()
    write_figures(tmp_path, compare_charts(values)[1:2], values, "A and B")
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| bits per byte | 1.0000 | 0.9000 | -0.1000 | -0.2000 to 0.0000 | 0.0300 |" in text
    assert "| b: model | two |" in text


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, "One")
    (tmp_path / "confidence.svg").write_text("old", encoding="utf-8")
    (tmp_path / "confidence.svg.0123456789abcdef.partial").write_text("interrupted", encoding="utf-8")
    write(tmp_path, "Two")
    assert "# Two" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert (tmp_path / "confidence.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize("name", ["notes.txt", "confidence.csv", "summary.json", "summary.md", "temperature.svg"])
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds {name}, which is not of a report: give another folder"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_charts_of_an_earlier_report_do_not_stay_among_these(tmp_path: Path) -> None:
    values = comparison_values()
    write_figures(tmp_path, compare_charts(values)[1:2], values, "A and B")
    assert (tmp_path / "change-by-class.png").exists()
    write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 + 3 * len(SOME)


def test_a_file_that_a_user_put_among_them_is_left_alone(tmp_path: Path) -> None:
    values = score_values()
    charts = [each for each in score_charts(values) if each.name in SOME]
    write_figures(tmp_path, charts[:1], values, f"Values: [{charts[1].name}.csv]({charts[1].name}.csv)")
    (tmp_path / f"{charts[1].name}.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"holds {charts[1].name}\.csv, which is not of a report"):
        write_figures(tmp_path, charts, values, "A title")
    assert (tmp_path / f"{charts[1].name}.csv").read_text(encoding="utf-8") == "mine"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        write(tmp_path / "file")
