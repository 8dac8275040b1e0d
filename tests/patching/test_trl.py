"""TRL's SFTTrainer on a patched model: the same losses, figures and weights as with its own fused head."""

from contextlib import nullcontext
from functools import partial, wraps
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

import cynosure
from cynosure.patching import patch
from cynosure.patching.forward import FusedHead
from cynosure.patching.probe import probe
from tests.patching.test_patch import batch, family
from tests.patching.trainers import OPTIONS as SHARED
from tests.patching.trainers import figures, padding_tokenizer
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own

OPTIONS: dict[str, Any] = SHARED | {"max_steps": 3, "max_length": 48, "bf16": False, "gradient_checkpointing": False}
ADAPTER = LoraConfig(r=2, target_modules=["q_proj"])
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "completion only": ({"completion_only_loss": True}, None),
    "packing": ({"packing": True, "eval_packing": False}, None),
    "an adapter": ({}, ADAPTER),
    "a loss weighted by probability": ({"loss_type": "dft"}, None),
    "checkpointing, bfloat16": ({"gradient_checkpointing": True, "bf16": True}, None),
}


def texts(packing: bool) -> Dataset:
    if packing:
        return Dataset.from_list([{"text": f"the text of number {i} " * (1 + i % 3)} for i in range(16)])
    return Dataset.from_list(
        [{"prompt": f"the question number {i} ", "completion": "the answer é " * (1 + i % 3)} for i in range(8)]
    )


def trained(folder: Path, patched: bool, options: dict[str, Any], adapter: Any) -> tuple[list[Tensor], Any, Any]:
    """What was logged at each step, the model, and the evaluation."""
    data = texts("packing" in options)
    arguments = SFTConfig(output_dir=str(folder), **(OPTIONS | options))
    torch.manual_seed(0)
    trainer = SFTTrainer(
        tiny_model(spread=0.3), arguments, train_dataset=data, eval_dataset=data.select(range(3)),
        processing_class=padding_tokenizer(), peft_config=adapter,
    )  # fmt: skip
    patch_of = patch(trainer.model) if patched else None
    trainer.train()
    evaluation = trainer.evaluate()
    if patch_of is not None:
        assert patch_of.fused > 7
        assert patch_of.made_by == []
    names = ("loss", "entropy", "mean_token_accuracy")
    logged = [torch.tensor([entry[name] for name in names]) for entry in trainer.state.log_history if "loss" in entry]
    return logged, trainer.model, {name: evaluation[f"eval_{name}"] for name in names}


