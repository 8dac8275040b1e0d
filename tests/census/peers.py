"""The model types whose loss other implementations patch, read from their sources, with their versions."""

from typing import NamedTuple


class Peer(NamedTuple):
    """An implementation, where its list of model types stands, and the list."""

    name: str
    where: str
    kinds: tuple[str, ...]


LIGER = """
deepseek_v2 deepseek_v3 deepseek_v4 exaone4 falcon_h1 gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text glm4 glm4v
glm4v_moe gpt_oss granite hunyuan_v1_dense hunyuan_v1_moe internvl llama llama4 llama4_text llava ministral mistral
mixtral mllama mllama_text_model muse_glimmer nemotron olmo2 olmo3 paligemma phi3 pixtral qwen2 qwen2_5_vl
qwen2_5_vl_text qwen2_vl qwen2_vl_text qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text smollm3 smolvlm
"""
AXOLOTL = """
afmoe apertus arcee cohere cohere2 cohere2_moe deepseek_v2 deepseek_v3 deepseek_v4 exaone4 exaone4_5 exaone_moe gemma
gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm46v
glm4_moe glm4_moe_lite glm4v glm4v_moe glm_image glm_moe_dsa gpt_oss granite granitemoe granitemoehybrid
granitemoeshared hunyuan_v1_dense hunyuan_v1_moe internvl kimi_linear lfm2 lfm2_moe lfm2_vl llama llama4 llama4_text
llava minimax minimax_m2 ministral ministral3 mistral mistral3 mistral4 mixtral mllama nemotron_h olmo olmo2 olmo3
olmoe phi phi3 phi4_multimodal qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text
qwen3_5_text qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe seed_oss smollm3 step3p5 step3p7 voxtral
"""
PEERS = (
    Peer("Liger-Kernel 0.8.5", "`MODEL_TYPE_TO_APPLY_LIGER_FN`", tuple(LIGER.split())),
    Peer("cut-cross-entropy 25.6.4", "`PATCH_FNS` of `cce_patch`", ("gemma2", "llama", "mistral", "phi3", "qwen2")),
    Peer("axolotl's fork of it, 5f0c7a7", "`PATCH_FNS`", tuple(AXOLOTL.split())),
)
