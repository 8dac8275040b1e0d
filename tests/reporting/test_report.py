"""Reports of scored runs, of two compared, of a training and of a prediction: their numbers, parts and places."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import cynosure
from cynosure.reporting import prediction_page, writing
from cynosure.reporting.train_page import SHOWN_SAMPLES, spread
from cynosure.training import Trained
from cynosure.training.folder import RunFolder
from tests.reporting.conftest import TEXTS, Runs
from tests.reporting.pages import HOSTILE, SHOWN, Page, at, read
from tests.tiny import ruling_out, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own


def check_numbers(page: Page, values: Any) -> None:
    """Assert that every number of the page is the one of its key."""
    assert page.numbers
    for key, value in page.numbers:
        assert value == at(values, key), key


def links(page: Page) -> set[str]:
    """Return the anchors that the page links to, all of which it has."""
    found = {str(each["href"])[1:] for tag, each in page.elements if tag == "a"}
    assert found <= {each.get("id") for _, each in page.elements}
    return found


def test_a_run(runs: Runs, tmp_path: Path) -> None:
    page = read(cynosure.report(runs.a, out=tmp_path / "a.html"))
    saved = json.loads((runs.a / "summary.json").read_text())
    check_numbers(page, saved)
    assert page.json_of("page-data") == saved
    assert {"bits_per_byte.value", "token_perplexity.low", "calibration.ece", "calibration.brier"} <= {
        key for key, _ in page.numbers
    }
    assert links(page) == {"main", "tokens", "part-where", "part-calibration", "part-metrics", "part-notes"}
    assert {"loss-by-document", "reliability"} <= page.json_of("chart-data").keys()
    assert f"The hardest document is {SHOWN}" in page.text.replace("</script><script>alert(1)</script>", "")
    assert cynosure.open_run(runs.a).store.manifest["model"]["weights_sha256"] in page.text  # type: ignore[union-attr]


def test_the_page_is_the_same_every_time(runs: Runs, tmp_path: Path) -> None:
    first, second = (cynosure.report(runs.a, out=tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_two_runs(runs: Runs, tmp_path: Path) -> None:
    page = read(cynosure.report(runs.a, runs.b, out=tmp_path / "ab.html"))
    values = cynosure.compare(runs.a, runs.b).to_json()
    check_numbers(page, values)
    assert page.json_of("page-data") == values
    assert {"bits_per_byte.difference.low", "losses.0.nats_a", "wins.b"} <= {key for key, _ in page.numbers}
    assert {"tokens", "part-where", "part-segments"} <= links(page)


def test_runs_of_one_model_are_told_apart(runs: Runs, tmp_path: Path) -> None:
    step = Path(shutil.copytree(runs.a, tmp_path / "step-2"))
    text = cynosure.report(runs.a, step).read_text(encoding="utf-8")
    assert f"{step} compared with {runs.a}</h1>" in text
    assert f">{runs.a}</dd>" in text


def test_default_places(runs: Runs, trained: Trained, tmp_path: Path) -> None:
    a, b = (Path(shutil.copytree(run, tmp_path / run.name)) for run in runs)
    assert cynosure.report(a) == a / "report.html"
    assert cynosure.report(str(a), str(b)) == b / "report-vs-a.html"
    assert cynosure.report(cynosure.open_run(b)) == b / "report.html"
    long = Path(shutil.copytree(a, tmp_path / ("\N{SNOWMAN}" * 85)))  # the longest name of a folder
    assert cynosure.report(long, b).name == "report-vs-" + "\N{SNOWMAN}" * 50 + ".html"
    for folder in (a, b):
        cynosure.score(tiny(seed=folder == b), TEXTS, out=folder)  # a report is no foreign file in a run
    assert cynosure.report(trained.folder) == trained.folder / "report.html"


def test_reports_are_removed_with_their_run(runs: Runs, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs.a, tmp_path / "run"))
    for name in ("report.html", "report-vs-<\n.html", "report.html.0123456789abcdef.partial"):
        (folder / name).touch()
    cynosure.measure.remove_run(folder)
    assert not list(folder.iterdir())


def test_figures_are_those_of_the_page(runs: Runs, tmp_path: Path) -> None:
    page = read(cynosure.report(runs.a, out=tmp_path / "a.html", figures=tmp_path / "figures"))
    names = page.json_of("chart-data")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "summary.json", "summary.md", *(f"{name}.{kind}" for name in names for kind in ("svg", "png", "csv"))
    }  # fmt: skip
    assert json.loads((tmp_path / "figures" / "summary.json").read_text()) == page.json_of("page-data")


def test_bins_are_those_of_the_summary(runs: Runs, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs.a, tmp_path / "run"))
    scores = cynosure.open_run(folder)
    scores.n_bins, scores.binning = 4, "width"
    scores.save()
    assert read(cynosure.report(folder)).json_of("page-data") == scores.to_json()
    (folder / "summary.json").write_text("{")
    assert read(cynosure.report(folder)).json_of("page-data")["calibration"]["n_bins"] == 15


def test_scores_that_were_not_stored(tmp_path: Path) -> None:
    with_tokens = cynosure.score(tiny(), ["the cat sat on the mat. " * 5])
    without = cynosure.score(tiny(), ["the cat sat on the mat. " * 5], keep=False)
    assert "tokens" in links(read(cynosure.report(with_tokens, out=tmp_path / "a.html")))
    assert "tokens" not in links(read(cynosure.report(without, out=tmp_path / "b.html")))
    with pytest.raises(ValueError, match="give `out`"):
        cynosure.report(with_tokens)


def test_an_infinite_loss(tmp_path: Path) -> None:
    model = tiny()
    ruling_out(model.model, 100)
    page = read(cynosure.report(cynosure.score(model, ["the cat sat on the mat. " * 5]), out=tmp_path / "a.html"))
    assert "The loss is infinite" in page.text
    assert ("nats_per_token.value", None) in page.numbers


def test_protocols_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for protocol in ("sliding", "strided"):
        cynosure.score(tiny(), ["the cat sat on the mat. " * 9], protocol=protocol, out=folder / protocol)
    page = read(cynosure.report(folder))
    assert page.json_of("page-data") == cynosure.open_run(folder / "sliding").to_json()
    for name in ("sliding", "strided", "strided-legacy"):
        assert page.inner["th"].count(name) == 1
    assert "rolling" not in page.inner["th"]
    assert cynosure.report(folder) == folder / "report.html"
    cynosure.measure.check_all_own(folder)


def test_a_training(trained: Trained, tmp_path: Path) -> None:
    page = read(cynosure.report(trained.folder, out=tmp_path / "run.html"))
    values = page.json_of("page-data")
    check_numbers(page, values)
    assert trained.scores is not None
    assert values["scores"] == trained.scores.to_json()
    assert values["last"] == RunFolder(trained.folder).lines("metrics.jsonl")[-1]
    assert [line["step"] for line in values["validations"]] == [3, 12]
    assert "Finished: all 12 steps were trained" in page.text
    assert (
        len({sample["step"] for sample in values["samples"]})
        == page.inner["h3"].count("Step ")
        < len(values["samples"])
    )
    assert links(page) == {"main", "tokens", "part-curves", "part-calibration", "part-samples"}
    assert {"loss", "learning-rate", "gradient-norm", "reliability-3", "reliability-12"} <= page.json_of(
        "chart-data"
    ).keys()


def test_a_training_with_nothing_held_out(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    for name in ("validation.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "scores")
    page = read(cynosure.report(folder))
    assert links(page) == {"main", "part-curves"}
    assert page.json_of("page-data")["validations"] == []


def test_where_a_training_stopped(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    shutil.rmtree(folder / "scores")
    RunFolder(folder).rewind(6)
    page = read(cynosure.report(folder))
    assert "Unfinished: it stopped after step 6 of 12." in page.text
    assert "tokens" not in links(page)
    (folder / "diverged-000007.json").write_text(json.dumps({"step": 7, "why": f"the loss is {HOSTILE}"}))
    page = read(cynosure.report(folder))
    assert "Stopped at step 7 of 12: training diverged, because the loss is </script>" in page.text
    RunFolder(folder).rewind(0)
    with pytest.raises(ValueError, match="has no step yet"):
        cynosure.report(folder)


def test_samples_are_spread_over_the_run() -> None:
    samples = [{"step": step, "text": str(i)} for step in range(1, 101) for i in range(2)]
    steps = sorted({sample["step"] for sample in spread(samples)})
    assert len(spread(samples)) == 2 * SHOWN_SAMPLES == 2 * len(steps)
    assert (steps[0], steps[-1]) == (1, 100)
    assert spread([]) == []


def test_a_prediction() -> None:
    prediction = cynosure.predict(tiny(max_position_embeddings=128), f"the cat {HOSTILE}", truth=" the 猫\n", top=300)
    page = Page(prediction_page(prediction).html())
    page.check()
    check_numbers(page, prediction.to_json())
    widths = [float(str(each["width"])) for tag, each in page.elements if tag == "rect"]
    assert len(widths) == 300
    assert widths == pytest.approx(
        [100 * token.probability / prediction.top[0].probability for token in prediction.top]
    )
    assert SHOWN.split(">", 1)[1] in page.text
    assert prediction.reading() in page.text


def test_a_place_where_no_file_can_be(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name a file"):
        cynosure.report(runs.a, out=tmp_path, figures=tmp_path / "figures")
    with pytest.raises(ValueError, match="no such folder: "):
        cynosure.report(runs.a, out=tmp_path / "none" / "a.html")
    assert not (tmp_path / "figures").exists()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a run: .* has no manifest.json and no train.json"):
        cynosure.report(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a run"):
        cynosure.report(tmp_path, tmp_path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_disk(runs: Runs, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write = writing.write_out

    def read_only(path: Path, data: bytes) -> None:
        if path.parent == runs.a:
            raise OSError(number, os.strerror(number), str(path))
        write(path, data)

    monkeypatch.setattr(writing, "write_out", read_only)
    with pytest.raises(PermissionError, match=r"report.html cannot be written .*: `cynosure report` with `out`"):
        cynosure.report(runs.a)
    assert cynosure.report(runs.a, out=tmp_path / "a.html").is_file()


def test_a_training_shows_itself_in_a_notebook(trained: Trained) -> None:
    shown = trained._repr_html_()
    assert shown.startswith(f"<table><caption>{trained.folder}</caption>")
    assert trained.scores is not None
    bits = f"{trained.scores.figures['bits_per_byte'].value:.4f}"
    for value in (f"{trained.parameters:,}", "12", str(trained.best_step), bits):
        assert f"<td>{value}</td>" in shown
