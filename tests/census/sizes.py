# ruff: noqa: E501
"""Small values for the fields of configurations, by name."""

from typing import Any

VOCABULARY = 331

# By the name of a field, wherever it stands. Fields whose default is None stay so unless they are in `EVEN_IF_NONE`.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("unpadded_vocab_size",), 300),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "input_embedding_size",
                     "output_embedding_size", "lru_width", "word_embed_proj_dim", "attention_hidden_size",
                     "backbone_hidden_size", "embed_dim", "embedding_dim", "decoder_hidden_size", "proj_dim", "projection_dim",
                     "out_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "n_inner",
                     "d_ff", "dff", "dim_ff", "d_inner", "feed_forward_size", "intermediate_size_mlp", "mlp_dim",
                     "dense_intermediate_size", "prefix_dense_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size",
                     "shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
                     "num_decoder_layers", "num_encoder_layers", "depth", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads",
                     "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
                     "swa_num_attention_heads", "linear_num_heads", "decoder_num_attention_heads",
                     "encoder_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "decoder_num_key_value_heads",
                     "encoder_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "linear_head_dim", "kv_channels", "dim_head", "d_head", "d_kv",
                     "attention_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length",
                     "max_target_positions", "max_source_positions", "original_max_position_embeddings",
                     "max_length_of_patches"), 128),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "local_attention_window_len",
                     "local_attention", "sliding_window_size", "attention_chunk_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "laurel_rank", "gated_norm_rank", "adapter_rank",
                     "hidden_size_per_layer_input", "moe_latent_size"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim"), 16),
    **dict.fromkeys(("index_n_heads", "indexer_n_heads"), 4),
    **dict.fromkeys(("index_topk",), 128),  # all of them: a choice among a few hangs on ties, and so on the length of a row
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("rotary_dim",), 8),
    **dict.fromkeys(("image_size", "patch_size"), 16),
    # What the loss must heed.
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"), 5.0),
    **dict.fromkeys(("logits_scaling",), 3.0),
    **dict.fromkeys(("logit_scale", "lm_head_multiplier"), 0.4),
    **dict.fromkeys(("add_cross_attention", "use_mamba_kernels", "apply_spec_augment"), False),
    **dict.fromkeys(("is_decoder",), True),
    **dict.fromkeys(("pad_token_id",), 1),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 2),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), 3),
    **dict.fromkeys(("image_token_id", "image_token_index", "audio_token_id", "video_token_id", "boi_token_index",
                     "audio_token_index", "video_token_index"), 330),
}  # fmt: skip
EVEN_IF_NONE = {"final_logit_softcapping", "pad_token_id", "bos_token_id", "eos_token_id", "num_key_value_heads",
                "logit_scale"}  # fmt: skip
