"""Heads of every make: the same loss and gradients without logits, or the true reason why not."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from cynosure.patching import patch
from tests.loss.subclasses import Float8, LinearAlone, Opened, Parted
from tests.patching.test_patch import SIZES, V, assert_same, batch, family, step

D = SIZES["hidden_size"]


def same_without_logits(model: Any) -> None:
    """Loss and all gradients of two steps are those of the model as it is, and no logits are made."""
    torch.manual_seed(2)
    own = step(model, **batch())
    with patch(model) as patched:
        for _ in range(2):
            torch.manual_seed(2)
            ours = step(model, **batch())
            assert patched.made_by == []
            assert_same(own, ours)


def refusal(model: Any) -> str:
    """Why a model cannot be patched; it is left as it was."""
    before = dict(vars(model))
    with pytest.raises(ValueError, match="cannot be patched") as error:
        patch(model)
    assert vars(model) == before
    return str(error.value)


def old_weight_norm(head: nn.Module) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        torch.nn.utils.weight_norm(head)


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm by a hook": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda head: prune.l1_unstructured(head, "weight", 0.5),
}


@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Phi, biased"])
def test_a_weight_that_is_computed(name: str, how: str) -> None:
    model = family(name)
    COMPUTED[how](model.lm_head)
    same_without_logits(model)
    assert "weight" not in dict(model.lm_head.named_parameters(recurse=False))


class OfParameter(nn.Module):
    """A head that is a parameter and a function of states and it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix, self.function = nn.Parameter(torch.randn(V, D)), function

    def forward(self, hidden: Tensor) -> Tensor:
        return self.function(hidden, self.matrix)


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.t() + self.bias


class ForEachClass(nn.Module):
    """Factors, offsets and a temperature that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(D, V), nn.Parameter(torch.rand(V) + 0.5)
        self.offset, self.temperature = nn.Parameter(torch.randn(V)), nn.Parameter(torch.tensor(-1.5))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.temperature * self.linear(hidden) * self.factor - self.offset.view(1, 1, -1)


class OfTwo(nn.Module):
    """Two heads whose logits are added, of the same states and of others, one of them the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, V), nn.Linear(D, V), nn.Linear(D, V, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.a(hidden) + 0.5 * self.b(hidden) - self.c(torch.tanh(hidden)) * -2


def of_parameter(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: OfParameter(function)


REPLACED: dict[str, Callable[[], nn.Module]] = {
    "a forward of its own": lambda: OwnForward(D, V),
    "h @ w.t()": of_parameter(lambda h, w: h @ w.t()),
    "h @ w.mT": of_parameter(lambda h, w: h @ w.mT),
    "h @ w.t()[None]": of_parameter(lambda h, w: h @ w.t()[None]),
    "torch.matmul": of_parameter(lambda h, w: torch.matmul(h, w.transpose(0, 1))),
    "inner": of_parameter(lambda h, w: torch.inner(h, w)),
    "einsum": of_parameter(lambda h, w: torch.einsum("btd,vd->btv", h, w)),
    "einsum, turned round": of_parameter(lambda h, w: torch.einsum("xy, ...y -> ...x", w, h)),
    "einsum of a transposed weight": of_parameter(lambda h, w: torch.einsum("btd,dv->btv", [h, w.t()])),
    "cosines": of_parameter(lambda h, w: 3 * F.linear(F.normalize(h, dim=-1), F.normalize(w, dim=-1))),
    "embedding": of_parameter(lambda h, w: F.linear(h, w)),
    "layers before it": lambda: nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D), nn.Linear(D, V)),
    "two factors": lambda: nn.Sequential(nn.Linear(D, 4, bias=False), nn.Linear(4, V)),
    "for each class": ForEachClass,
    "of two": OfTwo,
}


