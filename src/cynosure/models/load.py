"""A model and its tokenizer, from a hub id, a folder, a `.gguf` file or the name of a packaged model."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cynosure.models.gguf import GgufFile, check_complete, dequantised, quiet_transformers, read_notes
from cynosure.models.packaged import PACKAGED, packaged_parts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to be measured, and the name to show beside its figures."""

    model: Any  # transformers' PreTrainedModel
    tokenizer: Any  # transformers' PreTrainedTokenizerBase
    name: str

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> str:
        """The dtype of the weights, such as `float32`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def max_positions(self) -> int | None:
        """The most positions the model can see, or None where its configuration does not say."""
        config = self.model.config.get_text_config()
        found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
        return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def load(
    name: str, *, dtype: str = "auto", device: str = "auto", tokenizer: str | None = None, revision: str | None = None
) -> LanguageModel:
    """Load a causal language model for evaluation.

    `name` is a packaged model (`smollm2`, `gemma3-270m`), a folder, a `.gguf` file or a Hugging Face hub id; `revision`
    is for hub ids. `dtype` is `auto` (what the weights are stored in), `float32`, `bfloat16` or `float16`; `device` is
    `auto` (an accelerator if there is one) or torch's name of one. `tokenizer` names another folder or hub id to take
    the tokenizer from.

    Raises ValueError or FileNotFoundError, in one sentence, for whatever cannot be loaded.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: there is auto, {', '.join(DTYPES)}")
    place = find_device(device)
    folder, shown = locate(name)
    if isinstance(folder, Path) and revision is not None:
        raise ValueError(f"revision {revision!r} is for models of the hub, and {name!r} is not one")
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        config = from_pretrained(AutoConfig, folder, revision, "model")
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{name} is of the type {config.model_type}, no causal model such as llama or gpt2")
        options: dict[str, Any] = {"dtype": DTYPES.get(dtype, "auto"), "output_loading_info": True}
        model, found = from_pretrained(AutoModelForCausalLM, folder, revision, "model", **options)
        check_complete(found, name)
        source, at = (tokenizer, None) if tokenizer else (folder, revision)
        words = from_pretrained(AutoTokenizer, source, at, "tokenizer")
    return LanguageModel(model.eval().to(place), words, shown)


def find_device(device: str) -> torch.device:
    """The torch device of that name, or for `auto` the accelerator there is, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        if accelerator is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # of several processes, one each
            number = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
            return torch.device(accelerator.type, number)
        return accelerator or torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: give auto, cpu, cuda, cuda:1, mps...") from error
    if place.type != "cpu" and (accelerator is None or place.type != accelerator.type):
        raise ValueError(f"device {device!r} is not here: there is cpu{f', {accelerator.type}' if accelerator else ''}")
    return place


def locate(name: str) -> tuple[Path | str, str]:
    """The folder, or the hub id, that a model's name stands for, and the name to show."""
    path = Path(name).expanduser()
    if name in PACKAGED:
        return converted(GgufFile(PACKAGED[name].file_name, packaged_parts(name)))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"no such model file: {name}")
        return converted(GgufFile(path.name, (path,)))
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            inside = sorted(file.name for file in path.glob("*.gguf"))
            hint = f": give the file, {path / inside[0]}" if inside else ""
            raise FileNotFoundError(f"folder {name} holds no model: it has no config.json{hint}")
        notes = read_notes(path)
        return path, notes.name if notes else path.resolve().name
    if name and path.exists():
        raise ValueError(f"{name} is not a model: give a folder, a .gguf file, a hub id or {' or '.join(PACKAGED)}")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise FileNotFoundError(f"no such model folder: {name!r}")
    return name, name


def converted(file: GgufFile) -> tuple[Path, str]:
    folder = dequantised(file)
    notes = read_notes(folder)
    return folder, notes.name if notes else file.name


def from_pretrained(kind: Any, source: Path | str, revision: str | None, what: str, **options: Any) -> Any:
    """transformers' `from_pretrained`, its errors brought down to one sentence."""
    try:
        return kind.from_pretrained(source, revision=revision, **options)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        reason = str(error).strip().partition("\n")[0].rstrip(".: ") or type(error).__name__
        if isinstance(source, Path):
            way_out = "; --tokenizer takes it from elsewhere" if what == "tokenizer" else ""
            raise ValueError(f"cannot load the {what} in {source}: {reason}{way_out}") from error
        like = difflib.get_close_matches(source, PACKAGED, n=1)
        meant = f" (did you mean {like[0]}?)" if like else ""
        packaged = ", ".join(PACKAGED)
        offline = " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise ValueError(
            f"no {what} {source!r}{meant}{offline}: neither a folder or file here, nor packaged ({packaged}), "
            f"and the hub says: {reason}"
        ) from error
