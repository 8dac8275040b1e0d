"""Two rows of labelled tokens, with the images, sounds or encoder inputs that a model cannot do without."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Recipe = Callable[[Any, dict[str, Any]], dict[str, Any]]  # of a model and labelled ids: the inputs
N_TOKENS = 24
PLACEHOLDER = 330  # the token that an image or a sound stands for


DECODERS = ("WhisperForCausalLM",)  # which take ids alone, of types that hear or see


def inputs_of(kind: str, model: Any) -> dict[str, Any]:
    """Inputs with labels: token ids, and what else this model needs."""
    torch.manual_seed(0)
    ids = torch.randint(4, 300, (2, N_TOKENS))
    found: dict[str, Any] = {"input_ids": ids, "labels": ids.clone()}
    recipe = RECIPES.get(kind)
    if recipe is not None and type(model).__name__ not in DECODERS:
        return recipe(model, found)
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{kind} takes no input_ids: its inputs are not known here")
    return found


def pixels(size: int = 16, n: int | None = None) -> Tensor:
    """Two images of random pixels, or two rows of `n` of them."""
    return torch.randn(2, *([] if n is None else [n]), 3, size, size)


def square(size: int = 16, n_tokens: int = 1, *, sizes: bool = False, n: int | None = None) -> Recipe:
    """A recipe: an image of pixels in each row, which stands for `n_tokens` placeholders."""

    def recipe(model: Any, given: dict[str, Any]) -> dict[str, Any]:
        found = {"input_ids": placed(given["input_ids"], n_tokens), "pixel_values": pixels(size, n)}
        return given | found | ({"image_sizes": torch.tensor([[size, size]] * 2)} if sizes else {})

    return recipe


def grid(frames: int, n_tokens: int = 4, *, flat: bool = True) -> Recipe:
    """A recipe: four patches of 16 pixels by four in each row, as Qwen2-VL takes them, merged to `n_tokens`."""

    def recipe(model: Any, given: dict[str, Any]) -> dict[str, Any]:
        ids = placed(given["input_ids"], n_tokens)
        shape = (2 * 16, 3 * frames * 16 * 16) if flat else (2 * 16, 3, 16, 16)
        found = {"input_ids": ids, "pixel_values": torch.randn(shape), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            found["mm_token_type_ids"] = (ids == PLACEHOLDER).long()
        return given | found

    return recipe


def sound(name: str, shape: tuple[int, ...]) -> Recipe:
    """A recipe: a sound in each row, which stands for one placeholder."""

    def recipe(model: Any, given: dict[str, Any]) -> dict[str, Any]:
        mask = {} if name == "input_values" else {"feature_attention_mask": torch.ones(2, shape[-1], dtype=torch.long)}
        return given | {"input_ids": placed(given["input_ids"], 1), name: torch.randn(2, *shape)} | mask

    return recipe


def placed(ids: Tensor, n_tokens: int) -> Tensor:
    """The ids with placeholders after the first."""
    found = ids.clone()
    found[:, 1 : 1 + n_tokens] = PLACEHOLDER
    return found


def with_image(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    return given | {"pixel_values": pixels()}


def only_image(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {"labels": given["labels"], "pixel_values": pixels()}


def queries(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """BLIP-2: an image is four placeholders."""
    return given | {"input_ids": placed(given["input_ids"], 4), "pixel_values": pixels()}


def instructed(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    return queries(model, given) | {"qformer_input_ids": given["input_ids"][:, 8:16]}


def instructed_video(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    found = instructed(model, given)
    return found | {"pixel_values": pixels(n=1)}


def latents(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Kosmos-2: four places for an image."""
    mask = torch.zeros_like(given["input_ids"])
    mask[:, 1:5] = 1
    return given | {"pixel_values": pixels(), "image_embeds_position_mask": mask}


