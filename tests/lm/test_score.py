"""Scoring against plain computations from full logits, and under every batching."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cynosure.measure import Summary, score
from cynosure.measure.score import make_plan, score_documents
from cynosure.models import LanguageModel
from cynosure.text import Document, windows
from tests.lm.conftest import byte_tokenizer, tiny, tiny_model, word_tokenizer

TEXTS = ["the cat sat on the mat. " * 12, "a", "naïve café 猫 🐈‍⬛\n" * 4, "the end"]
DOCUMENTS = [Document(f"doc{i}", text) for i, text in enumerate(TEXTS)]
KEYS = [
    *("model", "protocol", "window", "stride", "dtype", "documents"),
    *("tokens", "nats", "bytes", "chars", "words"),
    *("nats_per_token", "token_perplexity", "word_perplexity", "bits_per_byte", "bits_per_char"),
    *("top1_accuracy", "mean_entropy", "calibration", "excluded", "seconds", "tokens_per_second"),
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny(spread=0.5)


def plain(model: LanguageModel, text: str, window: int, stride: int) -> Iterator[tuple[float, float, bool]]:
    """(nll, entropy, right) of every token, window by window, from the model's own full logits in float64."""
    wide = tiny_model(spread=0.5).double()
    x = [0, *model.tokenizer(text, add_special_tokens=False).input_ids]
    for w in windows(len(x), window, stride):
        with torch.no_grad():
            logits = wide(torch.tensor([x[w.see_start : w.see_stop]])).logits[0, -w.n_scored :]
        logp = torch.log_softmax(logits, -1)
        for row, target in zip(logp, x[w.score_start : w.see_stop + 1], strict=True):
            yield -row[target].item(), -(row.exp() * row).sum().item(), int(row.argmax()) == target


