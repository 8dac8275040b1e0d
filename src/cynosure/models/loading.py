"""Load a model and its tokenizer from a hub id, a folder, a `.gguf` file or the name of a packaged model."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cynosure.models.gguf import GgufFile, dequantised, read_notes
from cynosure.models.packaged import PACKAGED, packaged_parts
from cynosure.models.pretrained import from_pretrained, loading_errors
from cynosure.models.remote_code import (
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    Origin,
    find_origin,
    is_adapter,
    keep_to_own,
    pinned,
)
from cynosure.models.soundness import check_size, check_values, find_checkpoint
from cynosure.models.weights import check_found
from cynosure.system.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to be measured, and the name to show beside its results."""

    model: Any  # transformers' PreTrainedModel
    tokenizer: Any  # transformers' PreTrainedTokenizerBase
    name: str
    # What a reader of results must know, for example weights that are left out. The manifest of a run keeps the texts
    # and a resumed run compares them, so changing one stops the runs of earlier versions from being resumed.
    notes: tuple[str, ...] = ()
    code: dict[str, str] = field(default_factory=dict)  # pins of the trusted code, by "model" and "tokenizer"

    @property
    def device(self) -> "torch.device":
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> str:
        """The dtype of the weights, for example `float32`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def max_positions(self) -> int | None:
        """The maximum number of positions, or None if the configuration does not say."""
        config = self.model.config.get_text_config()
        values = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
        return next((int(value) for value in values if isinstance(value, int) and value > 0), None)


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_unused_weights: bool = False,
) -> LanguageModel:
    """Load a causal language model for evaluation.

    Args:
        name: a packaged model (`smollm2`, `gemma3-270m`), a folder, a `.gguf` file or a Hugging Face hub id. A folder
            may hold a model, a finished run of `train` or a PEFT adapter, which is merged into the base that its
            `adapter_config.json` names.
        dtype: `float32`, `bfloat16`, `float16` or `auto`: the dtype in which the weights are stored, for an adapter the
            wider one of adapter and base.
        device: a torch device, or `auto`: an accelerator if there is one, else the CPU.
        tokenizer: another folder or hub id from which to load the tokenizer.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run the Python code that comes with a model or tokenizer. `code` of the result then pins it:
            the commit of a hub id, or a SHA-256 of the Python files of a folder.
        allow_unused_weights: load a model even if its configuration leaves some of its weights unused. A note then
            names them.

    Returns:
        The model with its tokenizer.

    Raises:
        ValueError, FileNotFoundError: the model cannot be loaded; the message says why.

    Example:
        >>> import cynosure
        >>> cynosure.load("smollm2").max_positions
        8192
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: expected one of auto, {', '.join(DTYPES)}")
    folder, shown = locate(name)
    if isinstance(folder, Path) and revision is not None:
        raise ValueError(f"revision {revision!r} is only for hub ids, and {name!r} is not one: leave it out")
    source = find_tokenizer(tokenizer) if tokenizer else folder
    import torch  # takes seconds, so a wrong name is reported first

    place, wanted = find_device(device), None if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "allow_unused_weights": allow_unused_weights}
    if isinstance(folder, Path) and is_adapter(folder):
        from cynosure.models.adapter import load_adapter

        def load_base(base: str, revision: str | None) -> LanguageModel:
            own = str(folder) if (folder / TOKENIZER_CONFIG).is_file() else None
            return load(base, device="cpu", tokenizer=tokenizer or own, revision=revision, **options)

        with quiet_transformers():
            adapted = load_adapter(folder, wanted, load_base)
        return replace(adapted, model=adapted.model.to(place), name=shown)
    with quiet_transformers():
        origin = find_origin(folder, revision, "model")
        model, notes = load_model(origin, name, wanted or "auto", **options)
        words = load_tokenizer(source, None if tokenizer else origin.revision, trust_remote_code)
        code = find_code(folder, source if tokenizer else None, origin.revision) if trust_remote_code else {}
    kept = read_notes(folder) if isinstance(folder, Path) else None
    notes = (*(kept.notes if kept else ()), *notes)
    return LanguageModel(model.eval().to(place), words, shown, notes, code)


