"""TRL's other trainers on a patched model: the same steps, whether they ask for tokens' values or for full logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaForSequenceClassification
from trl import (
    DistillationConfig,
    DistillationTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from trl.experimental.async_distillation import AsyncDistillationTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer
from trl.experimental.online_dpo import OnlineDPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

from cynosure.patching import patch
from tests.patching.trainers import OPTIONS as SHARED
from tests.patching.trainers import padding_tokenizer
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own

SGD = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "bf16": False, "gradient_checkpointing": False}
OPTIONS: dict[str, Any] = SHARED | SGD
SAMPLED = {"num_generations": 2, "max_completion_length": 6, "temperature": 0.7, "beta": 0.1}
LOGGED = ("loss", "grad_norm", "kl", "entropy", "logits/chosen", "logps/rejected", "rewards/margins")


def rows(**columns: Callable[[int], Any]) -> Dataset:
    return Dataset.from_list([{name: value(i) for name, value in columns.items()} for i in range(8)])


def prompt(i: int) -> str:
    return f"number {i} "


def answer(i: int) -> str:
    return "the answer " * (1 + i % 3)


def talk(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt(i)}, {"role": "assistant", "content": answer(i)}]


def guess(i: int) -> str:
    return "a guess"


def length(completions: list[str], **more: Any) -> list[float]:
    return [float(len(text)) for text in completions]


UNPAIRED = rows(prompt=prompt, completion=answer, label=lambda i: i % 2 == 0)
PROMPTS, TALKS = rows(prompt=prompt), rows(messages=talk)
PAIRED = rows(prompt=prompt, chosen=answer, rejected=guess)
TRIPLED = rows(prompt=prompt, chosen=answer, rejected=guess, reference=lambda i: "the best answer")
GENERATED = {"max_completion_length": 6, "temperature": 0.7}
Case = tuple[Any, Any, Dataset, dict[str, Any]]
ASKING_FOR_TOKENS: dict[str, Case] = {
    "KTO": (KTOTrainer, KTOConfig, UNPAIRED, {}),
    "KTO, precomputed": (KTOTrainer, KTOConfig, UNPAIRED, {"precompute_ref_log_probs": True}),
    "KTO, APO": (KTOTrainer, KTOConfig, UNPAIRED, {"loss_type": "apo_zero_unpaired"}),
    "GRPO": (GRPOTrainer, GRPOConfig, PROMPTS, SAMPLED),
    "RLOO": (RLOOTrainer, RLOOConfig, PROMPTS, SAMPLED),
}
WITH_A_TEACHER: dict[str, Case] = {
    "distillation": (DistillationTrainer, DistillationConfig, PROMPTS, GENERATED),
    "distillation, forward": (DistillationTrainer, DistillationConfig, PROMPTS, GENERATED | {"beta": 0.0}),
    "distillation, mixed": (DistillationTrainer, DistillationConfig, PROMPTS, GENERATED | {"beta": 0.3}),
    "GKD": (GKDTrainer, GKDConfig, TALKS, {"max_new_tokens": 4, "lmbda": 0.0}),
    "GKD, forward": (GKDTrainer, GKDConfig, TALKS, {"max_new_tokens": 4, "lmbda": 1.0, "beta": 0.0}),
    "GKD, reverse": (GKDTrainer, GKDConfig, TALKS, {"max_new_tokens": 4, "seq_kd": True, "lmbda": 0.0, "beta": 1.0}),
}
OF_PAIRS: dict[str, Case] = {
    "CPO": (CPOTrainer, CPOConfig, PAIRED, {"max_length": 64}),
    "CPO, IPO": (CPOTrainer, CPOConfig, PAIRED, {"max_length": 64, "loss_type": "ipo", "cpo_alpha": 0.0}),
    "SimPO": (CPOTrainer, CPOConfig, PAIRED, {"max_length": 64, "loss_type": "simpo"}),
    "ORPO": (ORPOTrainer, ORPOConfig, PAIRED, {"max_length": 64}),
}
SERVED = ASKING_FOR_TOKENS | WITH_A_TEACHER | OF_PAIRS
ASKING_FOR_LOGITS: dict[str, Case] = {
    "TPO": (TPOTrainer, TPOConfig, TRIPLED, {}),
    "GOLD": (GOLDTrainer, GOLDConfig, TALKS, {"max_completion_length": 6, "lmbda": 0.0}),
}


def chat_tokenizer() -> Any:
    tokenizer = padding_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    return tokenizer


def trainer_of(case: Case, folder: Path, adapter: Any) -> Any:
    kind, config, data, options = case
    others: dict[str, Any] = {}
    if kind in (DistillationTrainer, GKDTrainer, GOLDTrainer):
        others = {"teacher_model": tiny_model(spread=0.35)}
    if kind in (GRPOTrainer, RLOOTrainer):
        others = {"reward_funcs": length}
    if kind is KTOTrainer and adapter is None:
        others = {"ref_model": tiny_model(spread=0.35)}
    model = tiny_model(spread=0.3)
    if kind in (GRPOTrainer, RLOOTrainer) and adapter is None:  # they load the model that they refer to by its name
        model.save_pretrained(folder / "reference")
        model.config._name_or_path = str(folder / "reference")
    return kind(
        model, args=config(output_dir=str(folder), **(OPTIONS | options)), train_dataset=data,
        processing_class=chat_tokenizer(), peft_config=adapter, **others,
    )  # fmt: skip


def trained(case: Case, folder: Path, adapter: Any, patched: bool) -> tuple[list[Tensor], dict[str, Tensor], list[int]]:
    """What was logged at each step, the weights, and how many losses each model made without logits in training."""
    torch.manual_seed(0)
    trainer = trainer_of(case, folder, adapter)
    handles: list[Any] = []
    if patched and case in SERVED.values():
        handle = patch(trainer)
        handles = [part for part in (handle.model_patch, handle.reference_patch) if part is not None]
    elif patched:
        with pytest.raises(ValueError, match=r"cannot be patched: its loss reads full logits, .*: train it unpatched"):
            patch(trainer)
        models = [getattr(trainer, name, None) for name in ("model", "ref_model", "teacher_model")]
        handles = [patch(model) for model in models if model is not None]
    before = [handle.fused for handle in handles]
    torch.manual_seed(1)
    trainer.train()
    assert all(handle.made_by == [] for handle in handles)
    steps = [line for line in trainer.state.log_history if "loss" in line]
    logged = [torch.tensor([line[name] for name in LOGGED if name in line]) for line in steps]
    fused = [handle.fused - first for handle, first in zip(handles, before, strict=True)]
    return logged, trainer.model.state_dict(), fused


def same(case: Case, folder: Path, adapter: Any = None) -> list[int]:
    """The numbers of losses made without logits by a patched model, which trains as it does alone."""
    own, own_weights, _ = trained(case, folder, adapter, patched=False)
    ours, weights, fused = trained(case, folder, adapter, patched=True)
    assert len(own) == 2
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
    for name, weight in own_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    return fused


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules=["q_proj"])], ids=["whole", "adapter"])
@pytest.mark.parametrize("name", ASKING_FOR_TOKENS)
@pytest.mark.each_value
def test_trainers_that_ask_for_values_of_tokens(tmp_path: Path, name: str, adapter: Any) -> None:
    fused = same(ASKING_FOR_TOKENS[name], tmp_path, adapter)
    assert len(fused) == (2 if adapter is None else 1)
    assert min(fused) >= (0 if "precomputed" in name else 4)
    assert fused[0] >= 4


@pytest.mark.parametrize("name", WITH_A_TEACHER)
@pytest.mark.each_value
def test_trainers_that_learn_from_a_teacher(tmp_path: Path, name: str) -> None:
    fused = same(WITH_A_TEACHER[name], tmp_path)
    assert min(fused) >= 4 or "distillation" in name  # which gives no logits to its models' losses


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.each_value
def test_trainers_that_compare_texts(tmp_path: Path, name: str) -> None:
    assert min(same(OF_PAIRS[name], tmp_path)) >= 4


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.each_variant if i > 1 else ()) for i, x in enumerate(ASKING_FOR_LOGITS)]
)
def test_trainers_that_ask_for_full_logits(tmp_path: Path, name: str) -> None:
    assert not any(same(ASKING_FOR_LOGITS[name], tmp_path))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "why"),
    [(AsyncDistillationTrainer, "it reads the heads of teacher and student"), (OnlineDPOTrainer, "full logits")],
)
def test_trainers_that_a_patch_would_not_help(kind: Any, why: str) -> None:
    trainer = kind.__new__(kind)
    trainer.model_init = None
    with pytest.raises(ValueError, match=f"{why}.*: train it unpatched"):
        patch(trainer)


def test_models_of_rewards_are_refused(tmp_path: Path) -> None:
    config = tiny_model().config
    config.num_labels, config.pad_token_id = 1, 1
    trainer = RewardTrainer(
        LlamaForSequenceClassification(config), RewardConfig(output_dir=str(tmp_path), **OPTIONS),
        train_dataset=PAIRED, processing_class=padding_tokenizer(),
    )  # fmt: skip
    for patched, why in [
        (trainer, "its model predicts a reward and has no vocabulary"),
        (trainer.model, "it names no output embeddings: patch a model that predicts the tokens of a text"),
    ]:
        with pytest.raises(ValueError, match=f"(?i){why}"):
            patch(patched)
