"""Presets of new models: Llama's architecture in three sizes."""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """A model size, and the training defaults that suit it."""

    hidden_size: int
    n_layers: int
    n_heads: int
    intermediate_size: int
    vocab_size: int
    tied: bool  # the head shares the weight of the embedding
    row_tokens: int
    batch_tokens: int
    learning_rate: float


PRESETS = {
    "tiny": Preset(128, 4, 2, 344, 2048, True, 256, 1024, 3e-3),  # 1M parameters
    "small": Preset(320, 4, 5, 864, 8192, False, 256, 1024, 1.5e-3),  # 10M
    "base": Preset(768, 12, 12, 2048, 50304, True, 1024, 65536, 6e-4),  # 124M
}


def find_preset(name: str) -> Preset:
    """Return the preset of this name. Raises ValueError if there is none."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def new_model(preset: Preset, tokenizer: Any, row_tokens: int, seed: int) -> Any:
    """Return a transformers model with random float32 weights, which depend only on the seed.

    The output projections in each layer start smaller by sqrt(2 n_layers) (Radford et al. 2019).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,  # larger than its length if it skips ids
        hidden_size=preset.hidden_size,
        intermediate_size=preset.intermediate_size,
        num_hidden_layers=preset.n_layers,
        num_attention_heads=preset.n_heads,
        max_position_embeddings=row_tokens,
        tie_word_embeddings=preset.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for added in (layer.self_attn.o_proj, layer.mlp.down_proj):
                added.weight /= (2 * preset.n_layers) ** 0.5
    return model
