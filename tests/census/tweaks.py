"""What the names of fields do not tell of language models of text: their `TWEAKS`, by model type."""

from typing import Any

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
FOUR_LAYERS = {"num_hidden_layers": 4}  # of several kinds, the last of them attention
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
INDEXER = FOUR_LAYERS | {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 50,
    "split_ngram_parts": 2,
}
# What the names of fields do not tell, by model type.
TWEAKS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "patcher_config": {"num_hidden_layers": 1},
        "encoder_config": {"cross_attn_k": 2, "hidden_size_global": 64},
        "decoder_config": {"cross_attn_k": 2, "hidden_size_global": 64},
        "global_config": {"hidden_size": 64},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_top_k": 2},
        "rope_parameters": ROPE,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"head_dim": 16},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2}
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling_text": {"logits_mup_width_multiplier": 2.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": FOUR_LAYERS,
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minicpm3": {"dim_model_base": 16},
    "ministral": {"head_dim": 8},
    "moshi": {"audio_vocab_size": 40, "num_codebooks": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1},
    "qwen3_next": FOUR_LAYERS,
    "qwen3_5": {"text_config": FOUR_LAYERS},
    "qwen3_5_text": FOUR_LAYERS,
    "qwen3_5_moe": {"text_config": FOUR_LAYERS},
    "qwen3_5_moe_text": FOUR_LAYERS,
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 331,
        "shape_vocab_size": 331,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "xlm": {"causal": True, "is_encoder": True},
    "xlstm": {"hidden_size": 128, "embedding_dim": ..., "chunk_size": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