@pytest.mark.parametrize(
    "case", [name if i < 4 else pytest.param(name, marks=pytest.mark.exhaustive) for i, name in enumerate(CASES)]
)
def test_sft_is_the_same(tmp_path: Path, case: str) -> None:
    options, adapter = CASES[case]
    own, own_model, own_figures = trained(tmp_path, False, options, adapter)
    ours, our_model, our_figures = trained(tmp_path, True, options, adapter)
    close = {"rtol": 2e-2, "atol": 2e-2} if "bf16" in options else {"rtol": 1e-4, "atol": 1e-5}
    assert len(own) == 3
    torch.testing.assert_close(ours, own, **close)
    assert own_figures.keys() == our_figures.keys()
    for name, value in own_figures.items():
        assert our_figures[name] == pytest.approx(value, rel=close["rtol"])
    for (name, a), (_, b) in zip(own_model.named_parameters(), our_model.named_parameters(), strict=True):
        torch.testing.assert_close(b, a, msg=lambda m, n=name: f"{n}: {m}", **close)


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Granite", "Mixtral", "Phi, biased"])
@pytest.mark.parametrize(("shifted", "temperature"), [(False, 0.7), (True, 1.0)])
def test_figures_and_gradients_of_every_token(name: str, shifted: bool, temperature: float) -> None:
    model, inputs = family(name), batch()
    if shifted:
        inputs["shift_labels"] = inputs.pop("labels").roll(-1, 1)
    add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy", "is_top1"))
    asked: dict[str, Any] = {"fused_lm_head": True, "num_items_in_batch": 9}
    asked |= {"output_router_logits": True} if name == "Mixtral" else {}
    upstream = torch.randn(2, 20 - (not shifted), generator=torch.Generator().manual_seed(0))
    found = []
    for patched in (False, True):
        undo = patch(model) if patched else None
        model.zero_grad()
        output = model(**inputs, **asked)
        ((output.log_probs * upstream).sum() + output.loss + (output.entropy * upstream).sum() / 3).backward()
        found.append((output, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        if undo is not None:
            undo.undo()
    (own, own_gradients), (ours, our_gradients) = found
    for field in ("loss", "log_probs", "entropy", "is_top1", "label_mask", "aux_loss"):
        torch.testing.assert_close(getattr(ours, field), getattr(own, field), rtol=1e-4, atol=1e-5)
    assert own_gradients.keys() == our_gradients.keys()
    for parameter, gradient in own_gradients.items():
        torch.testing.assert_close(our_gradients[parameter], gradient, rtol=1e-3, atol=1e-5)


def test_a_row_without_a_label_has_gradients_of_zero() -> None:
    model, inputs = family("Llama"), batch()
    add_fused_lm_head(model)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    with patch(model):
        output = model(**inputs, fused_lm_head=True)
        output.log_probs.sum().backward()
    assert output.loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def as_if_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's head has a temperature, but its closure does not tell."""
    monkeypatch.setattr("cynosure.patching.verify.fused_head", lambda _: FusedHead(outputs=("log_probs",)))


def test_what_cannot_be_proved_equal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_margin(model: Any) -> None:
        add_fused_lm_head(model)
        fused = model.forward

        @wraps(fused)
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = fused(*args, **kwargs)
            if "fused_lm_head" in kwargs:
                output["margin"] = output.log_probs
            return output

        model.forward = forward

    as_if_unread(monkeypatch)
    cases = [
        (partial(add_fused_lm_head, temperature=0.7), "but the model's logits"),
        (with_margin, "it needs margin for every token"),
    ]
    for add, reason in cases:
        model = family("Llama")
        add(model)
        own = probe(model, batch() | {"fused_lm_head": True})
        with pytest.raises(ValueError, match=f"this trainer cannot be patched: .*{reason}"):
            patch(model)
        assert torch.equal(probe(model, batch() | {"fused_lm_head": True}).log_probs, own.log_probs)


@pytest.mark.parametrize("name", ["Llama", "Phi, biased"])
def test_bfloat16_models_are_no_less_equal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's figures are float32 whatever they are made of; its head rounds otherwise than ours."""
    for seed in range(8):
        model = family(name, seed).to(torch.bfloat16)
        add_fused_lm_head(model, temperature=0.8)
        with patch(model):
            pass
    as_if_unread(monkeypatch)
    with pytest.raises(ValueError, match="this trainer cannot be patched"):
        patch(model)


@pytest.mark.parametrize("was_patched", [False, True])
def test_a_head_behind_autocast_is_seen_and_computes_in_its_dtype(
    was_patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family("Llama")
    add_fused_lm_head(model, temperature=0.7)
    exact = model(**batch(), fused_lm_head=True).log_probs
    with patch(model) if was_patched else nullcontext():
        Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model, evaluation_mode=True)
    own = model(**batch(), fused_lm_head=True).log_probs
    with patch(model):
        ours = model(**batch(), fused_lm_head=True).log_probs
        assert model._cynosure_patch.fused > 0
    assert (ours - own).norm() < (exact - own).norm() / 4
    as_if_unread(monkeypatch)
    with pytest.raises(ValueError, match=r"this trainer cannot be patched: .*but the model's logits"):
        patch(model)


def test_a_head_in_float32_stays_so_under_autocast() -> None:
    """As GRPOTrainer's `cast_lm_head_to_fp32` makes it of a bfloat16 model."""
    model = family("Llama").to(torch.bfloat16)
    head = model.lm_head.float()
    head.forward = lambda hidden: torch.nn.functional.linear(hidden.float(), head.weight)  # type: ignore[method-assign]
    add_fused_lm_head(model, 0.7, cast_lm_head_to_fp32=True, outputs=("log_probs", "entropy"))
    with torch.autocast("cpu", torch.bfloat16):
        own = model(**batch(), fused_lm_head=True)
        with patch(model):
            ours = model(**batch(), fused_lm_head=True)
    for a, b in ((own.log_probs, ours.log_probs), (own.entropy, ours.entropy)):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(output.log_probs.sum(), head.weight)[0] for output in (own, ours)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def test_sft_that_minimises_something_else(tmp_path: Path) -> None:
    data = texts(packing=False)
    arguments = SFTConfig(output_dir=str(tmp_path), **(OPTIONS | {"loss_type": "dft"}))
    trainer = SFTTrainer(tiny_model(), arguments, train_dataset=data, processing_class=padding_tokenizer())
    with pytest.raises(ValueError, match="it minimises dft, not the cross-entropy"):
        patch(trainer)


def test_the_entropy_alone_has_a_gradient() -> None:
    model = family("Llama")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    gradients = []
    for context in (nullcontext(), patch(model)):
        with context:
            entropy = model(**batch(), fused_lm_head=True).entropy
            gradients.append(torch.autograd.grad(entropy.square().sum(), model.lm_head.weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def sft_trainer_of(folder: Path, rows_per_process: int) -> SFTTrainer:
    """Of four rows a step and process, or two and two."""
    chosen = {"per_device_train_batch_size": rows_per_process, "gradient_accumulation_steps": 1}
    arguments = SFTConfig(output_dir=str(folder), **(OPTIONS | chosen | {"per_device_eval_batch_size": 3}))
    data = texts(False)
    return SFTTrainer(
        tiny_model(spread=0.3), arguments, train_dataset=data, eval_dataset=data.select(range(7)),
        processing_class=padding_tokenizer(),
    )  # fmt: skip


def test_evaluation_by_tokens_depends_on_no_batch_size(tmp_path: Path) -> None:
    found = []
    for rows in (1, 3, 8):
        data = texts(False)
        arguments = SFTConfig(output_dir=str(tmp_path), per_device_eval_batch_size=rows, **OPTIONS)
        trainer = SFTTrainer(
            tiny_model(spread=0.3),
            arguments,
            train_dataset=data,
            eval_dataset=data,
            processing_class=padding_tokenizer(),
        )
        with cynosure.patch(trainer):
            evaluation = trainer.evaluate()
        found.append(list(figures(evaluation).values()))
        assert evaluation["eval_mean_token_accuracy"] == evaluation["eval_accuracy"]
    assert found[0][-1] == sum(label != -100 for row in trainer.eval_dataset for label in row["labels"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def truths(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The values of tokens (B, T) by their formulas, of full logits (B, T, V)."""
    logp = logits.log_softmax(-1)
    return {
        "log_probs": logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0],
        "entropy": -(logp.exp() * logp).sum(-1),
        "log_sum_sq_probs": logp.exp().square().sum(-1).log(),
        "mean_logits": logits.mean(-1),
    }


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Granite", "Phi, biased"])
@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_values_of_tokens_are_as_near_to_float64_as_those_of_full_logits(name: str, sharpness: float) -> None:
    model, inputs = family(name), batch()
    model.get_output_embeddings().weight.data *= sharpness
    add_fused_lm_head(model, 0.7, outputs=("log_probs", "entropy", "log_sum_sq_probs", "mean_logits"))
    with patch(model), torch.no_grad():
        found = model(**inputs, fused_lm_head=True)
    labels = inputs.pop("labels")[:, 1:]
    with torch.no_grad():
        plain = truths(model(**inputs).logits[:, :-1] / 0.7, labels)
        logits = model.double()(**inputs).logits[:, :-1] / 0.7
        truth = truths(logits, labels)
    counted = labels != -100
    of_logits, of_losses = float(logits.abs().max()), float(-2 * truth["log_probs"][counted].min())
    for field, exact in truth.items():
        # The last two are differences of statistics, of which the largest is twice the loss.
        size = max(of_logits, of_losses) if field in ("log_sum_sq_probs", "mean_logits") else of_logits
        eps = torch.finfo(torch.float32).eps * max(size, 1.0)
        ours, own, exact = (x.double()[counted] for x in (getattr(found, field), plain[field], exact))
        assert (ours - exact).abs().max() <= 2 * (own - exact).abs().max() + eps, field
        assert not getattr(found, field)[~counted].any()


PAIRS = Dataset.from_list(
    [{"prompt": f"number {i} ", "chosen": "the answer " * (1 + i % 3), "rejected": "a guess"} for i in range(8)]
)


def dpo_trainer(folder: Path, options: dict[str, Any], adapter: Any = None) -> DPOTrainer:
    """Of a model and another one that it refers to, or of an adapter and the model without it."""
    chosen = OPTIONS | {"optim": "sgd", "learning_rate": 0.1, "per_device_eval_batch_size": 2} | options
    reference = tiny_model(spread=0.3, seed=1) if adapter is None else None
    torch.manual_seed(0)
    return DPOTrainer(
        tiny_model(spread=0.3), reference, DPOConfig(output_dir=str(folder), **chosen), train_dataset=PAIRS,
        eval_dataset=PAIRS.select(range(3)), processing_class=padding_tokenizer(), peft_config=adapter,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        pytest.param(None, {}, id="plain"),
        pytest.param(None, {"precompute_ref_log_probs": True}, id="precomputed"),
        pytest.param(None, {"loss_type": ["sigmoid", "sft"]}, id="two losses"),
        pytest.param(None, {"use_weighting": True}, id="weighted"),
        pytest.param(ADAPTER, {}, id="adapter", marks=pytest.mark.exhaustive),
        pytest.param(ADAPTER, {"gradient_checkpointing": True}, id="adapter, checkpointing"),
    ],
)
def test_dpo_trains_and_evaluates_as_before(tmp_path: Path, options: dict[str, Any], adapter: Any) -> None:
    def run(patched: bool) -> tuple[list[Tensor], Any, dict[str, float]]:
        trainer = dpo_trainer(tmp_path, options, adapter)
        handle = patch(trainer) if patched else None
        trainer.train()
        found = trainer.evaluate()
        if isinstance(handle, cynosure.TrainerPatch):
            assert handle.model_patch.fused > 6
            assert handle.model_patch.made_by == []
            assert (handle.reference_patch is None) == (adapter is not None)
            if handle.reference_patch is not None and "precompute_ref_log_probs" not in options:
                assert handle.reference_patch.fused > 6
        names = ("loss", "entropy", "logits/chosen", "logps/rejected", "rewards/margins")
        logged = [torch.tensor([line[name] for name in names]) for line in trainer.state.log_history if "loss" in line]
        times = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        return logged, trainer.model.state_dict(), {name: x for name, x in found.items() if name not in times}

    (own, own_weights, own_found), (ours, weights, found) = run(False), run(True)
    assert len(own) == 3
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
    assert "eval_loss" in found
    assert found == pytest.approx(own_found, rel=1e-4, abs=1e-4)
    for name, weight in own_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_policy_and_its_reference_round_alike_under_autocast(tmp_path: Path) -> None:
    """TRL puts autocast around the reference model before `patch` sees it, and around the policy afterwards."""
    trainer = dpo_trainer(tmp_path, {"bf16": True, "max_steps": 1, "gradient_accumulation_steps": 1})
    trainer.ref_model.load_state_dict(trainer.model.state_dict())
    with patch(trainer):
        trainer.train()
    first = trainer.state.log_history[0]
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (0, 0)


def test_a_patched_dpo_trainer_is_restored(tmp_path: Path) -> None:
    trainer = dpo_trainer(tmp_path, {})
    parts = (trainer, trainer.model, trainer.ref_model)
    before = [dict(vars(part)) for part in parts]

    def is_restored() -> bool:
        return [vars(part).keys() for part in parts] == [was.keys() for was in before]

    with patch(trainer, head_dtype=torch.float32) as outer:
        with cynosure.patch(trainer) as inner:
            assert inner is outer
        assert [part._cynosure_patch.head_dtype for part in parts[1:]] == [torch.float32] * 2
        with patch(trainer, head_dtype=torch.bfloat16):
            assert [part._cynosure_patch.head_dtype for part in parts[1:]] == [torch.bfloat16] * 2
        assert all("_cynosure_patch" in vars(part) for part in parts)
    assert is_restored()
    handle = patch(trainer)
    patch(trainer)
    handle.undo()
    assert is_restored()
    with patch(trainer.ref_model):
        with patch(trainer):
            pass
        assert "_cynosure_patch" in vars(trainer.ref_model)
        patch(trainer)
        cynosure.unpatch(trainer)
        assert is_restored()
    torch.nn.init.constant_(trainer.ref_model.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="its own loss is nan"):
        patch(trainer)
    assert is_restored()
    del trainer.model.forward  # as in versions of TRL without a fused head
    with pytest.raises(ValueError, match="computes its loss from full logits: upgrade trl"):
        patch(trainer)


def test_sft_with_label_smoothing(tmp_path: Path) -> None:
    def run(patched: bool) -> tuple[list[float], dict[str, float]]:
        data, chosen = texts(False), OPTIONS | {"label_smoothing_factor": 0.2, "optim": "sgd"}
        arguments = SFTConfig(output_dir=str(tmp_path), **chosen, per_device_eval_batch_size=8)
        trainer = SFTTrainer(
            tiny_model(spread=0.3), arguments, train_dataset=data, eval_dataset=data,
            processing_class=padding_tokenizer(),
        )  # fmt: skip
        handle = patch(trainer) if patched else None
        trainer.train()
        found = trainer.evaluate()
        if handle is not None:
            assert handle.model_patch.made_by == []
            assert found["eval_tokens"] == sum(label != -100 for row in trainer.eval_dataset for label in row["labels"])
        return [line["loss"] for line in trainer.state.log_history if "loss" in line], found

    (own, own_found), (ours, found) = run(False), run(True)
    assert ours == pytest.approx(own, rel=1e-5)
    assert found["eval_loss"] == pytest.approx(own_found["eval_loss"], rel=1e-5)
    assert found["eval_perplexity"] != pytest.approx(exp(found["eval_loss"]), rel=1e-2)  # which is not smoothed
    assert found["eval_mean_token_accuracy"] == found["eval_accuracy"]
