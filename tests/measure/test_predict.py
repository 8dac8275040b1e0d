"""What is predicted is the model's own distribution, and its reading fits the numbers."""

import math

import pytest
import torch

from cynosure.cli.predict import perplexity_line
from cynosure.measure import predict
from cynosure.measure.prediction import Candidate, Prediction, Surprise, read_surprise
from cynosure.models import LanguageModel
from tests.tiny import byte_tokenizer, tiny

FOX = "The quick brown fox jumps over the"


def test_the_top_is_the_models_own(smollm2: LanguageModel) -> None:
    found = predict(smollm2, FOX, truth=" dog", top=5)
    ids = [1, *smollm2.tokenizer(FOX).input_ids]  # led by the file's BOS
    with torch.no_grad():
        logp = torch.log_softmax(smollm2.model(torch.tensor([ids])).logits[0, -1].double(), -1)
    top = logp.topk(5)
    assert [candidate.id for candidate in found.top] == top.indices.tolist()
    assert [candidate.probability for candidate in found.top] == pytest.approx(top.values.exp().tolist(), rel=1e-4)
    assert found.top[0].token == " lazy"
    assert found.entropy_nats == pytest.approx(-(logp.exp() * logp).sum().item(), rel=1e-5)
    (dog,) = found.truth
    (id_,) = smollm2.tokenizer(" dog").input_ids
    assert dog.id == id_
    assert dog.nll_nats == pytest.approx(-logp[id_].item(), rel=1e-5)
    assert dog.nll_bits == pytest.approx(dog.nll_nats / math.log(2))
    assert dog.rank == 1 + int((logp > logp[id_]).sum())
    assert found.perplexity == pytest.approx(math.exp(dog.nll_nats))


def test_a_truth_of_several_tokens_follows_the_chain_rule() -> None:
    model = tiny(spread=0.5)
    whole = predict(model, "the", truth="cat 猫")
    text, nats = "the", 0.0
    for piece, n_tokens in (("c", 1), ("a", 1), ("t", 1), (" ", 1), ("猫", 3)):
        part = predict(model, text, truth=piece)
        assert len(part.truth) == n_tokens
        text, nats = text + piece, nats + part.nll_nats
    assert len(whole.truth) == 7
    assert whole.nll_nats == pytest.approx(nats, rel=1e-6)
    values = whole.to_json()["truth"]
    assert values["probability"] == pytest.approx(math.exp(-nats), rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(nats / 7), rel=1e-5)
    assert whole.to_json()["top"][0]["id"] == whole.top[0].id


def test_a_truth_that_would_merge_with_the_text_is_taken_apart() -> None:
    model = tiny()
    assert [token.token for token in predict(model, "t", truth="h").truth] == ["h"]  # "th" is one token


def test_a_long_truth_sees_all_before_it() -> None:
    model = tiny(spread=0.5)
    first, second = predict(model, "a", truth="bc").truth[1], predict(model, "ab", truth="c").truth[0]
    assert first.nll_nats == pytest.approx(second.nll_nats, rel=1e-6)


def test_an_empty_text_is_predicted_from_the_prefix() -> None:
    assert len(predict(tiny(), "", top=3).top) == 3
    with pytest.raises(ValueError, match="nothing to predict from"):
        predict(tiny(byte_tokenizer(special={})), "")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="the truth '' has no tokens"):
        predict(tiny(), "a", truth="")
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        predict(tiny(), "a", top=0)
    with pytest.raises(ValueError, match="the text is 101 tokens long, more than the 64 positions of tiny"):
        predict(tiny(), "a" * 100)
    assert len(predict(tiny(), "a", top=10_000).top) == 300  # all there are


@pytest.mark.parametrize(
    ("probability", "rank", "best", "reading"),
    [
        (0.9, 1, 0.9, "Sure and right"),
        (0.3, 1, 0.3, "Right but unsure"),
        (0.01, 4, 0.9, "Sure and wrong"),
        (0.04, 4, 0.2, "Unsure"),
    ],
)
def test_readings(probability: float, rank: int, best: float, reading: str) -> None:
    nll = -math.log(probability)
    expected = Candidate(0, " dog", best) if rank == 1 else Candidate(1, " cat", best)
    token = Surprise(0, " dog", probability, rank, nll, expected)
    sentence = read_surprise((token,), nll)
    assert sentence.startswith(reading)
    assert '" dog"' in sentence
    several = read_surprise((Surprise(2, "\n", 0.9, 1, 0.1, Candidate(2, "\n", 0.9)), token), nll + 0.1)
    assert f'nats come from " dog". {reading}' in several or "0.2" in several


def surprise(token: str, probability: float, likely: str, best: float) -> Surprise:
    return Surprise(5, token, probability, 9, -math.log(probability), Candidate(7, likely, best))


def test_a_truth_without_its_space_is_no_mistake_of_the_model() -> None:
    reading = read_surprise((surprise("Paris", 1e-7, " Paris", 0.9),), 16.1)
    assert 'The two differ in white space alone: was " Paris" meant?' in reading
    assert "mistake" not in reading
    assert "0.00001%" not in reading
    assert "< 0.0001%" in reading
    assert "costliest kind of mistake" in read_surprise((surprise(" Rome", 1e-7, " Paris", 0.9),), 16.1)


@pytest.mark.parametrize(
    ("nats", "words"), [(3.0, "as a fair draw among that many tokens."), (14.39, "a fair draw among all 49,152 tokens")]
)
def test_a_perplexity_above_the_vocabulary_is_no_draw_from_it(nats: float, words: str) -> None:
    truth = (surprise("x", math.exp(-nats), "y", 0.2),)
    assert words in perplexity_line(Prediction("m", "t", 1.0, (), truth, 49_152))
