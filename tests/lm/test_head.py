"""A head is read from the model and verified: weight, bias, scale and softcap."""

from typing import Any

import pytest
import torch

from cynosure.loss import linear_cross_entropy
from cynosure.models import hidden_states, read_head
from tests.lm.conftest import tiny_model

FAMILIES = {
    "Llama": {},
    "GPT2": {},
    "Gemma2": {"final_logit_softcapping": 5.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.0625},
    "Granite": {"logits_scaling": 8.0},
    "Phi": {},  # its head has a bias
}
IDS = torch.arange(20, 32)[None]


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


class Odd(torch.nn.Module):
    """A tiny model whose logits, hidden states or head are changed."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.own, self.what = tiny_model(spread=1.0), what
        self.config = self.own.config

    def get_output_embeddings(self) -> Any:
        return None if self.what == "no head" else self.own.get_output_embeddings()

    @property
    def base_model(self) -> Any:
        def body(input_ids: torch.Tensor, use_cache: bool) -> Any:
            output = self.own.base_model(input_ids=input_ids, use_cache=use_cache)
            if self.what == "sees later tokens":
                output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
            return output

        return body

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        output = self.own(input_ids=input_ids, use_cache=use_cache)
        if self.what == "transforms":
            output.logits = output.logits * 1.01
        return output


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no head", "Odd has no plain output matrix"),
        ("sees later tokens", "Odd is not causal: its hidden states depend on the tokens that follow"),
        ("transforms", "Odd turns hidden states into logits in a way that is not known here"),
    ],
)
def test_what_does_not_match_is_refused(what: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_head(Odd(what))
    read_head(Odd("nothing"))
