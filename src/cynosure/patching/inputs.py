"""Small inputs that a model's own forward takes: a patch is verified on them.

Only the head and the loss are examined, so an encoder's output may be random. Other required inputs are derived from
the forward's signature and the model's configuration.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from cynosure.patching.labelled import IGNORED

N_TOKENS = 8  # per row, not counting those of an image
Inputs = dict[str, Any]
# The model's own default first. Some forwards fail with a cache, others, as xLSTM in half precision, without.
CACHE_OPTIONS: tuple[Inputs, ...] = ({}, {"use_cache": False})


@dataclass
class Encoded(BaseModelOutput):
    """An encoder's output. The outputs of speech encoders have a mask too, which may be None."""

    attention_mask: Tensor | None = None


def probe_inputs(model: Any) -> Iterator[Inputs]:
    """Inputs with labels, two rows each, that this model may accept; the likeliest first.

    >>> from tests.tiny import tiny_model
    >>> {name: tuple(x.shape) for name, x in next(probe_inputs(tiny_model())).items()}
    {'input_ids': (2, 8), 'labels': (2, 8)}
    """
    parameters = inspect.signature(model.forward).parameters
    names = set(parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        names.add(model.main_input_name)  # a wrapper's forward may pass it on
    device, dtype = input_device(model), model.dtype

    def placed(x: Any) -> Any:
        return x.to(device, dtype if x.is_floating_point() else None) if isinstance(x, Tensor) else x

    for needed, recipe in RECIPES:
        if needed <= names:
            for given in recipe(model):
                yield {name: placed(x) for name, x in given.items()}


def input_device(model: Any) -> torch.device:
    """Return the device of a model's inputs: where its embedding runs, even if Accelerate has offloaded it."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a few encoder-decoders name none
        embedding = None
    weight = getattr(embedding, "weight", None)
    for module in (embedding, *model.modules()):
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            device = getattr(part, "execution_device", None)
            if device is not None:
                return torch.device(device)
        if weight is not None and weight.device.type != "meta":
            return weight.device  # type: ignore[no-any-return]
    return next(model.parameters()).device  # type: ignore[no-any-return]


def tokens(model: Any, n: int = N_TOKENS, rows: int = 2) -> Tensor:
    """Return token ids (rows, n), counting up from 0."""
    vocab_size: int = model.config.get_text_config().vocab_size
    return torch.arange(rows * n).view(rows, n) % vocab_size


def labelled(ids: Tensor, **others: Any) -> Inputs:
    """Return token ids as inputs and labels, with the first quarter of each row ignored, plus other inputs."""
    labels = ids.clone()
    labels[:, : ids.shape[1] // 4] = IGNORED
    return {"input_ids": ids, "labels": labels, **others}


def text(model: Any) -> Iterator[Inputs]:
    yield labelled(tokens(model))


def encoded(model: Any) -> Iterator[Inputs]:
    """An encoder's output, in each size that it may have, and labels for the decoder."""
    given = labelled(tokens(model))
    ids, labels = given["input_ids"], given["labels"]
    for size in encoder_sizes(model):
        output = Encoded(last_hidden_state=noise(2, N_TOKENS, size).to(input_device(model), model.dtype))
        yield {"encoder_outputs": output, "labels": labels}
        yield {"encoder_outputs": output, "decoder_input_ids": ids, "labels": labels}


def encoder_sizes(model: Any) -> list[int]:
    """Return the hidden sizes in a model's configuration, the encoder's first if it has one."""
    config = model.config
    parts = [getattr(config, name, None) for name in ("encoder", "encoder_config", "vision_config", "audio_config")]
    parts += [config.get_text_config(encoder=True), config, config.get_text_config(decoder=True)]
    names = ("cross_attention_hidden_size", "encoder_hidden_size", "hidden_size", "d_model")
    sizes = [getattr(part, name, None) for part in parts if part is not None for name in names]
    return list(dict.fromkeys(size for size in sizes if isinstance(size, int)))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def image(model: Any, *lead: int) -> Tensor:
    """Return random pixels (*lead, channels, height, width) of the size that the model's vision tower expects."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return noise(*lead, getattr(config, "num_channels", 3), height, width)


def seen(model: Any) -> Iterator[Inputs]:
    """Text and an image; the image alone."""
    given = labelled(tokens(model))
    yield given | {"pixel_values": image(model, 2)}
    yield {"pixel_values": image(model, 2), "labels": given["labels"]}


def queried(model: Any) -> Iterator[Inputs]:
    """BLIP-2 and similar models: an image or a one-frame video, its placeholders in the text, and an instruction."""
    n = getattr(model.config, "num_query_tokens", None)
    if n is None:
        return
    places = getattr(model.config, "image_token_index", None)
    films = getattr(model.config, "video_token_index", None)
    names = inspect.signature(model.forward).parameters
    for lead, place in (((2,), places), ((2, 1), films)):
        ids = tokens(model, n + N_TOKENS)
        if place is not None:
            ids[ids == place] = 0
            ids[:, :n] = place
        given = labelled(ids, pixel_values=image(model, *lead))
        yield given | ({"qformer_input_ids": tokens(model)} if "qformer_input_ids" in names else {})


def placed_image(model: Any) -> Iterator[Inputs]:
    """Kosmos-2: an image and its position in the text."""
    n = model.config.latent_query_num
    ids = tokens(model, n + N_TOKENS)
    mask = torch.zeros_like(ids)
    mask[:, 1 : n + 1] = 1
    yield labelled(ids, pixel_values=image(model, 2), image_embeds_position_mask=mask)


def attended_image(model: Any) -> Iterator[Inputs]:
    """IDEFICS: an image that every token looks at."""
    ids = tokens(model)
    yield labelled(ids, pixel_values=image(model, 2, 1), image_attention_mask=torch.ones_like(ids)[..., None])


def heard(model: Any) -> Iterator[Inputs]:
    """Text, and eight audio frames per token."""
    parts = (model.config, *(getattr(model.config, name, None) for name in ("audio_config", "encoder_config")))
    mels = next((n for part in parts if (n := getattr(part, "num_mel_bins", None)) is not None), 80)
    yield labelled(tokens(model), input_features=noise(2, mels, 8 * N_TOKENS))


def boxed(model: Any) -> Iterator[Inputs]:
    """UDOP: a box of the page for each token, and the page."""
    ids = tokens(model)
    box = torch.tensor([0.1, 0.1, 0.2, 0.2]).expand(*ids.shape, 4)
    yield labelled(ids, bbox=box, pixel_values=image(model, 2))


def protein(model: Any) -> Iterator[Inputs]:
    ids = tokens(model) % 20 + 4
    yield labelled(tokens(model), protein_input_ids=ids, protein_attention_mask=torch.ones_like(ids))


def codebooks(model: Any) -> Iterator[Inputs]:
    """Audio as several token streams: MusicGen's rows, Kyutai's last dimension, Dia's decoder."""
    n = getattr(model.config, "num_codebooks", None)
    if n is not None:
        ids = tokens(model, rows=2 * n)
        yield {"input_ids": ids, "labels": ids.view(2, n, N_TOKENS).transpose(1, 2)}
        steps = tokens(model)[..., None].expand(2, N_TOKENS, n + 1)
        yield {"input_ids": steps, "labels": tokens(model)}
    n = getattr(getattr(model.config, "decoder_config", None), "num_channels", None)
    if n is not None:
        sound = tokens(model, rows=2 * n)
        yield {
            "input_ids": tokens(model), "labels": sound,
            "decoder_input_ids": sound.view(2, n, N_TOKENS).transpose(1, 2).contiguous(),
        }  # fmt: skip


RECIPES: list[tuple[set[str], Callable[[Any], Iterator[Inputs]]]] = [
    ({"input_ids"}, text),
    ({"encoder_outputs"}, encoded),
    ({"pixel_values"}, queried),
    ({"pixel_values", "image_embeds_position_mask"}, placed_image),
    ({"pixel_values", "image_attention_mask"}, attended_image),
    ({"pixel_values"}, seen),
    ({"input_features"}, heard),
    ({"bbox", "pixel_values"}, boxed),
    ({"protein_input_ids"}, protein),
    ({"input_ids"}, codebooks),
]
