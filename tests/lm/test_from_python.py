"""What is pleasant from Python: texts as programs hold them, scores that show themselves, comparisons."""

import math
import re
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch

import cynosure
from cynosure import Meter, token_stats
from cynosure.measure import Scores, score
from cynosure.text import Document, as_documents
from tests.lm.conftest import tiny

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
        ([{"body": "a"}], ValueError, r"texts\[0\] has no text in a column 'text': it has body"),
        ([Path("squad")], FileNotFoundError, "no such text: 'squad'"),
    ],
)
def test_what_is_no_text_is_named(texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(as_documents(texts))


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
    score(tiny(), TEXTS, window=32)
    assert capsys.readouterr().err == ""


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
    with pytest.raises(TypeError, match="window is of models and texts"):
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
