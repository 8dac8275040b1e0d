"""Tiny random models of every architecture of transformers: configurations made small by the names of their fields.

`tiny_config(kind)` gives the configuration of a model type with small sizes, its dropout off and its scales and caps
other than 1; `tiny_model(kind, table)` the model, its weights random enough that every one of them matters.
"""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.census.kinds import auto_of
from tests.census.media import MEDIA
from tests.census.sizes import EVEN_IF_NONE, SMALL
from tests.census.tweaks import TWEAKS

MOST_PARAMETERS = 30_000_000
TIMM = ("fast_vlm", "gemma3n", "perception_lm")


def tiny_values(config_class: type, kind: str) -> dict[str, Any]:
    """Keyword arguments for a configuration class: its fields made small, its parts too."""
    values: dict[str, Any] = {}
    parts = parts_of(config_class)
    for field in dataclasses.fields(config_class):
        if field.name in parts:
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        if "drop" in field.name and isinstance(default, float):
            values[field.name] = 0.0
        elif field.name in SMALL and (default is not None or field.name in EVEN_IF_NONE):
            values[field.name] = SMALL[field.name]
    if {"kv_lora_rank", "num_key_value_heads"} <= values.keys():  # latent attention has a key for each head
        values["num_key_value_heads"] = values["num_attention_heads"]
    for name, (part, part_kind, own) in parts.items():
        values[name] = own | tiny_values(part, part_kind) | ({"model_type": part_kind} if part_kind else {})
    return merged(values, TWEAKS.get(kind, {}) | MEDIA.get(kind, {}))


def parts_of(config_class: type) -> dict[str, tuple[type, str, dict[str, Any]]]:
    """The configurations inside of one: their classes, model types, and what the outer one sets in them."""
    found: dict[str, Any] = {}
    declared = getattr(config_class, "sub_configs_defaults", None) or getattr(config_class, "sub_configs", {})
    for name, part in declared.items():
        kind, own = getattr(part, "model_type", ""), {}
        if not isinstance(part, type):  # a SubConfigSpec
            own, part = dict(part.init_kwargs), part.config_class
            kind = kind or getattr(part, "model_type", "")
        if part is AutoConfig:
            if not kind:
                continue
            part = CONFIG_MAPPING[kind]
        if dataclasses.is_dataclass(part):
            found[name] = (part, kind, own)
    return found


def merged(values: dict[str, Any], tweaks: dict[str, Any]) -> dict[str, Any]:
    """Tweaks over values; a dict of a part over that part, and `...` for nothing given."""
    result = dict(values)
    for name, value in tweaks.items():
        if value is ...:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result


def tiny_config(kind: str) -> Any:
    config_class = CONFIG_MAPPING[kind]
    values = tiny_values(config_class, kind)
    return config_class(**values)


def tiny_model(kind: str, table: str = "causal") -> Any:
    """The model of a type in float32 and evaluation mode, its weights random.

    Raises whatever transformers raises where it cannot be made, and ValueError where it would not be small.
    """
    torch.manual_seed(0)
    auto, config = auto_of(kind, table), tiny_config(kind)
    if kind in ("musicgen", "musicgen_melody"):
        config = config.decoder
    with without_timm(config):
        with torch.device("meta"):
            n = sum(p.numel() for p in auto.from_config(copy.deepcopy(config)).parameters())
        if n > MOST_PARAMETERS:
            raise ValueError(f"not shrunken enough: {n:,} parameters")
        model = auto.from_config(config, attn_implementation="eager").float().eval()
    scatter(model)
    return model


@contextmanager
def without_timm(config: Any) -> Iterator[None]:
    """Towers of timm, which is not needed for text alone, left out."""
    if config.model_type not in TIMM:
        yield
        return
    module = import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
    own = module.AutoModel

    def from_config(part: Any, **options: Any) -> Any:
        return (
            torch.nn.Identity()
            if "text" not in part.model_type and "model_args" in vars(part)
            else own.from_config(part, **options)
        )

    with patch.object(module, "AutoModel", SimpleNamespace(from_config=from_config)):
        yield


@torch.no_grad()
def scatter(model: Any) -> None:
    """Random weights, biases too, such that logits have a standard deviation of one or two."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(parameter.nan_to_num(0.0, 1.0, -1.0))
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        head.weight.normal_(std=0.3)
        if head.bias is not None:
            head.bias.normal_(std=0.5)
