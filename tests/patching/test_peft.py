"""A patched model under PEFT: adapters on its body, on its head, and a head trained whole."""

from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BeftConfig,
    BOFTConfig,
    C3AConfig,
    DeftConfig,
    DeloraConfig,
    FourierFTConfig,
    FrodConfig,
    GloraConfig,
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    IA3Config,
    LilyConfig,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    OSFConfig,
    PeanutConfig,
    PromptTuningConfig,
    PsoftConfig,
    PveraConfig,
    RandLoraConfig,
    ShiraConfig,
    SupertuningConfig,
    TinyLoraConfig,
    TrainableTokensConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    WaveFTConfig,
    get_peft_model,
)
from torch import Tensor

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


def trained_the_same(model: Any) -> dict[str, Tensor]:
    """The gradients of a patched model, whose loss and gradients are those of the model itself."""
    torch.manual_seed(2)
    own = step(model, **batch())
    with patch(model) as patched:
        torch.manual_seed(2)
        ours = step(model, **batch())
        assert patched.made_by == []
    assert_same(own, ours)
    return ours[1]


@pytest.mark.parametrize("where", ADAPTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_train_the_same(name: str, where: str) -> None:
    assert len(trained_the_same(adapted(family(name), **ADAPTERS[where]))) >= 2


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


HEAD = {"target_modules": ["lm_head"]}
BODY = {"target_modules": ["q_proj"]}
DROPOUT = {"lora_dropout": 0.3, "init_lora_weights": False}
TUNERS: dict[str, Any] = {
    "rsLoRA": lambda: LoraConfig(**HEAD, **DROPOUT, use_rslora=True),
    "PiSSA": lambda: LoraConfig(**HEAD, init_lora_weights="pissa"),
    "DoRA": lambda: LoraConfig(**HEAD, **DROPOUT, use_dora=True),
    "DoRA, bias": lambda: LoraConfig(**HEAD, init_lora_weights=False, use_dora=True, lora_bias=False, bias="lora_only"),
    "tokens of the embedding": lambda: LoraConfig(**BODY, trainable_token_indices=[1, 5, 7]),
    "tokens of the head": lambda: LoraConfig(**BODY, trainable_token_indices={"lm_head": [1, 5, 7]}),
    "TrainableTokens": lambda: TrainableTokensConfig(token_indices=[1, 5, 7], target_modules=["embed_tokens"]),
    "tied copy": lambda: LoraConfig(**BODY, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "tied LoRA": lambda: LoraConfig(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
    "IA3": lambda: IA3Config(**HEAD, feedforward_modules=[]),
    "IA3, of states": lambda: IA3Config(**HEAD, feedforward_modules=["lm_head"]),
    "VeRA": lambda: VeraConfig(**HEAD, r=4, vera_dropout=0.2),
    "LoHa": lambda: LoHaConfig(**HEAD),
    "LoKr": lambda: LoKrConfig(**HEAD),
    "AdaLoRA": lambda: AdaLoraConfig(target_modules=["q_proj", "lm_head"], **DROPOUT, total_step=100),
    "BOFT": lambda: BOFTConfig(**HEAD, boft_block_size=4, boft_n_butterfly_factor=1),
    "OFT": lambda: OFTConfig(**HEAD, oft_block_size=4, r=0),
    "HRA": lambda: HRAConfig(**HEAD),
    "FourierFT": lambda: FourierFTConfig(**HEAD, n_frequency=50),
    "SHiRA": lambda: ShiraConfig(**HEAD, r=2),
    "aLoRA": lambda: LoraConfig(**HEAD, **DROPOUT, alora_invocation_tokens=[3, 5]),
    "BEFT": lambda: BeftConfig(**HEAD),
    "C3A": lambda: C3AConfig(**HEAD, block_size=1),
    "DEFT": lambda: DeftConfig(**HEAD),
    "DeLoRA": lambda: DeloraConfig(**HEAD, r=2, module_dropout=0.3),
    "FRoD": lambda: FrodConfig(**HEAD),
    "GLoRA": lambda: GloraConfig(**HEAD),
    "GraLoRA": lambda: GraloraConfig(**HEAD, r=4, gralora_k=1, hybrid_r=2, gralora_dropout=0.3),
    "HiRA": lambda: HiraConfig(**HEAD),
    "Lily": lambda: LilyConfig(**HEAD),
    "MiSS": lambda: MissConfig(**HEAD, r=2),
    "MiSS, Bat": lambda: MissConfig(**HEAD, r=1, init_weights="bat"),
    "OSF": lambda: OSFConfig(**HEAD),
    "PEANuT": lambda: PeanutConfig(**HEAD),
    "PSOFT": lambda: PsoftConfig(**HEAD, r=4),
    "PVeRA": lambda: PveraConfig(**HEAD, r=4),
    "RandLoRA": lambda: RandLoraConfig(**HEAD, r=2),
    "SuperTuning": lambda: SupertuningConfig(**HEAD),
    "TinyLoRA": lambda: TinyLoraConfig(**HEAD),
    "UniLoRA": lambda: UniLoraConfig(**HEAD),
    "VB-LoRA": lambda: VBLoRAConfig(**HEAD, vector_length=1),
    "WaveFT": lambda: WaveFTConfig(**HEAD, n_frequency=50),
    "LayerNorm": lambda: LNTuningConfig(target_modules=["norm"]),
}


@pytest.mark.each_value
@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("name", ["Llama, tied", "Gemma 2", "Phi, biased"])
def test_tuners_whose_head_is_one_linear_map(name: str, tuner: str) -> None:
    config = TUNERS[tuner]()
    config.task_type = "CAUSAL_LM"
    if tuner == "LayerNorm" and name.startswith("Phi"):
        config.target_modules = ["final_layernorm"]
    torch.manual_seed(1)
    model = get_peft_model(family(name), config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))  # away from where an adapter changes nothing
    assert 0 < len(trained_the_same(model)) <= len(trained)
