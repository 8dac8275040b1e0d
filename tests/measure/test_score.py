"""Scoring against plain computations from full logits, and under every batching."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cynosure.measure import Progress, score
from cynosure.models import Head, LanguageModel, split
from cynosure.models.head import N_PROBED
from cynosure.patching.pending import PendingLogits
from cynosure.text import Document
from cynosure.text.windows import led_windows
from tests.tiny import byte_tokenizer, tiny, tiny_model, word_tokenizer

TEXTS = ["the cat sat on the mat. " * 12, "a", "naïve café 猫 🐈‍⬛\n" * 4, "the end"]
DOCUMENTS = [Document(f"doc{i}", text) for i, text in enumerate(TEXTS)]
KEYS = [
    *("model", "protocol", "window", "stride", "dtype", "documents"),
    *("tokens", "nats", "bytes", "chars", "words"),
    *("nats_per_token", "token_perplexity", "word_perplexity", "bits_per_byte", "bits_per_char"),
    *("top1_accuracy", "mean_entropy", "calibration", "excluded", "seconds", "tokens_per_second"),
]
MORE = [
    *("interval", "effective_tokens", "unscored_documents", "bos", "special", "chat", "excluded_tokens", "chats"),
    *("special_strings", "replaced", "notes"),
    *("by_class", "by_position"),
    *("by_frequency", "by_document", "by_loss", "worst_tokens", "worst_spans"),
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny(spread=0.5)


def plain(model: LanguageModel, text: str, window: int, stride: int) -> Iterator[tuple[float, float, bool]]:
    """(nll, entropy, right) of every token, window by window, from the model's own full logits in float64."""
    wide = tiny_model(spread=0.5).double()
    x = [0, *model.tokenizer(text, add_special_tokens=False).input_ids]
    for w in led_windows(len(x), window, stride):
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
    rows = [row for text in TEXTS for row in plain(model, text, 32, summary.setting.stride)]
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
    for end in ("low", "high"):
        per_word = math.exp(values["nats_per_token"][end] * len(rows) / n_words)
        assert values["word_perplexity"][end] == pytest.approx(per_word, rel=1e-12)
    assert values["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-15)
    assert values["bits_per_char"]["value"] == pytest.approx(nats / math.log(2) / n_chars, rel=1e-15)


@pytest.mark.parametrize("batch_tokens", [1, 33, 64, 200, 10_000])
def test_figures_do_not_depend_on_batching(model: LanguageModel, batch_tokens: int) -> None:
    a, b = (score(model, DOCUMENTS, window=32, stride=7, batch_tokens=size) for size in (32, batch_tokens))
    assert b.nats == pytest.approx(a.nats, rel=1e-6)
    first, second = a.to_pandas(), b.to_pandas()
    for name in ("nll", "entropy", "brier", "confidence"):
        np.testing.assert_allclose(first[name], second[name], rtol=3e-6, atol=1e-6)
    for name in ("document", "index", "token_id", "token_bytes", "byte_start", "byte_end", "context", "argmax"):
        np.testing.assert_array_equal(first[name], second[name])


def test_smollm2_does_not_depend_on_batching(smollm2: LanguageModel) -> None:
    texts = [
        Document(str(i), text) for i, text in enumerate(("The cat sat.", "In 1790 the union was young.", "naïve 🐈"))
    ]
    alone, together = (score(smollm2, texts, window=8, batch_tokens=size) for size in (1, 512))
    assert together.nats == pytest.approx(alone.nats, rel=1e-6)
    assert alone.setting.model == "SmolLM2-135M-Instruct (Q4_1 GGUF, dequantised)"


def test_tokens_come_back_in_order_whatever_the_units(model: LanguageModel) -> None:
    scores = score(model, DOCUMENTS, protocol="rolling", window=8, batch_tokens=1)  # units of 16 tokens: many
    assert scores.document_names == [document.name for document in DOCUMENTS]
    assert b"".join(scores.to_pandas()["token_bytes"]) == "".join(TEXTS).encode()


def test_every_token_says_how_many_were_seen_before_it(model: LanguageModel) -> None:
    """Of a document of 12 tokens behind BOS, in windows of 8 positions that each score 4 more."""
    table = score(model, ["a" * 12], window=8, stride=4).to_pandas()
    assert table["context"].tolist() == [*range(1, 9), 5, 6, 7, 8]


def test_a_uniform_model_has_the_vocabulary_for_its_perplexity() -> None:
    summary = score(tiny(spread=0.0), DOCUMENTS, window=16)
    assert summary.figures["token_perplexity"].value == pytest.approx(300, rel=1e-6)
    assert summary.to_json()["mean_entropy"] == pytest.approx(math.log(300), rel=1e-6)


def test_the_keys_are_the_contract(model: LanguageModel) -> None:
    values = score(model, DOCUMENTS, window=16).to_json()
    assert list(values) == [*KEYS, *MORE]
    assert list(values["calibration"])[:4] == ["ece", "brier", "best_temperature", "recoverable_nats_per_token"]
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for name in KEYS[11:16]:
        assert list(values[name]) == ["value", "low", "high"]
    assert (values["protocol"], values["window"], values["stride"], values["documents"]) == ("sliding", 16, 8, 4)
    assert values["excluded"] == []


def test_bos_is_never_scored_after_bos() -> None:
    """A tokenizer that adds BOS gives the same sum as one that does not, and `rolling` says where the peer differs."""
    adding, not_adding = tiny(byte_tokenizer(adds_bos=True)), tiny(byte_tokenizer())
    for protocol in ("sliding", "rolling"):
        bos = "first" if protocol == "sliding" else "auto"
        first, second = (
            score(model, DOCUMENTS, protocol=protocol, bos=bos, window=16) for model in (adding, not_adding)
        )
        assert (first.tokens, first.nats, first.n_bytes) == (second.tokens, second.nats, second.n_bytes)
        assert not any("second BOS" in note for note in second.notes)
        assert any("second BOS" in note for note in first.notes) == (protocol == "rolling")


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
    assert any("per byte and character are withheld" in note and "d" in note for note in summary.notes)


def test_empty_documents_are_left_out_and_said(model: LanguageModel) -> None:
    scores = score(model, [Document("nothing", ""), *DOCUMENTS], window=16)
    without = score(model, DOCUMENTS, window=16)
    assert (scores.nats, scores.tokens, scores.documents) == (without.nats, without.tokens, 4)
    assert "1 document has no token to predict and is left out: nothing" in scores.notes
    assert scores.to_json()["unscored_documents"] == ["nothing"]
    with pytest.raises(ValueError, match="nothing to score: no token to predict in nothing"):
        score(model, [Document("nothing", "")])
    with pytest.raises(ValueError, match="nothing to score"):
        score(model, [])


def test_what_makes_no_sense_is_refused(model: LanguageModel) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"window": 65}, "window 65 is more than the 64 positions of tiny"),
        ({"window": 0}, "window must be at least 1 for sliding, got 0"),
        ({"window": 8, "stride": 9}, "stride must be from 1 to the window, 8, got 9"),
        ({"protocol": "strided?"}, "unknown protocol 'strided.': expected one of sliding, rolling"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            score(model, DOCUMENTS, **options)
    assert score(model, DOCUMENTS).setting.window == 64  # the default is no more than the model has


def test_nan_is_an_error_not_a_figure() -> None:
    broken = tiny()
    apart = split(broken)
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"tiny has weights that are not finite in float32: model.norm.weight .16 of 16.*NaN from doc0"
    ):
        score(apart, DOCUMENTS, window=16)