@pytest.mark.parametrize("make", REPLACED)
def test_a_head_of_another_make(make: str) -> None:
    model = family("Llama")
    torch.manual_seed(1)
    model.lm_head = REPLACED[make]()
    same_without_logits(model)


class Unnamed(transformers.LlamaForCausalLM):
    """Its forward multiplies by the embedding, and it names another layer as its head, or none."""

    lies = False

    def get_output_embeddings(self) -> Any:
        return self.model.layers[0].mlp.up_proj if self.lies else None

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        hidden = self.model(input_ids).last_hidden_state
        logits = F.linear(hidden, self.model.embed_tokens.weight)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)


def test_a_model_that_does_not_say_what_its_head_is_or_lies() -> None:
    torch.manual_seed(0)
    model = Unnamed(transformers.LlamaConfig(**SIZES)).eval()
    same_without_logits(model)
    model.lies = True
    same_without_logits(model)


def test_a_head_that_makes_logits_in_an_unknown_way_is_refused() -> None:
    model = family("Llama")
    model.lm_head = OfParameter(lambda h, w: (h[..., None, :] * w).sum(-1))
    assert refusal(model) == (
        "LlamaForCausalLM cannot be patched: no matmul of hidden states and one weight in its forward gives 97 classes"
    )


def test_a_head_in_no_grad_inside_of_an_autograd_function_is_left_alone() -> None:
    """What is multiplied inside of a function's forward has a backward of its own."""

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(hidden, weight)
            return F.linear(hidden, weight)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> Any:
            hidden, weight = ctx.saved_tensors
            return 0.5 * upstream[0] @ weight, 0.5 * torch.einsum("btv,btd->vd", upstream[0], hidden)

    model = family("Llama")
    model.lm_head = OfParameter(lambda h, w: Halved.apply(h, w))
    own = step(model, **batch())
    with patch(model) as patched:
        patched.warned = True
        assert_same(own, step(model, **batch()))


def quantized(make: Callable[[nn.Linear], nn.Module]) -> Any:
    """A model of 128 classes whose head has been made anew; the rest is in float32."""
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 128, "hidden_size": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.lm_head = make(model.lm_head)
    return model