def load_model(
    origin: Origin, name: str, dtype: Any, trust_remote_code: bool, allow_unused_weights: bool
) -> tuple[Any, tuple[str, ...]]:
    """Check a folder or repository, load its model, and return it with notes on how its weights fit."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    source, revision, values = origin
    origin.check_code(trust_remote_code, str(values.get("model_type")) in CONFIG_MAPPING)
    checkpoint = find_checkpoint(origin)
    check_values(values, checkpoint, name)
    check_no_adapter(origin)
    find_origin(source, revision, "model", GENERATION_CONFIG)  # transformers does not name this file if it is damaged
    config = from_pretrained(AutoConfig, source, revision, "model", trust_remote_code=trust_remote_code)
    own = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{name} is a {config.model_type} model, expected a causal one such as llama or gpt2")
    keep_to_own(config, trust_remote_code)
    if not own:
        check_size(config, checkpoint, source)
    options = {"dtype": dtype, "config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = from_pretrained(
        AutoModelForCausalLM, source, revision, "model", trust_remote_code=trust_remote_code, **options
    )
    return model, check_found(info, model, checkpoint, name, allow_unused_weights)


def check_no_adapter(origin: Origin) -> None:
    """Raise ValueError if a folder holds a model and an adapter, which transformers would apply unasked."""
    from transformers.utils.peft_utils import find_adapter_config_file

    with loading_errors(origin.source, "model"):
        config_file = find_adapter_config_file(str(origin.source), revision=origin.revision)
    if config_file is not None:
        raise ValueError(
            f"{origin.source} holds a model and an adapter_config.json: merge the adapter into the model, "
            f"or remove it to load the model alone"
        )


def find_tokenizer(name: str) -> Path | str:
    """Return the folder, which need not hold a model, or the hub id that a tokenizer's name stands for."""
    folder = Path(name).expanduser()
    return folder if name and folder.is_dir() else locate(name)[0]


def load_tokenizer(source: Path | str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer

    origin = find_origin(source, revision, "tokenizer", TOKENIZER_CONFIG)
    if trust_remote_code:
        for file in (origin, find_origin(source, origin.revision, "tokenizer")):
            file.check_code(True, known=False)
    try:
        return from_pretrained(AutoTokenizer, source, origin.revision, "tokenizer", trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "trust_remote_code" in str(error.__cause__):
            origin.check_code(trust_remote_code, known=False)
        raise


def find_code(model: Path | str | None, tokenizer: Path | str | None, revision: str | None = None) -> dict[str, str]:
    """Pin the code that comes with a model and with a separate tokenizer, each a folder or hub id."""
    model_pin = pinned(model, revision, "model") if model else None
    tokenizer_pin = pinned(tokenizer, None, "tokenizer") if tokenizer else None
    return {what: pin for what, pin in (("model", model_pin), ("tokenizer", tokenizer_pin)) if pin}


def find_device(device: str) -> "torch.device":
    """Return the torch device of a name. `auto` means an accelerator if there is one, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        if accelerator is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # one device per process
            number = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
            return torch.device(accelerator.type, number)
        return accelerator or torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: expected auto, cpu, cuda, cuda:1, mps...") from error
    if place.type != "cpu" and (accelerator is None or place.type != accelerator.type):
        here = f"cpu, {accelerator.type}" if accelerator else "cpu"
        raise ValueError(f"device {device!r} is not available here: expected one of {here}")
    return place


def locate(name: str) -> tuple[Path | str, str]:
    """Return the folder or hub id that a model's name stands for, and the name to show."""
    path = Path(name).expanduser()
    if name in PACKAGED:
        return converted(GgufFile(PACKAGED[name].file_name, packaged_parts(name)))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"no such model file: {name}")
        return converted(GgufFile(path.name, (path,)))
    if name and path.is_dir():
        if (path / "train.json").is_file() and (path / "model" / "config.json").is_file():
            return path / "model", path.resolve().name
        if is_adapter(path):
            return path, path.resolve().name
        if not (path / "config.json").is_file():
            if (path / "train.json").is_file():
                raise FileNotFoundError(
                    f"{name} is an unfinished training run: load one of {path / 'checkpoints'}, or finish it with "
                    "`resume=True`"
                )
            if (path / "manifest.json").is_file():
                raise FileNotFoundError(
                    f"{name} is a run of score, not a model: show it with cynosure summary, or compare two runs with "
                    "cynosure compare"
                )
            inside = sorted(file.name for file in path.glob("*.gguf"))
            hint = f": load the file {path / inside[0]}" if inside else ""
            raise FileNotFoundError(f"folder {name} holds no model: it has no config.json{hint}")
        notes = read_notes(path)
        return path, notes.name if notes else path.resolve().name
    if name and path.exists():
        raise ValueError(f"{name} is not a model: expected a folder, a .gguf file, a hub id or {' or '.join(PACKAGED)}")
    if name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1 or not name:
        raise FileNotFoundError(f"no such model folder: {name!r}")
    return name, name


def converted(file: GgufFile) -> tuple[Path, str]:
    folder = dequantised(file)
    notes = read_notes(folder)
    return folder, notes.name if notes else file.name