def patches(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Pix2Struct: flattened patches, each after its row and column."""
    places = torch.arange(1, 5).view(2, 2, 1).expand(2, 2, 2).reshape(1, 4, 2).expand(2, 4, 2)
    width = model.config.vision_config.patch_embed_hidden_size
    return {"labels": given["labels"], "flattened_patches": torch.cat([places.float(), torch.randn(2, 4, width)], -1)}


def boxes(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """UDOP: a box of the page for each token."""
    return given | {"bbox": torch.rand(2, N_TOKENS, 4).sort(-1).values, "pixel_values": pixels()}


def features(length: Callable[[Any], int], *, mels_last: bool) -> Recipe:
    """A recipe: a spectrogram into the encoder, labels for the decoder."""

    def recipe(model: Any, given: dict[str, Any]) -> dict[str, Any]:
        if "input_features" not in inspect.signature(model.forward).parameters:
            return given  # the decoder alone
        mels, n = mels_of(model.config), length(model)
        return {"labels": given["labels"], "input_features": torch.randn(2, *((n, mels) if mels_last else (mels, n)))}

    return recipe


def mels_of(config: Any) -> int:
    """Bands of a model's spectrogram."""
    parts = [config, *(getattr(config, name, None) for name in ("encoder_config", "audio_config", "encoder"))]
    names = ("num_mel_bins", "input_feat_per_channel")
    return next(int(getattr(p, name)) for p in parts for name in names if getattr(p, name, None) is not None)


def waves(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {"labels": given["labels"], "input_values": torch.randn(2, 2000)}


def channels(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Dia: a text, and a sound of several channels."""
    n = model.config.decoder_config.num_channels
    sound = torch.randint(4, 300, (2, N_TOKENS, n))
    return {
        "input_ids": given["input_ids"] % 250,
        "decoder_input_ids": sound,
        "labels": sound.transpose(1, 2).reshape(2 * n, -1),
    }


def streams(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Kyutai: a token of text and one of each codebook at every step."""
    sound = torch.randint(0, 40, (2, N_TOKENS, model.config.num_codebooks))
    return given | {"input_ids": torch.cat([given["input_ids"][..., None], sound], -1)}


def listened(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Voxtral realtime: a stretch of sound for each token."""
    return given | {"input_features": torch.randn(2, mels_of(model.config), 8 * N_TOKENS)}


def attended(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """IDEFICS: an image that every token looks at."""
    return given | {"pixel_values": pixels(n=1), "image_attention_mask": torch.ones(2, N_TOKENS, 1, dtype=torch.long)}


def shifted(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    return only_image(model, given) | {"decoder_input_ids": given["input_ids"]}


def proteins(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    ids = torch.randint(4, 30, (2, 10))
    return given | {"protein_input_ids": ids, "protein_attention_mask": torch.ones_like(ids)}


def codebooks(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """MusicGen: four rows of tokens for each sound, labels with a last dimension for them."""
    labels = torch.randint(4, 300, (2, N_TOKENS, 4))
    return {"input_ids": given["input_ids"].repeat_interleave(4, 0), "labels": labels}


def uncached(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    return given | {"use_cache": False}


RECIPES: dict[str, Recipe] = {
    "aya_vision": square(32, sizes=True),
    "blip": with_image,
    "blip-2": queries,
    "blt": uncached,
    "canary": features(lambda _: 64, mels_last=True),
    "cohere2_vision": square(32, sizes=True),
    "cohere_asr": features(lambda _: 64, mels_last=True),
    "cohere_compass": grid(2),
    "cosmos3_edge": grid(1),
    "cosmos3_omni": grid(2),
    "deepseek_vl": square(),
    "dia": channels,
    "dots3_note": grid(1),
    "ernie4_5_vl_moe": grid(1),
    "evolla": proteins,
    "florence2": square(16, 5),
    "git": with_image,
    "glm46v": grid(2),
    "glm4v": grid(2),
    "glm4v_moe": grid(2),
    "glm5_next": grid(2),
    "glm_ocr": grid(2),
    "glmga": grid(2),
    "hunyuan_vl": grid(1, 8),
    "idefics": attended,
    "idefics3": square(32, n=1),
    "instructblip": instructed,
    "instructblipvideo": instructed_video,
    "internvl": square(32, sizes=True),
    "janus": square(),
    "kosmos-2": latents,
    "kyutai_speech_to_text": streams,
    "lfm3_vl": grid(2),
    "llava": square(),
    "minimax_m3_vl": grid(2),
    "mistral_large4": square(32, sizes=True),
    "moonshine": waves,
    "moonshine_streaming": waves,
    "muse_glimmer": grid(2),
    "muse_spark": grid(2),
    "musicgen": codebooks,
    "musicgen_melody": codebooks,
    "ovis2": square(),
    "paddleocr_vl": grid(1, flat=False),
    "paligemma": square(),
    "pix2struct": patches,
    "pp_chart2table": square(),
    "pp_formulanet": shifted,
    "qianfan_ocr": square(32, sizes=True),
    "qwen2_5_omni_thinker": sound("input_features", (128, 256)),
    "qwen2_vl": grid(2),
    "qwen3_5": grid(2),
    "qwen3_5_moe": grid(2),
    "qwen3_omni_moe_thinker": sound("input_features", (128, 256)),
    "qwen3_vl": grid(2),
    "qwen3_vl_moe": grid(2),
    "qwen4_exp": grid(2),
    "smolvlm": square(32, n=1),
    "speech-encoder-decoder": waves,
    "speech_to_text": features(lambda _: 64, mels_last=True),
    "speecht5": waves,
    "step3p7": square(),
    "udop": boxes,
    "vibevoice_asr": sound("input_values", (1, 64)),
    "video_llava": square(),
    "vision-encoder-decoder": only_image,
    "voxtral_realtime": listened,
    "whisper": features(lambda model: 2 * model.config.max_source_positions, mels_last=False),
}