def test_progress_adds_up(model: LanguageModel) -> None:
    steps: list[Progress] = []
    scores = score(model, DOCUMENTS, window=16, batch_tokens=16, progress=steps.append)
    assert len(steps) > 10
    assert sum(step.tokens for step in steps) == scores.tokens
    assert sum(step.nats for step in steps) == pytest.approx(scores.nats)
    assert sum(step.n_bytes for step in steps) == pytest.approx(scores.n_bytes)


def test_no_full_logits_are_made(smollm2: LanguageModel) -> None:
    """The head is called on the windows too, and its product is left out there."""
    made: list[int] = []

    def look(_: Any, __: Any, output: torch.Tensor) -> None:
        made.append(0 if isinstance(output, PendingLogits) else output.shape[:-1].numel())

    hook = smollm2.model.lm_head.register_forward_hook(look)
    score(smollm2, [Document("d", "The cat sat on the mat, and the dog on the cat. " * 4)], window=32)
    hook.remove()
    assert sum(made) == N_PROBED  # the verification of the head alone
    assert made.count(0) > 2


def test_models_in_memory_are_scored_alike(model: LanguageModel) -> None:
    """A transformers model with its tokenizer, and any body with its head, however that is given."""
    expected = score(model, DOCUMENTS, window=16)
    own, layer = model.model, model.model.lm_head
    parts: list[Any] = [layer, layer.weight, Head(layer.weight, None, 1.0, None)]
    found = [score(own, TEXTS, tokenizer=model.tokenizer, window=16)]
    found += [score(own.model, TEXTS, tokenizer=model.tokenizer, head=head, window=16) for head in parts]
    assert [(scores.tokens, scores.nats) for scores in found] == [(expected.tokens, expected.nats)] * 4
    assert found[0].document_names == ["text 0", "text 1", "text 2", "text 3"]


def test_texts_may_be_paths(model: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(TEXTS[2].encode())
    (from_file, as_text) = (score(model, [text], window=16) for text in (file, TEXTS[2]))
    assert from_file.nats == as_text.nats
    with pytest.raises(TypeError, match="texts must be a list of texts, paths or documents, got one str"):
        score(model, "the text")


def test_what_is_no_model_is_refused(model: LanguageModel) -> None:
    own, tokenizer = model.model, model.tokenizer
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (3, {}, TypeError, "model must be a name, a LanguageModel or a torch module, got int"),
        (own, {}, TypeError, "a model in memory needs its tokenizer"),
        (
            own.model,
            {"tokenizer": tokenizer},
            ValueError,
            "its forward gives no logits; if it is only a backbone, pass its head too",
        ),
        (own.model, {"tokenizer": tokenizer, "head": own.model.norm}, ValueError, "head must be a linear layer"),
        (own.model, {"tokenizer": tokenizer, "head": torch.zeros(9, 3)}, ValueError, "the head needs .1, 8, 3."),
        (Acausal(own.model), {"tokenizer": tokenizer, "head": own.lm_head}, ValueError, "Acausal is not causal"),
    ]
    for other, options, error, message in cases:
        with pytest.raises(error, match=message):
            score(other, TEXTS, **options)


class Acausal(torch.nn.Module):
    """A body that looks ahead."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.body(ids).last_hidden_state
        return states + states.mean(1, keepdim=True)
