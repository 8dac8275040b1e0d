"""What is pleasant from Python: texts as programs hold them, scores that show themselves, comparisons."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch

import cynosure
from cynosure import Meter, token_stats
from cynosure.cli.compare_report import show
from cynosure.measure import Progress, Scores, score
from cynosure.measure.scoring.scorer import reporting
from cynosure.text import Document, as_documents
from tests.tiny import tiny

TEXTS = ["the cat sat on the mat. " * 6, "naïve café <b>", "the end"]


def test_texts_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("from a file")
    rows = [{"text": "one", "id": 7}, {"text": "two", "id": 8}]
    cases: list[tuple[Any, list[str]]] = [
        (["one", "two"], ["one", "two"]),
        ((text for text in ("one", "two")), ["one", "two"]),
        ([path, Document("d", "two")], ["from a file", "two"]),
        (rows, ["one", "two"]),
        (datasets.Dataset.from_list(rows), ["one", "two"]),
        (datasets.Dataset.from_list(rows).to_iterable_dataset(), ["one", "two"]),
        (pd.DataFrame(rows), ["one", "two"]),
        (pd.DataFrame(rows)["text"], ["one", "two"]),
        ([], []),
    ]
    for texts, expected in cases:
        assert [document.text for document in as_documents(texts)] == expected
    (pair,) = as_documents(pd.DataFrame([{"prompt": "2 + 2 =", "completion": " 4"}]))
    assert (pair.text, pair.n_prompt_chars) == ("2 + 2 = 4", 7)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a", math.nan], TypeError, r"texts\[1\] is float nan: expected a str"),
        ([b"a"], TypeError, r"texts\[0\] is bytes b'a'"),
        ([None], TypeError, r"texts\[0\] is NoneType None"),
        (pd.Series(["a", None, math.nan]), TypeError, r"texts\[1\] is (NoneType None|float nan)"),
        ("a text", TypeError, "must be a list of texts, paths or documents, got one str"),
        (7, TypeError, "must be a list of texts, paths or documents, got 7"),
        (datasets.DatasetDict({"test": datasets.Dataset.from_list([])}), TypeError, "DatasetDict of test: give one of"),
        (
            [{"body": "a"}],
            ValueError,
            r"texts\[0\]: no column 'text', only body; name another",
        ),
        (
            [{"text": None}],
            ValueError,
            r"texts\[0\]: column 'text' is null, expected a string; `bad_rows='skip'`",
        ),
        ([Path("squad")], FileNotFoundError, "no such text: there is no file or folder 'squad'"),
        ([Path("/dev/null")], ValueError, "/dev/null is a device, not a text: give a file, a folder or a pipe$"),
    ],
)
def test_what_is_no_text_is_named(texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(as_documents(texts))


@pytest.mark.parametrize("name", ["-", "*.x", "[ab].jsonl", "~", "squad"])
def test_a_path_is_a_file_whatever_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setattr("sys.stdin", None)
    for other in ("a.x", "a.jsonl"):
        Path(other).write_text('{"text": "another"}')
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder {re.escape(repr(name))}"):
        list(as_documents([Path(name)]))
    (tmp_path / name).write_text('{"text": "the cat sat on the mat"}')
    given = tmp_path / name if name == "~" else Path(name)
    (document,) = as_documents([given])
    assert "the cat sat" in document.text
    assert score(tiny(), [given], window=32).documents == 1


def test_options_of_reading(tmp_path: Path) -> None:
    """Those of the command line, for rows that are given and for files."""
    rows = [{"body": "one", "text": "no"}, {"body": None}, math.nan, "two"]
    left_out: list[str] = []
    found = as_documents(rows, column="body", bad_rows="skip", skip=left_out.append)
    assert [document.text for document in found] == ["one", "two"]
    assert [why[:8] for why in left_out] == ["texts[1]", "texts[2]"]
    table, stories, latin = (tmp_path / name for name in ("a.jsonl", "a.txt", "b.txt"))
    table.write_text('{"body": "three"}\n{"body": 7}\n')
    stories.write_text("four|five")
    latin.write_bytes(b"si\xe9x")
    found = as_documents(
        [table, stories, latin], column="body", split_at="|", errors="replace", bad_rows="skip", skip=left_out.append
    )
    assert [document.text for document in found] == ["three", "four", "five", "si\ufffdx"]
    assert len(left_out) == 3
    scores = score(tiny(), [*rows, stories], window=32, column="body", split_at="|", bad_rows="skip")
    assert scores.documents == 4
    assert any(note.startswith("2 rows are left out: texts[1]: ") for note in scores.notes)
    assert cynosure.compare(tiny(), tiny(), rows, window=32, column="body", bad_rows="skip").documents == 2
    with pytest.raises(ValueError, match="bad_rows must be 'stop' or 'skip', got 'drop'"):
        score(tiny(), rows, bad_rows="drop")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colunm'"):
        score(tiny(), rows, colunm="body")


def test_texts_are_read_as_they_are_scored() -> None:
    """A generator is at most a unit ahead of what has been scored."""
    read, ahead = 0, []

    def texts() -> Any:
        nonlocal read
        for _ in range(60):
            read += 1
            yield "the cat sat on the mat. " * 8

    scored = 0

    def say(step: Any) -> None:
        nonlocal scored
        scored += step.tokens
        ahead.append(read - scored // 100)

    score(tiny(), texts(), window=32, batch_tokens=64, progress=say, keep=False)
    assert read == 60
    assert max(ahead) < 20


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(tiny(), TEXTS, window=32)


def test_one_row_a_document(scores: Scores) -> None:
    table = scores.by_document()
    tokens = scores.to_pandas()
    assert table["name"].tolist() == ["text 0", "text 1", "text 2"]
    assert table["bytes"].tolist() == [len(text.encode()) for text in TEXTS]
    for number, row in enumerate(table.to_dict("records")):
        nll = tokens[tokens["document"] == number]["nll"].astype(float)
        assert row["tokens"] == len(nll)
        assert row["nats"] == pytest.approx(nll.sum(), rel=1e-6)
        assert row["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-6)
        assert row["bits_per_byte"] == pytest.approx(nll.sum() / math.log(2) / row["bytes"], rel=1e-6)
    assert scores.documents == 3


def test_tokens_are_texts_too(scores: Scores) -> None:
    table = scores.to_pandas()
    assert "".join(table["token"][table["document"] == 0]) == TEXTS[0]
    assert b"".join(table["token_bytes"]) == "".join(TEXTS).encode()


def test_the_likeliest_tokens_are_texts(tmp_path: Path) -> None:
    """The same in memory and stored; without the tokenizer they stay numbers."""
    model = tiny()
    in_memory = score(model, TEXTS, window=32).to_pandas()
    stored = score(model, TEXTS, window=32, out=tmp_path / "run").to_pandas()
    assert in_memory["argmax_token"].tolist() == stored["argmax_token"].tolist()
    read = cynosure.open_run(tmp_path / "run")
    assert "argmax_token" not in read.to_pandas()
    assert read.to_pandas(model.tokenizer)["argmax_token"].tolist() == in_memory["argmax_token"].tolist()
    seen = in_memory.dropna(subset=["argmax"])
    decoded = [model.tokenizer.decode([int(i)]) for i in seen["argmax"]]
    pairs = [pair for pair in zip(decoded, seen["argmax_token"], strict=True) if "\ufffd" not in pair[0]]
    assert len(pairs) > 20
    assert all(ours == theirs for theirs, ours in pairs)
    assert len(set(seen["argmax_token"])) > 3


def test_tokens_that_are_not_scored_have_no_likeliest_one() -> None:
    table = score(tiny(), TEXTS[:1], protocol="blocks", window=20).to_pandas()
    missing = table["argmax"].isna()
    assert missing.any()
    assert (table["argmax_token"].isna() == missing).all()


def test_without_pandas(scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for frame in (scores.to_pandas, scores.by_document):
        with pytest.raises(ModuleNotFoundError, match=r"^a DataFrame needs the package 'pandas' of the extra 'pandas'"):
            frame()


def test_scores_show_themselves(scores: Scores) -> None:
    text = str(scores)
    value = scores.figures["nats_per_token"].value
    assert re.search(rf"nats per token +{value:.4f}  \d", text)
    assert "bits per byte" in text
    assert "\x1b" not in text
    assert repr(scores) == f"<Scores of tiny: {value:.4f} nats a token over {scores.tokens} tokens>"
    scores.setting = scores.setting._replace(model="<script>alert(1)</script>")
    page = scores._repr_html_()
    assert page.startswith("<table>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert f"<td>{value:.4f}</td>" in page


def test_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    score(tiny(), TEXTS, window=32, progress=True)
    assert "nats a token" in capsys.readouterr().err
    cynosure.compare(tiny(), tiny(), TEXTS, window=32, progress=True)
    assert "nats a token" in capsys.readouterr().err
    score(tiny(), TEXTS, window=32)
    assert capsys.readouterr().err == ""


def test_the_first_process_alone_draws_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, drawn in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with reporting(True) as say:
            say(Progress(10, 20.0, 30.0))
        assert ("cynosure" in capsys.readouterr().err) == drawn


def test_a_comparison_shows_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints are lines of the command line's tables."""
    a, b = score(tiny(), TEXTS, window=32), score(tiny(seed=1), TEXTS, window=32)
    b.setting = b.setting._replace(model="<b>\x1b[2J")
    found = cynosure.compare(a, b)
    text = str(found)
    show(found, [])
    printed = capsys.readouterr().out.splitlines()
    assert "\x1b" not in text
    assert text.splitlines() == printed[: len(text.splitlines())]
    for part in ("bits per byte", "95% interval", "top-1 agreement", "bits than A."):
        assert part in text
    assert repr(found).startswith("<Comparison of tiny (A) and <b>")
    page = found._repr_html_()
    assert "<b>" not in page
    assert f"<td>{found.changes['bits_per_byte'].a:.4f}</td>" in page


