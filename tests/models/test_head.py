"""A head is read from the model's own forward and verified: weight, bias, scale and softcap."""

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_outputs import CausalLMOutput

from cynosure.loss import linear_cross_entropy
from cynosure.models import agree, hidden_states, read_head, split
from cynosure.patching.recipe import Recipe
from tests.tiny import byte_tokenizer, ruling_out, tiny_model

FAMILIES = {
    "Llama": {},
    "GPT2": {},
    "Gemma2": {"final_logit_softcapping": 5.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.0625},
    "Granite": {"logits_scaling": 8.0},
    "Phi": {},  # its head has a bias
}
IDS = torch.arange(20, 32)[None]


SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
MAMBA = SIZES | {"state_size": 8}
ATTENTION = SIZES | {"intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
LLAMA4 = {"num_key_value_heads": 2, "num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
DECODER = {"is_decoder": True, "is_encoder_decoder": False, "max_position_embeddings": 64, "vocab_size": 300}
DECODER |= {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48}
# Whose attributes do not say where head and backbone meet, by class of model and options of its configuration.
TRACED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama4ForCausalLM": ("Llama4TextConfig", ATTENTION | LLAMA4),
    "MambaForCausalLM": ("MambaConfig", MAMBA),
    "Mamba2ForCausalLM": ("Mamba2Config", MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "FalconMambaForCausalLM": ("FalconMambaConfig", MAMBA),
    "OPTForCausalLM": ("OPTConfig", ATTENTION | {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "BartForCausalLM": ("BartConfig", DECODER),
    "BertLMHeadModel": ("BertConfig", ATTENTION | {"is_decoder": True}),
    "ModernBertDecoderForCausalLM": ("ModernBertDecoderConfig", ATTENTION | SPECIAL),
}  # fmt: skip


def traced(kind: str) -> Any:
    """A tiny random model of one of these classes."""
    name, options = TRACED[kind]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, name)(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.mark.filterwarnings("ignore:.*loss_type")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", TRACED)
def test_what_enters_the_last_product_are_the_hidden_states(kind: str, dtype: torch.dtype) -> None:
    model = traced(kind).to(dtype)
    ids = torch.randint(4, 300, (2, 33), generator=torch.Generator().manual_seed(0))
    parted = split(model, tokenizer=byte_tokenizer())
    assert parted.n_embeddings == 300
    with torch.no_grad():
        ours = parted.head.stats(parted.body(ids), ids, shift=1).nll
        logits = model(input_ids=ids, use_cache=False).logits.double()
        theirs = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    # Theirs are rounded to the dtype when they are made, ours are not: by half an eps of logit and largest logit each.
    tolerance = torch.finfo(dtype).eps * float(logits.abs().max()) + 1e-5
    torch.testing.assert_close(ours.flatten().double(), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_fused_loss_is_the_models_own(kind: str) -> None:
    model = tiny_model(kind, spread=1.0, **FAMILIES[kind]).double()
    head = read_head(model)
    with torch.no_grad():
        theirs = model(input_ids=IDS, use_cache=False)
        hidden = hidden_states(model, IDS)
        torch.testing.assert_close(head.logits(hidden), theirs.logits, rtol=1e-12, atol=1e-12)
        ours = linear_cross_entropy(
            hidden, head.weight, IDS, bias=head.bias, scale=head.scale, softcap=head.softcap, shift=1
        )
        own = torch.nn.functional.cross_entropy(theirs.logits[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(ours, own, rtol=1e-12, atol=0)


def test_scale_softcap_and_bias_are_found() -> None:
    heads = {kind: read_head(tiny_model(kind, spread=1.0, **options)) for kind, options in FAMILIES.items()}
    scales = {kind: (head.scale, head.softcap, head.bias is not None) for kind, head in heads.items()}
    assert scales == {
        "Llama": (1.0, None, False),
        "GPT2": (1.0, None, False),
        "Gemma2": (1.0, 5.0, False),
        "Cohere": (0.0625, None, False),
        "Granite": (0.125, None, False),
        "Phi": (1.0, None, True),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "Cohere"])
def test_heads_are_verified_in_every_dtype(kind: str, dtype: torch.dtype) -> None:
    assert read_head(tiny_model(kind, spread=0.3, **FAMILIES[kind]).to(dtype)).weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_head_may_rule_out_classes(dtype: torch.dtype) -> None:
    model = ruling_out(tiny_model("Phi", spread=0.3), 290).to(dtype)
    parted = split(model, tokenizer=byte_tokenizer())
    with torch.no_grad():
        ours = parted.head.stats(parted.body(IDS), IDS, shift=1)
        own = torch.nn.functional.cross_entropy(model(IDS).logits[0, :-1].float(), IDS[0, 1:], reduction="none")
    torch.testing.assert_close(ours.nll[0], own, rtol=0, atol=float(16 * torch.finfo(dtype).eps * own.max()))
    assert ours.entropy[:, 1:].isfinite().all()


def test_logits_agree_only_where_they_rule_out_the_same_classes() -> None:
    logits = torch.randn(3, 7)
    logits[:, 5:] = -torch.inf
    assert agree(logits.clone(), logits, torch.float32)
    for other in (
        logits * 1.001,
        logits.nan_to_num(),
        logits.roll(1, 1),
        logits.masked_fill(logits.isinf(), torch.nan),
    ):
        assert not agree(other, logits, torch.float32)
        assert not agree(logits, other, torch.float32)


class Odd(torch.nn.Module):
    """A tiny model whose logits or hidden states are changed."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.own, self.what = tiny_model(spread=1.0), what
        self.config = self.own.config

    def get_output_embeddings(self) -> Any:
        return self.own.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.own.model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        if self.what == "sees later tokens":
            hidden = hidden + 0.01 * hidden.mean(1, keepdim=True)
        logits = self.own.lm_head(hidden)
        if self.what == "scales by the text":
            logits = logits / input_ids.float().std()
        if self.what == "looks at logits":
            logits = logits - logits.mean()
        if self.what == "no product":
            logits = (hidden[..., None, :] * self.own.lm_head.weight).sum(-1)
        if self.what == "scales":
            logits = logits * 1.01
        return CausalLMOutput(logits=logits)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no product", "Odd cannot be split into backbone and head: "),
        ("sees later tokens", "Odd is not causal: its hidden states depend on the tokens that follow"),
        ("looks at logits", "head: between its head and its logits, mean needs them in full"),
        ("scales by the text", "head: what it does to its logits depends on the text"),
    ],
)
def test_what_does_not_match_is_refused(what: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_head(Odd(what))
    assert read_head(Odd("nothing")).scale == 1
    assert read_head(Odd("scales")).scale == pytest.approx(1.01, rel=1e-12)


def test_a_scale_off_by_a_thousandth_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Recipe.times
    monkeypatch.setattr(Recipe, "times", lambda recipe, factor: own(recipe, factor * 1.001))
    with pytest.raises(ValueError, match="its logits differ from those of its head by up to"):
        read_head(tiny_model("Cohere", spread=1.0, logit_scale=0.0625))
