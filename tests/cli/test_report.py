"""`cynosure report`, and the reports that other commands write at their end."""

import json
import webbrowser
from pathlib import Path

import pytest

import cynosure
from cynosure import reporting
from tests.cli.test_bad_input import Run, refused
from tests.cli.test_cli import run as run
from tests.cli.test_cli import text as text
from tests.reporting.pages import read
from tests.tiny import byte_tokenizer, tiny_model
from tests.training.runs import documents
from tests.training.test_cli import OPTIONS

FAILED = "cynosure: note: there is no report: RuntimeError: no ink"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The folder of another tiny model."""
    folder = tmp_path / "other-model"
    tiny_model(seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def no_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page fails."""

    def fail(page: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("cynosure.reporting.page.Page.html", fail)


def test_report(
    run: Run, tiny_folder: Path, other: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    done = run("score", tiny_folder, text, "--out", a)
    assert f"note: the report is {a / 'report.html'}" in " ".join(done.err.split())
    run("score", other, text, "--out", b, "--no-report")
    assert not (b / "report.html").exists()
    read(a / "report.html")
    (a / "report.html").unlink()
    assert run("report", a).out == f"report: {a / 'report.html'}\n"
    assert json.loads((a / "summary.json").read_text()) == read(a / "report.html").json_of("page-data")
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url, *_: opened.append(url))
    monkeypatch.setattr("typer.launch", webbrowser.open)
    figures = tmp_path / "figures"
    done = run("report", a, b, "--out", tmp_path / "ab.html", "--figures", figures, "--open")
    assert (done.status, opened) == (0, [(tmp_path / "ab.html").as_uri()])
    assert (figures / "summary.json").is_file()
    assert run("report", a, b).out == f"report: {b / 'report-vs-a.html'}\n"
    refused(run("report", tmp_path / "none"), "not a run: ", "has no manifest.json and no train.json")
    refused(run("report", a, "--out", tmp_path / "none" / "a.html"), "--out: no such folder")


def test_every_protocol(run: Run, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    for _ in range(2):  # the report is no foreign file in the folder
        done = run("score", tiny_folder, text, "--protocol", "all", "--out", out)
        assert done.status == 0
        assert "the report is" in done.err
    shown = read(out / "report.html")
    assert "strided-legacy" in shown.inner["th"]
    assert read(reporting.report(out)).json_of("page-data") == shown.json_of("page-data")


def test_compare_into_a_folder(run: Run, tiny_folder: Path, other: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "comparison"
    for name, model in (("a", tiny_folder), ("b", other)):
        run("score", model, text, "--out", tmp_path / name, "--no-report")
    gate = ("--fail-if", "bits_per_byte > 900%")
    for commands, parts in (
        (("compare", tmp_path / "a", tmp_path / "b"), {"tokens"}),
        (("compare", tiny_folder, other, text), set()),
    ):
        done = run(*commands, *gate, "--out", out, "--format", "json")
        assert f"the report is {out / 'report.html'}" in " ".join(done.err.split())
        assert json.loads((out / "comparison.json").read_text()) == json.loads(done.out)
        shown = read(out / "report.html")
        assert json.loads(done.out) == shown.json_of("page-data") | {"gates": json.loads(done.out)["gates"]}
        assert {each.get("id") for _, each in shown.elements} & {"tokens"} == parts
    (out / "report.html").unlink()
    assert run("compare", tmp_path / "a", tmp_path / "b", "--out", out, "--no-report").status == 0
    assert [path.name for path in out.iterdir()] == ["comparison.json"]
    refused(run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "a"), "a holds manifest.json", "--out")


def test_predict_as_a_page(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    done = run("predict", tiny_folder, "the cat", "--truth", " sat", "--top", 4, "--html", tmp_path / "p.html")
    assert f"the page is {tmp_path / 'p.html'}" in " ".join(done.err.split())
    assert len([tag for tag, _ in read(tmp_path / "p.html").elements if tag == "rect"]) == 4
    refused(run("predict", tiny_folder, "the", "--html", tmp_path / "none" / "p.html"), "--html: no such folder")


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_a_training(run: Run, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts", tmp_path / "run"
    texts.mkdir()
    for document in documents():
        (texts / f"{document.name}.txt").write_text(document.text)
    assert run("train", texts, "--out", out, *OPTIONS, "--no-report", "--quiet").status == 0
    assert not (out / "report.html").exists()
    done = run("train", "--out", out, "--resume")
    assert f"the report is {out / 'report.html'}" in " ".join(done.err.split())
    assert "Finished: all" in read(out / "report.html").text


@pytest.mark.filterwarnings("ignore")
def test_a_training_that_diverges_has_a_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "run"
    texts.write_text("".join(document.text for document in documents()))
    judged: list[float] = []

    def wrong(loss: float, *_: object) -> str | None:
        judged.append(loss)
        return "the moon is full" if len(judged) == 2 else None

    monkeypatch.setattr("cynosure.training.loop.what_is_wrong", wrong)
    done = run("train", texts, "--out", out, *OPTIONS, "--quiet")
    assert done.status == 1
    assert "training diverged, because the moon is full" in read(out / "report.html").text


@pytest.mark.usefixtures("no_ink")
def test_a_finished_run_does_not_fail_for_its_report(run: Run, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    text.write_text(text.read_text() * 60)
    done = run("score", tiny_folder, text, "--out", tmp_path / "a", "--quiet")
    assert done.status == 0
    assert " ".join(done.err.split()).startswith(FAILED)
    assert cynosure.open_run(tmp_path / "a").tokens > 0
    done = run("compare", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "c", "--fail-if", "bits_per_byte > -900%")
    assert done.status == 1
    assert FAILED in " ".join(done.err.split())
    refused(run("report", tmp_path / "a"), "RuntimeError: no ink")
