"""A patched model has its own loss and gradients, and makes no logits, whatever it does between head and loss."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from cynosure.patching import Patch, causal_lm_loss, patch
from cynosure.patching.labelled import IGNORED
from cynosure.patching.pending import PendingLogits
from tests.loss.probes import Allocations
from tests.tiny import tiny_model

V = 97
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "Llama, tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Gemma 2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "Gemma 3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 8}),
    "Gemma 3, capped": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "Qwen 3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "Mistral": ("MistralConfig", "MistralForCausalLM", {}),
    "Phi 3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {}),
    "OLMo 2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "Cohere": ("CohereConfig", "CohereForCausalLM", {"logit_scale": 0.25}),
    "Granite": ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 3.0}),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 2, "output_router_logits": True}),
    "Phi, biased": ("PhiConfig", "PhiForCausalLM", {}),
}


def family(name: str, seed: int = 0) -> Any:
    config, model, options = FAMILIES[name]
    sizes = GPT2_SIZES if name == "GPT-2" else SIZES
    torch.manual_seed(seed)
    found = getattr(transformers, model)(getattr(transformers, config)(**(sizes | options)))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.3)
    return found.eval()


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Two rows of 20 tokens, the second padded on the right, some of it ignored."""
    torch.manual_seed(seed)
    ids = torch.randint(3, V, (2, 20))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[0, :5] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def step(model: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss, doubled in the backward, and every gradient."""
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    (2 * loss).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(own: tuple[Tensor, dict[str, Tensor]], ours: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], own[0], rtol=1e-5, atol=1e-6)
    assert ours[1].keys() == own[1].keys()
    for name, gradient in own[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return family(request.param)


def test_loss_and_gradients_are_the_models_own(model: Any) -> None:
    inputs = batch()
    cases: list[dict[str, Any]] = [
        {},
        {"num_items_in_batch": 50},
        {"num_items_in_batch": torch.tensor(50)},
        {"shift_labels": inputs["labels"].roll(-1, 1)},
    ]
    for options in cases:
        own = step(model, **inputs, **options)
        with patch(model) as patched:
            ours = step(model, **inputs, **options)
            assert patched.made_by == []
        assert_same(own, ours)


def test_without_labels_nothing_changes(model: Any) -> None:
    inputs = batch()
    del inputs["labels"]
    with torch.no_grad():
        own = model(**inputs, use_cache=False)
        with patch(model):
            ours = model(**inputs, use_cache=False)
            again = model.generate(inputs["input_ids"][:1], max_new_tokens=3, do_sample=False)
    assert type(ours.logits) is Tensor
    assert ours.loss is None
    assert torch.equal(own.logits, ours.logits)
    assert again.shape == (1, 23)


def test_logits_are_made_when_looked_at(model: Any) -> None:
    inputs = batch()
    own = model(**inputs, use_cache=False).logits.detach()
    with patch(model) as patched:
        logits = model(**inputs, use_cache=False).logits
        assert isinstance(logits, PendingLogits)
        assert logits.shape == own.shape
        assert patched.made_by == []
        torch.testing.assert_close(logits.detach(), own)
        assert patched.made_by == ["detach"]
        assert torch.equal(logits.argmax(-1), own.argmax(-1))


def test_undone_it_is_as_before(model: Any) -> None:
    before = dict(vars(model))
    patched = patch(model)
    assert isinstance(patched, Patch)
    assert patch(model) is patched
    patched.undo()
    patched.undo()
    assert vars(model) == before
    assert type(model(**batch()).logits) is Tensor


def test_a_deep_copy_is_patched_in_itself(model: Any) -> None:
    with patch(model):
        copied = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(0.5)
        ours = step(copied, **batch())
        assert model._cynosure_patch.fused == 1  # the verification
        copied._cynosure_patch.undo()
        assert_same(step(copied, **batch()), ours)


def test_an_old_patch_does_not_undo_a_newer_one(llama: Any) -> None:
    old = patch(llama)
    old.undo()
    with patch(llama) as new:
        old.undo()
        assert llama._cynosure_patch is new


def test_accelerates_autocast_outlives_the_patch(llama: Any) -> None:
    """It is put around the forward once; a patch that is undone must not take it along."""
    own, inputs = copy.deepcopy(llama), batch()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    accelerator.prepare_model(own, evaluation_mode=True)
    with patch(llama):
        accelerator.prepare_model(llama, evaluation_mode=True)
        half = llama(**inputs).loss
    with torch.no_grad():
        assert torch.equal(llama(**inputs).logits, own(**inputs).logits)
        assert torch.equal(llama(**inputs).loss, own(**inputs).loss)
    with patch(llama) as again:
        assert torch.equal(llama(**inputs).loss, half)
        assert again.made_by == []
    assert not torch.equal(llama(**inputs).loss, family("Llama")(**inputs).loss)


def test_who_looks_does_not_decide_on_the_graph(llama: Any) -> None:
    """Logits looked at without gradients, and then used with them; and the other way round."""
    inputs, losses = batch(), []
    for patched in (False, True):
        llama.zero_grad()
        with patch(llama) if patched else nullcontext():
            output = llama(**inputs)
            with torch.no_grad():
                assert output.logits.argmax(-1).shape == (2, 20)
            (output.loss + output.logits.float().pow(2).mean()).backward()
            losses.append(llama.lm_head.weight.grad.clone())
            for quiet in (torch.no_grad, torch.inference_mode):
                with quiet():
                    output = llama(**inputs)
                assert not (2 * output.logits).requires_grad
                assert output.logits.numpy().shape == (2, 20, V)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


def test_logits_of_weights_that_are_no_more(llama: Any) -> None:
    optimizer = torch.optim.SGD(llama.parameters(), lr=0.1)
    with patch(llama):
        output = llama(**batch())
        output.loss.backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="read the logits before the optimizer's step"):
            output.logits.argmax(-1)


def test_states_laid_end_to_end() -> None:
    """The last token of a row does not guess the first of the next."""

    class Flat(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            hidden = self.model(input_ids).last_hidden_state
            logits = self.lm_head(hidden.view(-1, hidden.shape[-1]))
            loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
            return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

    torch.manual_seed(0)
    model = Flat(transformers.LlamaConfig(**SIZES)).eval()
    own = step(model, **batch())
    with patch(model) as patched:
        assert_same(own, step(model, **batch()))
        assert patched.made_by == []


def test_full_logits_in_spite_of_the_patch_are_said_once() -> None:
    inputs = batch()
    with patch(family("Llama")) as patched:
        patched.model.lm_head.register_forward_hook(lambda module, args, logits: logits.clamp(max=1))
        with pytest.warns(
            UserWarning, match="LlamaForCausalLM is patched, but between its head and its loss, clamp needs full logits"
        ):
            assert type(patched.model(**inputs).logits) is Tensor
        patched.model(**inputs)


def test_the_models_own_loss_function_stays_in_charge() -> None:
    """Options that only it knows, and what it does with the cross-entropy."""
    model, inputs = family("Llama"), batch()
    own_loss = model.loss_function

    def penalized(
        logits: Tensor, labels: Tensor, vocab_size: int, power: float | None = None, **options: Any
    ) -> Tensor:
        return 1.01 * own_loss(logits, labels, vocab_size, **options) ** (power or 1)

    model.loss_function = penalized
    for options in ({}, {"power": 2.0}, {"cu_seq_lens_q": torch.tensor([0, 20, 33])}):
        own = step(model, **inputs, **options)
        with patch(model) as patched:
            assert_same(own, step(model, **inputs, **options))
            assert patched.made_by == []


@pytest.mark.filterwarnings("ignore")  # Dynamo's, of what it does not trace
@pytest.mark.parametrize("inside", [pytest.param(False, marks=pytest.mark.each_variant), True])
@pytest.mark.exhaustive
def test_under_torch_compile(inside: bool) -> None:
    """With graph breaks, but the same; the backend that compiles nothing shows what is traced."""
    torch.compiler.reset()
    model = family("Gemma 2")
    own = step(model, **batch())
    compiled = torch.compile(model, backend="eager")
    with patch(compiled if inside else model) as patched:
        loss, gradients = step(compiled, **batch())
        assert patched.made_by == []
        assert patched.fused == 2
    assert_same(own, (loss, {name.removeprefix("_orig_mod."): g for name, g in gradients.items()}))


def test_in_bfloat16_and_under_autocast() -> None:
    model, inputs = family("Gemma 2"), batch()
    exact, _ = step(model.double(), **inputs)
    for parameters, dtype in ((torch.bfloat16, None), (torch.float32, torch.bfloat16)):
        model = model.to(parameters)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            own, _ = step(model, **inputs)
            with patch(model):
                ours, gradients = step(model, **inputs)
        assert abs(ours - exact) <= 2 * abs(own - exact) + 1e-2
        assert {g.dtype for g in gradients.values()} == {parameters}


class LowRank(nn.Module):
    """A head as PEFT wraps it: the layer, and an update of rank 2 with dropout."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = (
            nn.Linear(base.in_features, 2, bias=False),
            nn.Linear(2, base.out_features, bias=False),
        )
        self.dropout, self.scaling = nn.Dropout(0.5), 0.7

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        result = result + self.lora_B(self.lora_A(self.dropout(x))) * self.scaling
        return result.to(x.dtype)


