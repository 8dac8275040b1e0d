"""A patched model under PEFT: adapters on its body, on its head, and a head trained whole."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from cynosure.patching import patch
from tests.patching.test_patch import assert_same, batch, family, step

# PEFT's advice on tied heads and on merging, and what it uses of transformers that is to go.
pytestmark = pytest.mark.filterwarnings("ignore")

ADAPTERS: dict[str, dict[str, Any]] = {
    "body": {"target_modules": ["q_proj", "v_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head with a bias": {"target_modules": ["lm_head"], "lora_bias": True},
    "every layer": {"target_modules": "all-linear"},
    "head trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
FAMILIES = ["Llama", "Llama, tied", "Gemma 2", "Granite", "Phi, biased"]


def adapted(model: Any, **options: Any) -> Any:
    """The model with random adapters, dropout in them, in training mode."""
    torch.manual_seed(1)
    chosen = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.3, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(**(chosen | options))).train()


@pytest.mark.parametrize("where", ADAPTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_train_the_same(name: str, where: str) -> None:
    model = adapted(family(name), **ADAPTERS[where])
    torch.manual_seed(2)
    own = step(model, **batch())
    with patch(model) as patched:
        torch.manual_seed(2)
        ours = step(model, **batch())
        assert patched.made_by == []
    assert_same(own, ours)
    assert len(ours[1]) >= 2


@pytest.mark.parametrize("where", ["head", "head trained whole"])
def test_adapters_that_come_after_the_patch(where: str) -> None:
    own = step(adapted(family("Gemma 2"), **ADAPTERS[where]).eval(), **batch())
    model = family("Gemma 2")
    patched = patch(model)
    assert_same(own, step(adapted(model, **ADAPTERS[where]).eval(), **batch()))
    assert patched.made_by == []


def test_an_adapter_that_is_switched_off() -> None:
    model = adapted(family("Llama"), **ADAPTERS["head"]).eval()
    with torch.no_grad(), model.disable_adapter():
        own = model(**batch()).loss
    with torch.no_grad(), patch(model), model.disable_adapter():
        torch.testing.assert_close(model(**batch()).loss, own)


def test_a_learned_prompt() -> None:
    model = get_peft_model(family("Llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    own = step(model, **batch())
    with patch(model) as patched:
        assert_same(own, step(model, **batch()))
        assert patched.made_by == []


def test_what_scales_each_class_by_itself_is_refused() -> None:
    model = adapted(family("Llama"), target_modules=["lm_head"], use_dora=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be patched: between its head and its loss, T needs"):
        patch(model)
