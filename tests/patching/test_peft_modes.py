"""A patched model under PEFT whose adapters are merged, mixed, switched or gated: equal to the model as it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdamssConfig,
    C3AConfig,
    CartridgeConfig,
    GraloraConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PolyConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RoadConfig,
    XLoraConfig,
    get_peft_model,
)

from cynosure.patching import patch
from tests.patching.test_patch import assert_same, batch, family, step

# PEFT's advice on tied heads and on merging, and what it uses of transformers that is to go.
pytestmark = pytest.mark.filterwarnings("ignore")

INVOCATION = [3, 5]
ROAD = {"task_type": "CAUSAL_LM", "target_modules": ["lm_head"], "group_size": 2, "init_weights": False}


def lora(**options: Any) -> LoraConfig:
    chosen = {"r": 2, "target_modules": ["q_proj", "lm_head"], "lora_alpha": 4, "init_lora_weights": False}
    return LoraConfig(**(chosen | options))


def adapted(model: Any, *more: Any, **options: Any) -> Any:
    """The model with adapters "default" and, of `more` configurations, "1", "2", ..., all of them trained."""
    torch.manual_seed(1)
    model = get_peft_model(model, lora(task_type="CAUSAL_LM", **options))
    for number, config in enumerate(more, 1):
        model.add_adapter(str(number), config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def even(name: str) -> Any:
    """A model of a known family with 98 classes, in pairs of which some adapters have them."""
    model = family(name)
    model.resize_token_embeddings(98, mean_resizing=False)
    return model


def same(
    model: Any, inputs: Any, within: Callable[[Any], AbstractContextManager[Any]] = lambda _: nullcontext()
) -> None:
    """Loss and gradients of two steps are those of the model itself, and no logits are made."""
    with within(model):
        torch.manual_seed(2)
        own = step(model, **inputs)
    with patch(model) as patched:
        for _ in range(2):
            with within(model):
                torch.manual_seed(2)
                ours = step(model, **inputs)
            assert patched.made_by == []
            assert_same(own, ours)


NAMES = [["default", "1"], ["1", "__base__"], ["1", "1"]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("name", ["Llama", "Llama, tied", "Gemma 2", "Phi, biased"])
def test_an_adapter_for_each_row(name: str, names: list[str], bias: bool) -> None:
    options = {"lora_bias": bias} if name != "Llama, tied" else {}
    model = adapted(family(name), lora(r=3, **options), **options).eval()
    same(model, batch() | {"adapter_names": names})


def test_an_adapter_for_each_row_that_makes_logits_tells_so() -> None:
    torch.manual_seed(1)
    model = get_peft_model(even("Llama"), RoadConfig(**ROAD))
    model.add_adapter("1", RoadConfig(**ROAD))
    for parameter in model.parameters():
        parameter.requires_grad_()
    inputs = batch() | {"adapter_names": ["default", "1"]}
    own = step(model.eval(), **inputs)
    with (
        patch(model),
        pytest.warns(UserWarning, match=r"is patched, but its head is a layer of peft\.tuners\.road"),
    ):
        assert_same(own, step(model, **inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("invoked", [(9, 4), (9, None), (None, None), (18, 0)])
@pytest.mark.parametrize("name", ["Llama", "Phi, biased"])
def test_an_adapter_from_its_invocation_on(name: str, invoked: tuple[int | None, ...], bias: bool) -> None:
    model = adapted(family(name), alora_invocation_tokens=INVOCATION, lora_dropout=0.3, lora_bias=bias).train()
    inputs = batch()
    inputs["input_ids"][inputs["input_ids"] == 3] = 4
    for row, at in zip(inputs["input_ids"], invoked, strict=True):
        if at is not None:
            row[at : at + 2] = torch.tensor(INVOCATION)
    same(model, inputs)
    model.eval()
    model.add_adapter("1", lora())
    for names in (["default", "1"], ["default", "__base__"]):
        same(model, inputs | {"adapter_names": names})


def active(*names: str) -> Callable[[Any], AbstractContextManager[Any]]:
    def within(model: Any) -> AbstractContextManager[Any]:
        model.base_model.set_adapter(list(names))
        return nullcontext()

    return within


MODES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], AbstractContextManager[Any]]]] = {
    "several active": (lambda m: adapted(m, lora(r=3, lora_dropout=0.2)), active("default", "1")),
    "another active": (lambda m: adapted(m, lora(r=3, lora_dropout=0.2)), active("1")),
    "DoRA and LoRA": (lambda m: adapted(m, lora(r=3, use_dora=True)), active("default", "1")),
    "rank-stabilized": (lambda m: adapted(m, use_rslora=True, lora_dropout=0.5), active("default")),
    "on the body alone": (lambda m: adapted(m, lora(target_modules=["q_proj"])), active("1")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["Llama, tied", "Gemma 2", "Phi, biased"])
def test_modes(name: str, mode: str) -> None:
    make, within = MODES[mode]
    same(make(family(name)).train(), batch(), within)


def test_an_adapter_that_is_set_between_patch_and_forward() -> None:
    model = adapted(family("Gemma 2"), lora(r=3)).train()
    model.set_adapter("1")
    own = step(model, **batch())
    model.set_adapter("default")
    with patch(model) as patched:
        model.set_adapter("1")
        assert_same(own, step(model, **batch()))
        assert patched.made_by == []


@pytest.mark.parametrize("name", ["Llama, tied", "Gemma 2", "Phi, biased"])
def test_adapters_that_are_merged_and_unloaded(name: str) -> None:
    model = adapted(family(name)).train()
    inner = model.get_base_model()
    inner.requires_grad_()
    with patch(model) as patched:
        for change in (model.merge_adapter, model.unmerge_adapter, model.merge_and_unload):
            change()
            ours = step(inner, **batch())
            assert patched.made_by == []
            patched.paused = True
            assert_same(step(inner, **batch()), ours)
            patched.paused = False


def test_adapters_that_are_switched_off_within() -> None:
    model = adapted(family("Gemma 2")).train()
    model.base_model.model.model.norm.requires_grad_()
    same(model, batch(), lambda m: m.disable_adapter())


IN_BLOCKS: dict[str, Callable[[], Any]] = {
    "AdaMSS": lambda: AdamssConfig(target_modules=["lm_head"], r=8, num_subspaces=3, subspace_rank=2),
    "C3A": lambda: C3AConfig(target_modules=["lm_head"], block_size=2),
    "GraLoRA": lambda: GraloraConfig(target_modules=["lm_head"], r=4, gralora_k=2, hybrid_r=2, gralora_dropout=0.3),
    "RoAd": lambda: RoadConfig(**ROAD),
    "RoAd 2": lambda: RoadConfig(**(ROAD | {"group_size": 14, "variant": "road_2"})),
    "RoAd 4": lambda: RoadConfig(**(ROAD | {"group_size": 14, "variant": "road_4"})),
}


@pytest.mark.parametrize("tuner", IN_BLOCKS)
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Phi, biased"])
def test_adapters_of_blocks_of_classes(name: str, tuner: str) -> None:
    if tuner == "AdaMSS":
        pytest.importorskip("sklearn", reason="PEFT finds its clusters by scikit-learn")
    torch.manual_seed(1)
    model = get_peft_model(even(name), IN_BLOCKS[tuner]()).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    same(model, batch())
    model.base_model.model.model.embed_tokens.weight.requires_grad_()
    same(model, batch(), lambda m: m.disable_adapter())


def prompts(**more: Any) -> dict[str, Any]:
    return {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3} | more


PROMPTS: dict[str, Callable[[], Any]] = {
    "prompt": lambda: PromptTuningConfig(**prompts()),
    "prefix": lambda: PrefixTuningConfig(**prompts()),
    "projected prefix": lambda: PrefixTuningConfig(**prompts(prefix_projection=True, encoder_hidden_size=8)),
    "P-tuning": lambda: PromptEncoderConfig(**prompts(encoder_hidden_size=8)),
    "multitask": lambda: MultitaskPromptTuningConfig(**prompts(num_tasks=2, num_ranks=1)),
    "cartridge": lambda: CartridgeConfig(**prompts(num_frozen_tokens=1)),
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Phi, biased"])
def test_virtual_tokens(name: str, kind: str) -> None:
    torch.manual_seed(1)
    model = get_peft_model(family(name), PROMPTS[kind]())
    inputs = batch() | ({"task_ids": torch.tensor([0, 1])} if kind == "multitask" else {})
    with patch(model) as patched:
        ours = step(model, **inputs)
        assert patched.made_by == []
        patched.paused = True
        assert_same(step(model, **inputs), ours)


def test_experts_of_adapters(tmp_path: Path) -> None:
    """X-LoRA: the updates are scaled by what a first pass of the model has given."""
    for number in range(2):
        adapted(family("Gemma 2"), target_modules=["q_proj"]).save_pretrained(tmp_path / str(number))
    adapters = {str(number): str(tmp_path / str(number)) for number in range(2)}
    model = family("Gemma 2")
    model.config.use_cache = False
    same(get_peft_model(model, XLoraConfig(task_type="CAUSAL_LM", hidden_size=16, adapters=adapters)), batch())


def of_tasks(name: str, *targets: str) -> Any:
    torch.manual_seed(1)
    config = PolyConfig(task_type="CAUSAL_LM", target_modules=list(targets), r=2, n_tasks=2, n_skills=2)
    return get_peft_model(family(name), config).eval()


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Phi, biased"])
def test_adapters_by_tasks(name: str) -> None:
    model, inputs = of_tasks(name, "q_proj"), batch() | {"task_ids": torch.tensor([0, 1])}
    own = step(model, **inputs)
    with patch(model, example=inputs) as patched, patch(model):
        assert_same(own, step(model, **inputs))
        assert patched.made_by == []


def test_adapters_by_tasks_that_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"its own forward fails .*: task_ids should not be None\. Give patch an example"
    ):
        patch(of_tasks("Llama", "q_proj"))
    with pytest.raises(ValueError, match=r"its head is a layer of peft\.tuners\.poly"):
        patch(of_tasks("Llama", "lm_head"), example=batch() | {"task_ids": torch.tensor([0, 1])})