def test_models_are_compared_on_texts(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^A is a LanguageModel, not a run: to compare models, give texts as well"):
        cynosure.compare(tiny(), tiny())
    run = score(tiny(), TEXTS, window=32)
    with pytest.raises(FileNotFoundError, match=r"not a run: smollm2 .*; to compare models, give texts as well"):
        cynosure.compare(run, "smollm2")


def test_compare_takes_runs_scores_and_models(tmp_path: Path) -> None:
    a, b = score(tiny(), TEXTS, out=tmp_path / "a", window=32), score(tiny(seed=1), TEXTS, window=32)
    runs = cynosure.compare(tmp_path / "a", b)
    models = cynosure.compare(tiny(), tiny(seed=1), TEXTS, window=32)
    assert runs.changes["bits_per_byte"].a == pytest.approx(a.figures["bits_per_byte"].value)
    assert models.changes["bits_per_byte"].difference.value == pytest.approx(
        runs.changes["bits_per_byte"].difference.value, rel=1e-5
    )
    assert models.divergence is not None
    assert runs.divergence is None
    with pytest.raises(TypeError, match="window: only for comparing models on texts"):
        cynosure.compare(a, b, window=32)


def test_a_meter_without_temperatures() -> None:
    torch.manual_seed(0)
    hidden, head, target = torch.randn(2, 9, 8), torch.randn(17, 8), torch.randint(0, 17, (2, 9))
    n_bytes = torch.arange(1, 18)[target]
    meter, other = Meter(), Meter()
    meter.update(token_stats(hidden, head, target), n_bytes=n_bytes)
    found = meter.compute()
    nats = torch.nn.functional.cross_entropy((hidden @ head.T).double().view(-1, 17), target.view(-1))
    assert found["nats_per_token"] == pytest.approx(nats.item(), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats.item() * 18 / math.log(2) / int(n_bytes.sum()), rel=1e-5)
    assert all(math.isnan(found[name]) for name in ("ece", "brier", "best_temperature"))
    other.update(token_stats(hidden, head, target, temperatures=other.temperatures))
    assert not math.isnan(other.compute()["ece"])
    other.merge(meter)
    assert math.isnan(other.compute()["ece"])
    assert other.compute()["tokens"] == 36
    with pytest.raises(ValueError, match=r"temperatures=meter.temperatures\), or none"):
        meter.update(token_stats(hidden, head, target, temperatures=[1.0]))