def four_bit(linear: nn.Linear, **options: Any) -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer: nn.Module = bitsandbytes.nn.Linear4bit(64, 128, bias=False, quant_type="nf4", **options)
    layer.load_state_dict(linear.state_dict())
    layer.to("cpu").weight.requires_grad_(False)
    layer.support_avx512bf16_for_cpu = False  # a kernel for evaluation that rounds to bfloat16
    return layer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_bitsandbytes_four_bits(adapted: bool, nested: bool) -> None:
    model = quantized(lambda linear: four_bit(linear, compute_dtype=torch.float32, compress_statistics=nested))
    if adapted:
        model.is_loaded_in_4bit = True
        config = LoraConfig(target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    same_without_logits(model)
    assert not vars(model.get_base_model().lm_head if adapted else model.lm_head).get("forward")


def eight_bit(linear: nn.Linear) -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer: nn.Module = bitsandbytes.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


@pytest.mark.filterwarnings("ignore")
def test_eight_bits_that_round_the_states_are_refused() -> None:
    why = "which rounds hidden states too: leave the head out of quantization"
    model = quantized(eight_bit)
    expected = f"LlamaForCausalLM cannot be patched: its head is bitsandbytes' 8-bit layer, {why}"
    assert refusal(model) == expected
    config = LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    model.is_loaded_in_8bit = True
    adapted = get_peft_model(model, config)
    with pytest.raises(ValueError, match="cannot be patched") as error:
        patch(adapted)
    assert str(error.value) == expected


@pytest.mark.filterwarnings("ignore")
def test_torchaos_training_in_float8_is_refused_and_with_rounded_weights_served() -> None:
    float8 = pytest.importorskip("torchao.float8", reason="torchao is not installed")
    qat = pytest.importorskip("torchao.quantization.qat", reason="torchao is not installed")
    from torchao.quantization import quantize_

    def is_head(module: nn.Module, name: str) -> bool:
        return name == "lm_head"

    model = family("Llama")
    weight = qat.IntxFakeQuantizeConfig(torch.int4, group_size=8)
    states = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    quantize_(model, qat.QATConfig(activation_config=states, weight_config=weight, step="prepare"), is_head)
    same_without_logits(model)
    model = family("Llama")
    float8.convert_to_float8_training(model, module_filter_fn=is_head, config=float8.Float8LinearConfig(emulate=True))
    assert refusal(model) == (
        "LlamaForCausalLM cannot be patched: its head is torchao's float8 layer, which rounds hidden states too: leave "
        "the head out of quantization"
    )


def is_head(module: nn.Module, name: str) -> bool:
    return name.endswith("lm_head")


TORCHAO = ["Float8WeightOnlyConfig", "Int8WeightOnlyConfig", "IntxWeightOnlyConfig"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("config", TORCHAO)
def test_torchaos_rounded_weights(config: str, adapted: bool) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = quantized(lambda linear: linear)
    torchao.quantize_(model, getattr(torchao, config)(), is_head)
    if adapted:
        lora = LoraConfig(target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    same_without_logits(model)


ROUNDING_STATES = {
    "quantization.Int8DynamicActivationInt8WeightConfig": "Int8Tensor",
    "quantization.Int8DynamicActivationIntxWeightConfig": "IntxUnpackedToInt8Tensor",
    "prototype.quantized_training.bitnet.BitNetTrainingConfig": "BitNetTrainingLinearWeight",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("config", ROUNDING_STATES)
def test_torchaos_weights_that_round_the_states_are_refused(config: str, adapted: bool) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    module, _, name = f"torchao.{config}".rpartition(".")
    model = quantized(lambda linear: linear)
    torchao.quantize_(model, getattr(import_module(module), name)(), is_head)
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="cannot be patched") as error:
        patch(model)
    assert str(error.value) == (
        f"LlamaForCausalLM cannot be patched: its head's weight is torchao's {ROUNDING_STATES[config]}, which rounds "
        "hidden states too: leave the head out of quantization"
    )


class NoBackward(Parted):
    """A weight whose products have no gradient."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.set_grad_enabled(func is not F.linear and torch.is_grad_enabled()):
            return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    ("kind", "trained", "why"),
    [
        (NoBackward.of, False, "its head's weight is a NoBackward, whose matmul has no gradient"),
        (Parted.of, True, "weight is a Parted that requires grad, and only its class knows that gradient: freeze it"),
    ],
)
def test_a_weight_whose_gradient_is_not_known_is_refused(
    kind: Callable[[Tensor], Tensor], trained: bool, why: str
) -> None:
    model = quantized(lambda linear: OfParts(linear, kind, "nothing"))
    if trained:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight)
    assert refusal(model).startswith(f"LlamaForCausalLM cannot be patched: {why}")


class OfParts(nn.Module):
    """A head whose weight is a tensor without memory; its logits may be scaled for each class, or have an update."""

    def __init__(self, linear: nn.Module, kind: Callable[[Tensor], Tensor], more: str) -> None:
        super().__init__()
        self.more = more
        self.weight = kind(linear.weight)
        self.factor, self.update = nn.Parameter(torch.rand(128) + 0.5), nn.Linear(64, 128, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, self.weight)
        if self.more == "factor":
            return logits * self.factor
        return logits + self.update(torch.tanh(hidden)) if self.more == "update" else logits


@pytest.mark.parametrize("more", ["nothing", "factor", "update"])
@pytest.mark.parametrize("kind", [Float8, Opened, LinearAlone, Parted.of])
def test_a_weight_without_memory(kind: Callable[[Tensor], Tensor], more: str) -> None:
    same_without_logits(quantized(lambda linear: OfParts(linear, kind, more)))
