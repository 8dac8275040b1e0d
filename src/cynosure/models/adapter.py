"""Load a PEFT adapter as a model: merge it into the base model that it names."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cynosure.models.digest import weights_digest
from cynosure.models.packaged import PACKAGED
from cynosure.models.pretrained import loading_errors
from cynosure.models.remote_code import ADAPTER_CONFIG, is_adapter, read_json

if TYPE_CHECKING:
    from cynosure.models.loading import LanguageModel

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE_DIGEST = "base.json"  # written by `train` beside an adapter: the SHA-256 of the base's float32 weights
BASE = "base_model_name_or_path"


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return name and revision of an adapter's base. Relative paths are tried from the adapter's folder first."""
    with loading_errors(folder, "adapter"):
        values = read_json(folder / ADAPTER_CONFIG)
    base = values.get(BASE)
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / ADAPTER_CONFIG} names no base model: set {BASE} to its folder or hub id")
    if base not in PACKAGED and (folder / base).exists():
        return str(folder / base), None
    return base, None if Path(base).expanduser().exists() else values.get("revision")


def check_chain(folder: Path) -> None:
    """Raise ValueError if a chain of adapters and their bases leads back to itself."""
    place, seen = folder, {folder.resolve()}
    while is_adapter(place):
        place = Path(base_of(place)[0]).expanduser()
        if place.resolve() in seen:
            raise ValueError(f"{folder / ADAPTER_CONFIG} leads back to {place} as its base: set {BASE} to a model")
        seen.add(place.resolve())


def load_adapter(folder: Path, dtype: torch.dtype | None, load_base: Callable[..., "LanguageModel"]) -> "LanguageModel":
    """Load the base of an adapter and merge the adapter into it, in float32 and then rounded once.

    `dtype` None stands for the wider of the dtypes in which base and adapter are stored, which keeps small updates.
    `load_base` loads the base by name and revision in its stored dtype.
    """
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise FileNotFoundError(f"{folder} has no adapter weights: {WEIGHTS[0]} is missing. Get it again")
    check_chain(folder)
    name, revision = base_of(folder)
    try:
        base = load_base(name, revision)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(
            f"{folder} is an adapter for {name}, which cannot be loaded: {error}. Put the base there, or set {BASE} in "
            f"{ADAPTER_CONFIG} to its folder"
        ) from error
    if getattr(base.model.config, "quantization_config", None):
        raise ValueError(f"{folder} is an adapter for {name}, which is quantized: merge it into the unquantized model")
    base_dtype, model = base.model.dtype, base.model.float()
    check_base(folder, name, model)
    merged, adapter_dtype = merge(model, folder, name)
    merged = merged.to(dtype or torch.promote_types(base_dtype, adapter_dtype)).requires_grad_()  # PEFT turns it off
    note = f"{folder} is an adapter for {name}: measured with it merged in"
    return replace(base, model=merged.eval(), name=folder.resolve().name, notes=(*base.notes, note))


def check_base(folder: Path, name: str, base: Any) -> None:
    """Raise ValueError if the base has changed since the adapter was trained, if its folder has a digest."""
    if not (folder / BASE_DIGEST).is_file():
        return
    with loading_errors(folder, "adapter"):
        known = read_json(folder / BASE_DIGEST).get("sha256")
    if known != weights_digest(base):
        raise ValueError(
            f"{folder} was trained on other weights than {name} has now: restore those, or train the adapter again"
        )


def merge(base: Any, folder: Path, name: str) -> tuple[Any, torch.dtype]:
    """Return the base with the adapter merged into its weights, and the stored dtype of the adapter."""
    try:
        from peft import PeftConfig, PeftModel
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise ValueError(f"{folder} is an adapter, which needs PEFT: pip install peft") from error
    with loading_errors(folder, "adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing tensors, which are checked below
        config = PeftConfig.from_pretrained(str(folder), trust_remote_code=False)
        if config.is_prompt_learning:
            raise ValueError(
                f"{getattr(config.peft_type, 'value', config.peft_type)} adds virtual tokens to the input, which "
                "cannot be merged into weights"
            )
        stored = load_peft_weights(str(folder), device="cpu")
        config.inference_mode = True
        try:
            adapted = PeftModel(base, config)
            info = adapted.load_adapter(str(folder), "default", torch_device="cpu")
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"it is for another model than {name}: {mismatch(error)}") from error
        unmatched = sorted([*info.unexpected_keys, *info.missing_keys])
        if unmatched:
            raise ValueError(f"it does not fit {name}: {unmatched[0]} has no counterpart")
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ValueError(f"{config.peft_type} cannot be merged into weights")
        dtypes = [tensor.dtype for tensor in stored.values() if tensor.is_floating_point()]
        widest = max(dtypes, key=lambda one: one.itemsize, default=torch.float32)
        return adapted.merge_and_unload(safe_merge=True), widest


def mismatch(error: Exception) -> str:
    """Return the first mismatch that PyTorch's error lists."""
    lines = [line.strip() for line in str(error).splitlines() if "mismatch" in line]
    return lines[0] if lines else str(error).partition("\n")[0]