@pytest.mark.parametrize(
    ("protocol", "stride"), [("sliding", None), ("sliding", 5), ("sliding", 32), ("rolling", None)]
)
def test_a_summary_is_what_full_logits_give(model: LanguageModel, protocol: str, stride: int | None) -> None:
    summary = score(model, DOCUMENTS, protocol=protocol, window=32, stride=stride)
    rows = [row for text in TEXTS for row in plain(model, text, 32, summary.stride)]
    nll, entropy, right = map(list, zip(*rows, strict=True))
    values = summary.to_json()
    assert values["tokens"] == len(rows)
    assert values["nats"] == pytest.approx(math.fsum(nll), rel=1e-6)
    assert values["mean_entropy"] == pytest.approx(np.mean(entropy), rel=1e-6)
    assert values["top1_accuracy"] == np.mean(right)
    n_bytes, n_chars = sum(len(text.encode()) for text in TEXTS), sum(map(len, TEXTS))
    n_words = 6 * 12 + 1 + 1 + 4 * 4 + 1 + 2  # with the empty one after a space or line end that ends a text
    assert (values["bytes"], values["chars"], values["words"]) == (n_bytes, n_chars, n_words)
    nats = values["nats"]
    assert values["nats_per_token"]["value"] == nats / len(rows)
    assert values["token_perplexity"]["value"] == math.exp(nats / len(rows))
    assert values["word_perplexity"]["value"] == math.exp(nats / n_words)
    assert values["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-15)
    assert values["bits_per_char"]["value"] == pytest.approx(nats / math.log(2) / n_chars, rel=1e-15)


@pytest.mark.parametrize("batch_tokens", [1, 33, 64, 200, 10_000])
def test_figures_do_not_depend_on_batching(model: LanguageModel, batch_tokens: int) -> None:
    plans = [make_plan(model, "sliding", 32, 7, size) for size in (32, batch_tokens)]
    first, second = ([*score_documents(plan, DOCUMENTS, lambda _: None)] for plan in plans)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a.nll, b.nll, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(a.entropy, b.entropy, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(a.correct, b.correct)


def test_smollm2_does_not_depend_on_batching(smollm2: LanguageModel) -> None:
    texts = [
        Document(str(i), text) for i, text in enumerate(("The cat sat.", "In 1790 the union was young.", "naïve 🐈"))
    ]
    alone, together = (score(smollm2, texts, window=8, batch_tokens=size) for size in (1, 512))
    assert together.nats == pytest.approx(alone.nats, rel=1e-6)
    assert alone.model == "SmolLM2-135M-Instruct (Q4_1 GGUF, dequantised)"


def test_documents_come_back_in_order_whatever_the_pools(model: LanguageModel) -> None:
    plan = make_plan(model, "rolling", 8, None, 1)  # a pool of 16 tokens: several pools
    assert [d.name for d in score_documents(plan, DOCUMENTS, lambda _: None)] == [d.name for d in DOCUMENTS]


def test_a_uniform_model_has_the_vocabulary_for_its_perplexity() -> None:
    summary = score(tiny(spread=0.0), DOCUMENTS, window=16)
    assert summary.figures["token_perplexity"].value == pytest.approx(300, rel=1e-6)
    assert summary.to_json()["mean_entropy"] == pytest.approx(math.log(300), rel=1e-6)


def test_the_keys_are_the_contract(model: LanguageModel) -> None:
    values = score(model, DOCUMENTS, window=16).to_json()
    assert list(values) == KEYS
    for name in KEYS[11:16]:
        assert list(values[name]) == ["value", "low", "high"]
    assert (values["protocol"], values["window"], values["stride"], values["documents"]) == ("sliding", 16, 8, 4)
    assert values["excluded"] == []


def test_bos_is_never_scored_after_bos() -> None:
    """A tokenizer that adds BOS gives the same sum as one that does not, and `rolling` says where the peer differs."""
    adding, not_adding = tiny(byte_tokenizer(adds_bos=True)), tiny(byte_tokenizer())
    for protocol in ("sliding", "rolling"):
        first, second = (score(model, DOCUMENTS, protocol=protocol, window=16) for model in (adding, not_adding))
        assert first.totals == second.totals
        assert not second.notes
        assert bool(first.notes) == (protocol == "rolling")


def test_without_a_prefix_the_first_token_is_left_out_and_listed() -> None:
    bare = tiny(byte_tokenizer(special={}))
    summary = score(bare, [Document("d", "猫 the cat")], window=16)
    values = summary.to_json()
    assert values["tokens"] == len(bare.tokenizer("猫 the cat").input_ids) - 1
    assert values["words"] is None
    assert values["word_perplexity"]["value"] is None
    (left_out,) = values["excluded"]
    assert (left_out["document"], left_out["byte_start"], left_out["byte_end"]) == ("d", 0, 1)
    assert "neither BOS nor EOS" in left_out["reason"]
    assert values["bytes"] + 1 == len("猫 the cat".encode())
    with pytest.raises(ValueError, match="rolling needs a BOS or EOS token"):
        score(bare, DOCUMENTS, protocol="rolling")


def test_bytes_of_a_normalised_text_are_disowned() -> None:
    tokenizer = word_tokenizer(lowercase=True)
    tokenizer.eos_token = "."
    summary = score(tiny(tokenizer), [Document("d", "The cat sat.")], window=16)
    values = summary.to_json()
    assert values["tokens"] == 4
    assert values["bytes"] is values["chars"] is None
    assert values["bits_per_byte"]["value"] is None
    assert values["token_perplexity"]["value"] > 1
    assert any("no figures per byte" in note and "d" in note for note in summary.notes)


def test_empty_documents_are_left_out_and_said(model: LanguageModel) -> None:
    summary = score(model, [Document("nothing", ""), *DOCUMENTS], window=16)
    assert summary.totals == score(model, DOCUMENTS, window=16).totals
    assert summary.notes == ("left out as empty: nothing",)
    with pytest.raises(ValueError, match="nothing to score: no token in nothing"):
        score(model, [Document("nothing", "")])
    with pytest.raises(ValueError, match="nothing to score"):
        score(model, [])


def test_what_makes_no_sense_is_refused(model: LanguageModel) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"window": 65}, "window 65 is more than the 64 positions of tiny"),
        ({"window": 0}, "window must be at least 1"),
        ({"window": 8, "stride": 9}, "stride must be from 1 to the window, 8, got 9"),
        ({"protocol": "strided?"}, "unknown protocol 'strided.': there is sliding, rolling"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            score(model, DOCUMENTS, **options)
    assert score(model, DOCUMENTS).window == 64  # the default is no more than the model has


def test_nan_is_an_error_not_a_figure() -> None:
    broken = tiny()
    plan = make_plan(broken, "sliding", 16, None, None)
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="tiny gives NaN in float32 for doc0"):
        list(score_documents(plan, DOCUMENTS, lambda _: None))


def test_progress_adds_up(model: LanguageModel) -> None:
    steps: list[Any] = []
    summary: Summary = score(model, DOCUMENTS, window=16, batch_tokens=16, progress=steps.append)
    assert len(steps) > 10
    assert sum(step.tokens for step in steps) == summary.totals.tokens
    assert sum(step.nats for step in steps) == pytest.approx(summary.nats)
    assert sum(step.n_bytes for step in steps) == pytest.approx(summary.totals.bytes)


def test_no_full_logits_are_made(smollm2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own forward, which would make them, is not called on the windows; only its body is."""
    seen: list[int] = []
    monkeypatch.setattr(smollm2.model, "forward", recorded(smollm2.model.forward, seen))
    score(smollm2, [Document("d", "The cat sat on the mat, and the dog on the cat. " * 4)], window=32)
    assert max(seen) <= 8  # the verification of the head alone


def recorded(forward: Any, seen: list[int]) -> Any:
    def wrapper(*args: Any, **options: Any) -> Any:
        seen.append(options["input_ids"].numel())
        return forward(*args, **options)

    return wrapper
