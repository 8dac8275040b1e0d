"""A patched model in Hugging Face's Trainer: the same losses step by step, and the same weights at the end."""

from functools import partial
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import cynosure
from cynosure.patching import patch
from cynosure.patching.labelled import IGNORED
from cynosure.patching.pending import PendingLogits
from tests.patching.trainers import OPTIONS as SHARED
from tests.patching.trainers import figures, padding_tokenizer
from tests.tiny import tiny_model

OPTIONS: dict[str, Any] = SHARED | {"max_steps": 4}


def rows() -> list[dict[str, list[int]]]:
    """Texts of unequal length, some labels ignored, so that normalisation shows."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for n in (5, 40, 11, 30, 7, 22, 60, 3, 18, 9, 33, 50, 4, 28, 45, 6):
        ids = torch.randint(2, 300, (n,), generator=generator).tolist()
        found.append({"input_ids": ids, "attention_mask": [1] * n, "labels": [-100] * (n // 3) + ids[n // 3 :]})
    return found


def trained(folder: Path, patched: bool, **options: Any) -> tuple[list[float], Any, Trainer]:
    """The losses that Trainer logs, and the model. By SGD: Adam blows up the rounding of a gradient of almost 0."""
    model = tiny_model(spread=0.1)
    undo = patch(model) if patched else None
    arguments = TrainingArguments(output_dir=str(folder), **(OPTIONS | {"optim": "sgd"} | options))
    collator = DataCollatorForSeq2Seq(padding_tokenizer())
    trainer = Trainer(model, arguments, collator, train_dataset=rows(), eval_dataset=rows()[:7])
    trainer.train()
    if undo is not None:
        assert undo.fused > 0
        assert undo.made_by == []
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model, trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"bf16": True}, {"average_tokens_across_devices": False}],
    ids=["plain", "checkpointing", "autocast", "local average"],
)
@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_training_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    own, own_model, _ = trained(tmp_path, False, **options)
    ours, our_model, _ = trained(tmp_path, True, **options)
    close = {"rtol": 2e-2, "atol": 2e-2} if "bf16" in options else {"rtol": 1e-4, "atol": 1e-5}
    assert len(own) == 4
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(own), **close)
    for (name, a), (_, b) in zip(own_model.named_parameters(), our_model.named_parameters(), strict=True):
        torch.testing.assert_close(b, a, msg=lambda m, n=name: f"{n}: {m}", **close)


@pytest.mark.filterwarnings("ignore")
def test_evaluation_is_the_same_and_makes_logits_only_for_metrics(tmp_path: Path) -> None:
    options = {"per_device_eval_batch_size": 1, "prediction_loss_only": True}
    _, _, own = trained(tmp_path, False, **options)
    _, model, ours = trained(tmp_path, True, **options)
    assert ours.evaluate()["eval_loss"] == pytest.approx(own.evaluate()["eval_loss"], rel=1e-4)
    assert model._cynosure_patch.made_by == []
    row = {name: torch.tensor([values]) for name, values in rows()[0].items()}
    assert isinstance(model(**row).logits, PendingLogits)
    assert ours.predict(rows()[:2]).metrics["test_loss"] == pytest.approx(own.predict(rows()[:2]).metrics["test_loss"])


def trainer_of(folder: Path, rows_per_process: int) -> Trainer:
    """Of four rows a step and process, or two and two."""
    chosen = OPTIONS | {"per_device_train_batch_size": rows_per_process, "per_device_eval_batch_size": 3}
    return Trainer(
        tiny_model(spread=0.1), TrainingArguments(output_dir=str(folder), **chosen),
        DataCollatorForSeq2Seq(padding_tokenizer()), train_dataset=rows(), eval_dataset=rows()[:7],
    )  # fmt: skip


def evaluated(folder: Path, rows_per_batch: int, **options: Any) -> dict[str, float]:
    """The evaluation of a patched trainer."""
    chosen = OPTIONS | {"per_device_eval_batch_size": rows_per_batch} | options
    arguments = TrainingArguments(output_dir=str(folder), **chosen)
    trainer = Trainer(
        tiny_model(spread=0.3),
        arguments,
        DataCollatorForSeq2Seq(padding_tokenizer()),
        train_dataset=rows(),
        eval_dataset=rows(),
    )
    with cynosure.patch(trainer) as patched:
        found = trainer.evaluate()
        logged = trainer.state.log_history[-1]
        assert patched.model_patch.made_by == []
    assert logged["eval_loss"] == found["eval_loss"]
    assert "eval_tokens" not in trainer.evaluate()
    return figures(found)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_evaluation_by_tokens_depends_on_no_batch_size(tmp_path: Path) -> None:
    found = [evaluated(tmp_path, n) for n in (1, 3, 7, 16)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)
    model, nats, entropies, correct = tiny_model(spread=0.3).double(), [], [], []
    for row in rows():
        labels = torch.tensor(row["labels"])[1:]
        logprobs = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)[labels != IGNORED]
        labels = labels[labels != IGNORED]
        nats += (-logprobs.gather(1, labels[:, None])[:, 0]).tolist()
        entropies += (-(logprobs.exp() * logprobs).sum(-1)).tolist()
        correct += (logprobs.argmax(-1) == labels).tolist()
    loss = fmean(nats)
    truth = {"loss": loss, "perplexity": exp(loss), "accuracy": fmean(correct), "entropy": fmean(entropies)}
    assert found[0]["tokens"] == len(nats)
    for name, value in truth.items():
        assert found[0][name] == pytest.approx(value, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_patched_trainer_trains_and_predicts_as_before(tmp_path: Path) -> None:
    def run(patched: bool) -> tuple[Any, Any]:
        arguments = TrainingArguments(output_dir=str(tmp_path), eval_strategy="steps", eval_steps=2, **OPTIONS)
        trainer = Trainer(
            tiny_model(spread=0.1), arguments, DataCollatorForSeq2Seq(padding_tokenizer()), train_dataset=rows(),
            eval_dataset=rows()[:5],
        )  # fmt: skip
        if patched:
            cynosure.patch(trainer)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.predict(rows()[:3])

    (own, own_prediction), (ours, prediction) = run(False), run(True)
    assert ours == pytest.approx(own, rel=1e-4)
    torch.testing.assert_close(torch.tensor(prediction.predictions), torch.tensor(own_prediction.predictions))
    assert {"test_loss", "test_perplexity", "test_tokens"} <= prediction.metrics.keys()


def test_trainers_that_minimise_something_else(tmp_path: Path) -> None:
    class Weighing(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(*args, **kwargs)

    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(ValueError, match=r"it has its own compute_loss, .*: patch only its model"):
        cynosure.patch(Weighing(tiny_model(), arguments))


def test_trainers_that_cannot_be_patched(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"compute_loss_func": lambda *_, **__: None}, "its compute_loss_func computes"),
        ({}, {"compute_loss_func": partial(cynosure.causal_lm_loss, tiny_model())}, "its compute_loss_func computes"),
        ({}, {"model": None, "model_init": lambda: tiny_model()}, "patch the model inside model_init"),
    ]
    for options, given, reason in cases:
        arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, **options)
        trainer = Trainer(**({"model": tiny_model(), "args": arguments} | given))
        with pytest.raises(ValueError, match=reason):
            cynosure.patch(trainer)
        assert not {"evaluation_loop", "prediction_step"} & vars(trainer).keys()


def lines(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore")
def test_our_own_loss_function_is_the_models_loss(tmp_path: Path) -> None:
    """Trainer smooths no labels if it has a loss function."""

    def trainer_with(function: Any, smoothing: float = 0.0) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path), optim="sgd", label_smoothing_factor=smoothing, **(OPTIONS | {"max_steps": 2})
        )  # fmt: skip
        return Trainer(
            tiny_model(spread=0.1), arguments, DataCollatorForSeq2Seq(padding_tokenizer()), train_dataset=rows(),
            eval_dataset=rows()[:7], compute_loss_func=function,
        )  # fmt: skip

    own = trainer_with(None)
    own.train()
    for function, factor in (
        (cynosure.causal_lm_loss, None),
        (partial(cynosure.causal_lm_loss, use_cache=False, normalizer=1000.0), 1000.0),
    ):
        trainer = trainer_with(function, smoothing=0.3)
        smoother = trainer.label_smoother
        with cynosure.patch(trainer):
            if factor is None:
                trainer.train()
                assert lines(trainer) == pytest.approx(lines(own), rel=1e-4)
                with cynosure.patch(own):
                    assert figures(trainer.evaluate()) == pytest.approx(figures(own.evaluate()), rel=1e-3)
            else:
                inputs = DataCollatorForSeq2Seq(padding_tokenizer())(rows()[:3])
                loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=torch.tensor(5))
                total = cynosure.causal_lm_loss(trainer.model, **inputs, normalizer=factor)
                assert loss.item() == pytest.approx(total.item())
        assert trainer.compute_loss_func is function
        assert trainer.label_smoother is smoother
        assert "compute_loss" not in vars(trainer)


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True},
        {"average_tokens_across_devices": False},
        {"gradient_accumulation_steps": 1},
        {"gradient_checkpointing": True, "bf16": True},
    ],
    ids=["accumulating", "local average", "plain", "checkpointing"],
)
@pytest.mark.filterwarnings("ignore")
def test_label_smoothing_is_trainers_own(tmp_path: Path, options: dict[str, Any]) -> None:
    bf16 = "bf16" in options

    def run(patched: bool) -> tuple[list[float], Any, dict[str, float]]:
        chosen = OPTIONS | options | {"label_smoothing_factor": 0.2, "per_device_eval_batch_size": 7}
        chosen["optim"] = "sgd"  # Adam would divide a gradient of nothing by its own rounding
        trainer = Trainer(
            tiny_model(spread=0.3), TrainingArguments(output_dir=str(tmp_path), **chosen),
            DataCollatorForSeq2Seq(padding_tokenizer()), train_dataset=rows(), eval_dataset=rows()[:7],
        )  # fmt: skip
        smoother = trainer.label_smoother
        handle = cynosure.patch(trainer) if patched else None
        trainer.train()
        found = trainer.evaluate()
        if handle is not None:
            assert handle.model_patch.made_by == []
            assert handle.model_patch.fused > 0
            cynosure.unpatch(trainer)
            assert trainer.label_smoother is smoother is not None
            assert trainer.evaluate()["eval_loss"] == pytest.approx(found["eval_loss"], rel=1e-5 if not bf16 else 1e-2)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.model.state_dict(), found

    (own, own_weights, own_found), (ours, weights, found) = run(False), run(True)
    close = {"rtol": 2e-2, "atol": 2e-2} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(own), **close)
    for name, weight in own_weights.items():
        torch.testing.assert_close(weights[name], weight, msg=lambda m, n=name: f"{n}: {m}", **close)
    assert found["eval_loss"] == pytest.approx(own_found["eval_loss"], rel=1e-2 if bf16 else 1e-5)
    assert abs(found["eval_perplexity"] - exp(found["eval_loss"])) > 1  # which is not smoothed


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_smoothed_evaluation_depends_on_no_batch_size(tmp_path: Path) -> None:
    found = [evaluated(tmp_path, n, label_smoothing_factor=0.2) for n in (1, 3, 16)]
    plain = evaluated(tmp_path, 3)
    for other in found:
        assert other == pytest.approx(found[0], rel=1e-6)
        assert other | {"loss": 0} == pytest.approx(plain | {"loss": 0}, rel=1e-6)
        assert other["loss"] != pytest.approx(plain["loss"], rel=1e-3)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_a_trainer_patched_twice_and_after_its_model(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2)
    trainer.evaluate()  # Accelerate prepares the model
    before, model_before = dict(vars(trainer)), dict(vars(trainer.model))
    with cynosure.patch(trainer) as outer:
        with cynosure.patch(trainer) as inner:
            assert inner is outer
        assert "eval_tokens" in trainer.evaluate()
    assert "eval_tokens" not in trainer.evaluate()
    assert vars(trainer.model) == model_before
    assert vars(trainer).keys() == before.keys()
    with cynosure.patch(trainer.model):
        with cynosure.patch(trainer):
            pass
        assert "_cynosure_patch" in vars(trainer.model)
        cynosure.patch(trainer)
        cynosure.unpatch(trainer)
        assert vars(trainer.model) == model_before
    assert vars(trainer).keys() == before.keys()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.filterwarnings("ignore")
def test_seq2seq_trainer(tmp_path: Path, smoothing: float) -> None:
    """Its encoder-decoder does not shift, and its labels make the decoder's inputs."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 300}

    def run(patched: bool) -> tuple[list[float], dict[str, float]]:
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path), **OPTIONS, label_smoothing_factor=smoothing, per_device_eval_batch_size=7,
            predict_with_generate=False,
        )  # fmt: skip
        trainer = Seq2SeqTrainer(
            model, arguments, DataCollatorForSeq2Seq(padding_tokenizer(), model), train_dataset=rows(),
            eval_dataset=rows()[:7],
        )  # fmt: skip
        handle = cynosure.patch(trainer) if patched else None
        trainer.train()
        found = trainer.evaluate()
        assert handle is None or handle.model_patch.made_by == []
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], found

    (own, own_found), (ours, found) = run(False), run(True)
    assert ours == pytest.approx(own, rel=1e-4)
    assert found["eval_loss"] == pytest.approx(own_found["eval_loss"], rel=1e-4)
    assert found["eval_tokens"] == sum(label != IGNORED for row in rows()[:7] for label in row["labels"])


@pytest.mark.parametrize("items", [None, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore")
def test_smoothed_gradients_are_as_near_to_float64_as_trainers_own(
    tmp_path: Path, dtype: torch.dtype, items: int | None
) -> None:
    collator = DataCollatorForSeq2Seq(padding_tokenizer())
    arguments = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.2, **OPTIONS)

    def step(kind: torch.dtype, patched: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = tiny_model(spread=0.3).to(dtype).to(kind)
        trainer = Trainer(model, arguments, collator)
        if patched:
            cynosure.patch(trainer)
        loss = trainer.compute_loss(model, dict(collator(rows()[:3])), num_items_in_batch=items)
        (2 * loss).backward()
        return loss.detach().double(), {name: p.grad.double() for name, p in model.named_parameters()}

    exact, own, ours = step(torch.float64, False), step(dtype, False), step(dtype, True)
    eps = torch.finfo(dtype).eps
    assert abs(ours[0] - exact[0]) <= 2 * abs(own[0] - exact[0]) + 4 * torch.finfo(torch.float32).eps * exact[0]
    for name, truth in exact[1].items():
        error, theirs = ((found[1][name] - truth).norm() for found in (ours, own))
        assert error <= 2 * theirs + eps * truth.norm(), name
