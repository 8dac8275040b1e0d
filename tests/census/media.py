"""What the names of fields do not tell of models with images, sound or an encoder: `TWEAKS` of theirs."""

from typing import Any

from tests.census.tweaks import ROPE

START = {"decoder_start_token_id": 2}
MROPE = {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}}
MROPE_GLM = {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 32}
CONVOLUTIONS = {"hidden_size": 16, "num_filters": 4, "downsampling_ratios": [2, 4], "depths": [1, 1, 1]}
GRANITE_SPEECH = {
    "encoder_config": {"hidden_dim": 32, "dim_head": 8, "input_dim": 16, "context_size": 8, "max_pos_emb": 16},
    "projector_config": {"encoder_hidden_size": 32},
}
QUERIES = {"num_query_tokens": 4, "image_token_index": 330, "qformer_config": {"encoder_hidden_size": 32}}
DECODER = {"add_cross_attention": True, "is_decoder": True}
MEDIA: dict[str, dict[str, Any]] = {
    "blip-2": QUERIES,
    "instructblip": QUERIES,
    "instructblipvideo": {
        "num_query_tokens": 4,
        "video_token_index": 330,
        "qformer_config": {"encoder_hidden_size": 32},
    },
    "canary": {"encoder_config": {"subsampling_conv_channels": 8}},
    "cohere_asr": START | {"encoder_config": {"subsampling_conv_channels": 8}},
    "blip": {"text_config": {"encoder_hidden_size": 32}},
    "dia": {
        "decoder_config": {
            "cross_num_attention_heads": 4,
            "cross_head_dim": 8,
            "cross_num_key_value_heads": 4,
            "cross_hidden_size": 32,
            "num_channels": 3,
        },
        "delay_pattern": [0, 1, 2],
    },
    "kosmos-2": {"latent_query_num": 4},
    "kosmos-2.5": {"latent_query_num": 4},
    "vision-encoder-decoder": START | {"pad_token_id": 1, "decoder": DECODER},
    "speech-encoder-decoder": START | {"pad_token_id": 1, "decoder": DECODER},
    "perception_lm": {"vision_config": {"model_args": {"embed_dim": 32}}},
    "chameleon": {
        "vocabulary_map": {"<image>": 330, "IMGIMGA": 329},
        "vq_config": VQ | {"resolution": 16, "num_embeddings": 16},
    },
    "cosmos3_edge": {"text_config": MROPE},
    "deepseek_ocr2": {
        "vision_config": {
            "sam_config": {"downsample_channels": [32, 32], "window_size": 2, "output_channels": 32},
            "encoder_config": {},
        },
        "text_config": {
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "mlp_layer_types": ["dense", "sparse"],
        },
    },
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}},
    "dots3_note": {
        "text_config": {"head_dim": 16},
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "mlp_layer_types": ["dense", "sparse"]},
        "audio_config": {
            "adapter_out_dim": 32,
            "adapter_input_size": 32,
            "downsample_hidden_size": 16,
            "feature_size": 16,
        },
    },
    "emu3": {
        "vocabulary_map": {"<image>": 330, "<|extra_0|>": 328},
        "vq_config": VQ | {"codebook_size": 16, "latent_channels": 4, "embed_dim": 4},
    },
    "encoder-decoder": START | {"pad_token_id": 1, "decoder": DECODER},
    "ernie4_5_vl_moe": {
        "text_config": {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}, "moe_intermediate_size": [24, 16]}
    },
    "florence2": {
        "vision_config": {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
            "projection_dim": 32,
        }
    },
    "fun_asr_nano": {
        "adaptor_config": {"intermediate_size": 8},
        "audio_config": {"num_timestamp_prediction_layers": 1},
    },
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma4_unified": {
        "vision_config": {"mm_embed_dim": 32, "output_proj_dims": 32, "mm_posemb_size": 16, "patch_size": 4}
    },
    "glm46v": {"text_config": MROPE_GLM},
    "glm4v": {"text_config": MROPE_GLM},
    "glm4v_moe": {"text_config": MROPE_GLM},
    "glm5_next": {
        "text_config": {
            "num_hidden_layers": 4,
            "qk_rope_head_dim": 0,
            "head_dim": 0,
            "index_topk": 128,
            "index_kpool": 4,
        },
        "vision_config": {"projection_intermediate_size": 48, "out_hidden_size": 32},
    },
    "glm_ocr": {"text_config": MROPE_GLM},
    "glmga": {"text_config": MROPE_GLM},
    "granite4_vision": {
        "image_grid_pinpoints": [[32, 32]],
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [0, 1, 0, 1],
        "vision_config": {"hidden_size": 64},
    },
    "granite_docling": {"vision_config": {"out_hidden_size": 32}},
    "granite_speech": GRANITE_SPEECH,
    "granite_speech_plus": GRANITE_SPEECH,
    "hunyuan_vl": {"text_config": {"head_dim": 8, "rope_parameters": ROPE | {"mrope_section": [1, 1, 1, 1]}}},
    "inkling2": {"vision_config": {"text_hidden_size": 32, "projection_hidden_dim": 32, "posemb_grid_size": 4}},
    "janus": {
        "vision_config": {"projection_dim": 32, "num_image_tokens": 1},
        "vq_config": VQ
        | {"embed_dim": 8, "num_embeddings": 16, "num_patches": 2, "projection_dim": 32, "image_token_embed_dim": 32},
    },
    "kyutai_speech_to_text": {
        "num_codebooks": 2,
        "codebook_vocab_size": 50,
        "audio_bos_token_id": 49,
        "audio_pad_token_id": 431,
        "codec_config": {
            "upsample_groups": 32,
            "codebook_size": 16,
            "codebook_dim": 8,
            "num_filters": 4,
            "vector_quantization_hidden_dimension": 8,
        },
    },
    "longt5": START,
    "molmo2": {
        "adapter_config": {"vision_feature_layer": [1, 0], "text_hidden_size": 32},
        "text_config": {"additional_vocab_size": 8},
        "vision_config": {"num_position_embeddings": 4},
    },
    "moonshine_streaming": START | {"num_key_value_heads": 4},
    "muse_glimmer": {
        "out_hidden_size": 128,
        "projector_hidden_size": 32,
        "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4},
    },
    "muse_spark": {
        "out_hidden_size": 128,
        "projector_hidden_size": 32,
        "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4},
        "audio_config": {
            "num_hidden_layers": 4,
            "hidden_sizes": [8, 16, 16, 32],
            "depths": [1, 1, 1, 1],
            "out_hidden_size": 32,
        },
    },
    "nemo_speechlm": {
        "audio_config": {"diarization_config": {"head_config": {"audio_hidden_size": 32}}},
        "text_config": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "hybrid_override_pattern": "ME*E"},
        "word_timestamp_config": {"blank_token_id": 330},
    },
    "nemotron_h_omni": {
        "text_config": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1},
        "audio_config": {"projection_hidden_size": 32, "projection_bias": True},
        "projector_hidden_size": 32,
        "vision_hidden_size": 32,
    },
    "paddleocr_vl": {"text_config": MROPE},
    "pop2piano": START,
    "prophetnet": {"add_cross_attention": True},
    "qwen2_5_omni_thinker": {"text_config": MROPE},
    "qwen2_5_vl": {"text_config": MROPE},
    "qwen2_vl": {"text_config": MROPE},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "switch_transformers": START,
    "t5": START,
    "udop": START,
    "unlimited_ocr": {"text_config": {"num_key_value_heads": 4}},
    "vibevoice": {"audio_config": CONVOLUTIONS, "semantic_model_config": CONVOLUTIONS},
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": CONVOLUTIONS,
        "semantic_tokenizer_encoder_config": CONVOLUTIONS,
    },
}