@pytest.mark.parametrize("name", ["Llama", "Granite", "Phi, biased"])
@pytest.mark.parametrize("training", [False, True])
def test_a_low_rank_update_of_the_head(name: str, training: bool) -> None:
    model, inputs = family(name), batch()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(1)
    model.lm_head = LowRank(model.lm_head)
    model.train(training)
    torch.manual_seed(2)
    own = step(model, **inputs)
    with patch(model) as patched:
        torch.manual_seed(2)
        ours = step(model, **inputs)
        assert patched.made_by == []
    assert_same(own, ours)
    assert len(ours[1]) == 2


def test_a_padded_vocabulary_that_is_cut_off() -> None:
    class Padded(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            hidden = self.model(
                input_ids, **{k: v for k, v in kwargs.items() if k == "attention_mask"}
            ).last_hidden_state
            logits = self.lm_head(hidden)[..., : V - 10].float()
            loss = None if labels is None else self.loss_function(logits, labels, V - 10)
            return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

    torch.manual_seed(0)
    model = Padded(transformers.LlamaConfig(**SIZES)).eval()
    inputs = batch()
    inputs = inputs | {name: inputs[name].clamp(max=V - 11) for name in ("input_ids", "labels")}
    own = step(model, **inputs)
    with patch(model) as patched:
        assert_same(own, step(model, **inputs))
        assert patched.made_by == []


def odd(operation: Any) -> Any:
    """A model that does something of its own to its logits."""

    class Odd(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            hidden = self.model(input_ids).last_hidden_state
            logits = operation(self, self.lm_head(hidden))
            loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
            return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

    torch.manual_seed(0)
    return Odd(transformers.LlamaConfig(**SIZES)).eval()


def suppress(model: Any, logits: Tensor) -> Tensor:
    logits[..., 5] = -1e4
    return logits


def test_what_cannot_be_proved_equal_is_refused() -> None:
    cases = [
        (odd(lambda model, z: z.clamp(-1, 1)), "between its head and its loss, clamp needs full logits"),
        (odd(lambda model, z: torch.tanh(torch.tanh(z))), "tanh needs full logits"),
        (odd(lambda model, z: z - z.mean()), "mean needs full logits"),
        (odd(suppress), "__setitem__ needs full logits"),
        (odd(lambda model, z: z.softmax(-1)), "softmax needs full logits"),
    ]
    for model, reason in cases:
        before = dict(vars(model))
        with pytest.raises(ValueError, match=f"Odd cannot be patched: .*{reason}"):
            patch(model)
        assert vars(model) == before
    fine = odd(lambda model, z: (z * 2.0 / torch.tensor(3.0)).to(torch.float32).contiguous())
    own = step(fine, **batch())
    with patch(fine):
        assert_same(own, step(fine, **batch()))
    hinge = odd(lambda model, z: z)
    hinge.loss_function = lambda logits, labels, *args, **kwargs: F.multi_margin_loss(
        logits.flatten(0, 1), labels.flatten().clamp(min=0)
    )
    with pytest.raises(ValueError, match="multi_margin_loss needs full logits"):
        patch(hinge)
    lazy = odd(lambda model, z: z)
    lazy.loss_function = lambda *args, **kwargs: lazy.model.norm.weight.sum()
    with pytest.raises(ValueError, match="its loss is not a cross-entropy of its logits"):
        patch(lazy)
    with pytest.raises(TypeError, match=r"patch needs a transformers model with output embeddings .*, got Linear"):
        patch(nn.Linear(2, 2))


@pytest.fixture
def llama() -> Any:
    return family("Llama")


def test_causal_lm_loss(llama: Any) -> None:
    inputs = batch()
    own = llama(**inputs).loss
    torch.testing.assert_close(causal_lm_loss(llama, **inputs), own)
    del inputs["labels"]
    masked = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
    own = llama(**inputs, labels=masked, num_items_in_batch=7).loss
    ours = causal_lm_loss(llama, **inputs, normalizer=7)
    torch.testing.assert_close(ours, own)
    ours.backward()
    assert llama.lm_head.weight.grad is not None
    assert type(llama(**inputs).logits) is Tensor
    with patch(llama):
        torch.testing.assert_close(causal_lm_loss(llama, **inputs, normalizer=7), own)
        assert isinstance(llama(**inputs, labels=masked).logits, PendingLogits)


def test_no_logits_are_made() -> None:
    """No tensor of N x V elements, forward or backward, where N and V are more than a chunk of ours holds."""
    sizes = SIZES | {"vocab_size": 65_000, "max_position_embeddings": 500}
    wide = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    ids = torch.randint(3, 65_000, (2, 500))
    with Allocations() as seen:
        step(wide, input_ids=ids, labels=ids)
    assert seen.largest >= 1000 * 65_000
    with patch(wide), Allocations() as seen:
        step(wide, input_ids=ids, labels=ids)
    assert seen.largest < 700 * 65_000


def test_tiny_models_of_the_suite() -> None:
    for kind in ("Llama", "GPT2", "Gemma2"):
        model, ids = tiny_model(kind), torch.arange(30)[None]
        own = model(ids, labels=ids).loss
        with patch(model):
            torch.testing.assert_close(model(ids, labels=ids).loss, own)
