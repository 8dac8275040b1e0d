"""A fixed part of the census: models of every sort, and every class that was once refused or wrong.

`make census` does all of them; its results must be what docs/reference/models.md says.
"""

from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.census.controls import CALLS, CONTROLS, ON
from tests.census.examine import examine
from tests.census.results import saved
from tests.census.table import PAGE, page

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, of many models

# Tied and not, with a scale, a softcap, a bias, experts, states instead of attention, a norm in the head, images.
CAUSAL = """
bert biogpt bloom codegen cohere dbrx deepseek_v3 falcon_h1 gemma2 gemma3n_text gpt2 gpt_neo gpt_oss gptj granite jamba
jetmoe llama minicpm3 mixtral mpt nemotron olmoe opt phi qwen2_moe qwen3_next recurrent_gemma roberta rwkv xglm zamba2
"""
OTHER = "aya_vision blip-2 gemma3 idefics3 internvl llava paligemma qwen2_vl"
# Those that compute their own loss on flattened logits, or whose encoder wants sounds or images.
MENDED_CAUSAL = """
bart bigbird_pegasus blenderbot blenderbot-small cpmant git marian mbart mvp pegasus plbart prophetnet trocr whisper xlm
xlnet
"""
MENDED_OTHER = """
bart blenderbot canary cohere_asr encoder-decoder led longt5 m2m_100 marian mbart moonshine mt5 mvp nllb-moe pegasus
pegasus_x pix2struct plbart qwen2_audio seamless_m4t moonshine_streaming speech_to_text switch_transformers t5 t5gemma
udop umt5 vision-encoder-decoder whisper
"""
# With every call, bfloat16 and the split: a head and states of two dtypes.
WHOLE = "falcon_mamba llama4_text mamba mamba2 mllama opt xlstm"
# The whole reasons of what cannot be served.
REFUSED = {
    ("blt", "causal"): "BltForCausalLM cannot be patched: between its head and its loss, logsumexp needs full logits",
    ("musicgen", "causal"): "MusicgenForCausalLM cannot be patched: between its head and its loss, stack needs full "
    "logits",
    ("chameleon", "other"): "ChameleonForConditionalGeneration cannot be patched: between its head and its loss, "
    "__setitem__ needs full logits",
    (
        "dia",
        "other",
    ): "DiaForConditionalGeneration cannot be patched: no matmul of hidden states and one weight in its "
    "forward gives 331 classes",
}
SAMPLE = [
    *((kind, "causal") for kind in (CAUSAL + MENDED_CAUSAL).split()),
    *REFUSED,
    *((kind, "other") for kind in (*OTHER.split(), *MENDED_OTHER.split())),
]


def examined(kind: str, table: str, **how: Any) -> dict[str, Any]:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    return examine(kind, table, **how)


@pytest.mark.parametrize(("kind", "table"), SAMPLE)
@pytest.mark.exhaustive
def test_patched_model_is_equal_or_refused_with_its_reason(kind: str, table: str) -> None:
    found = examined(kind, table, names=CALLS)
    reason = REFUSED.get((kind, table))
    assert (found["status"], found.get("reason")) == ("equal" if reason is None else "refused", reason)


@pytest.mark.parametrize("kind", WHOLE.split())
def test_whole_model_is_equal(kind: str) -> None:
    found = examined(kind, "causal")
    assert (found["status"], found.get("reason")) == ("equal", None)
    assert found["split"]["status"] == "equal", found["split"]


@pytest.mark.parametrize(("kind", "table"), ON)
@pytest.mark.parametrize("control", CONTROLS)
def test_faults_on_purpose_are_flagged(kind: str, table: str, control: str) -> None:
    found = examined(kind, table, names=CALLS, tamper=CONTROLS[control])
    assert found["status"] == "wrong"
    assert all(f"{name}: " in found["reason"] for name in CALLS)


def test_the_page_says_what_the_census_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(saved())
