"""Dequantise GGUF files with transformers, once, and keep them as safetensors in the cache directory."""

import json
import logging
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from cynosure.models.cache import discard, is_whole, seal, usable
from cynosure.models.pretrained import reason_of
from cynosure.models.soundness import Checkpoint
from cynosure.models.weights import LAYER, check_found
from cynosure.system.files import flush, sha256
from cynosure.system.machine import cache_directory
from cynosure.system.panics import is_failure, quiet_panic
from cynosure.system.quiet import quiet_transformers

log = logging.getLogger(__name__)

LAYOUT = 2  # version of the cached conversions: raise it when their content changes
STALE_HOURS = 24  # after that, an unfinished conversion is left over from a killed process
NOTES = "cynosure.json"  # describes the source of a conversion
# Tokenizer families that split digits one by one before the byte-level merges, which transformers omits.
DIGIT_SPLITTING = frozenset({"smollm", "starcoder", "refact", "command-r"})


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, stored in one part or in several that are joined."""

    name: str
    parts: tuple[Path, ...]

    def sha256(self) -> str:
        """Return the hash of the whole file. This takes about a second per gigabyte."""
        return sha256(*self.parts)


@dataclass(frozen=True)
class Notes:
    """The description that is stored beside the converted weights."""

    name: str  # shown beside results
    source: str
    sha256: str
    quantisation: str
    transformers: str
    notes: tuple[str, ...] = ()  # about weights that were left out


def dequantised(file: GgufFile) -> Path:
    """Return a folder with the safetensors, config and tokenizer of a GGUF file; convert it if it is not cached.

    The cache is keyed by the SHA-256 of the file, and its content is verified. If several processes need the same file,
    one converts it and the others wait. An interrupted conversion is never taken for a complete one.

    Raises ValueError if the file is not GGUF or transformers cannot read its architecture, OSError if the cache cannot
    be written.
    """
    check_magic(file)
    key = file.sha256()
    home = cache_directory() / "gguf"
    folder = home / f"{key}-v{LAYOUT}"
    if is_whole(folder):
        return folder
    with usable(home):
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{key}.lock"):
            if not is_whole(folder):
                if folder.exists():
                    log.info("the cached conversion of %s is damaged: %s. Converting it again", file.name, folder)
                    discard(folder)
                converted(file, key, folder)
    return folder


def converted(file: GgufFile, key: str, folder: Path) -> None:
    """Convert the file in a temporary folder of this process, then move that to `folder`."""
    for left in folder.parent.glob(f"{key}*.partial"):
        if time.time() - left.stat().st_mtime > STALE_HOURS * 3600:
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{key}.{uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        convert(file, key, partial)
        seal(partial, expected=("config.json", "model*.safetensors", NOTES))
        partial.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_notes(folder: Path) -> Notes | None:
    """Return the notes of a converted GGUF, None for any other folder. Raise ValueError if they are damaged."""
    path = folder / NOTES
    try:
        values = json.loads(path.read_bytes())
        notes = Notes(**(values | {"notes": tuple(values["notes"])}))
        if all(isinstance(value, str) for value in (notes.name, notes.source, *notes.notes)):
            return notes
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(f"{path} is damaged: remove it to load the folder like any other")


def check_magic(file: GgufFile) -> None:
    with file.parts[0].open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"{file.parts[0]} is not a GGUF file: it does not begin with the bytes 'GGUF'")


def convert(file: GgufFile, key: str, folder: Path) -> None:
    """Dequantise the file to float32 and write model, tokenizer and notes into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, __version__

    start = time.monotonic()
    whole = joined(file, folder)
    source: Any = {"pretrained_model_name_or_path": folder, "gguf_file": whole.name}
    options: Any = {
        "quantization_config": GgufConfig(dequantize=True),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    with quiet_transformers():
        try:
            metadata = read_metadata(whole)
        except Exception as error:  # a damaged file can raise any error
            raise ValueError(f"{file.name} is damaged or cut short: {str(error).rstrip('.')}; get it again") from error
        log.info("dequantising %s: needed only once, about half a minute per 100 MB", file.name)
        try:
            with quiet_panic():
                tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, trust_remote_code=False, **options
            )
        except BaseException as error:
            if not is_failure(error):
                raise
            raise ValueError(f"transformers cannot read {file.name}: {reason_of(error)}") from error
        model, info = loaded
        info["unexpected_keys"] |= beyond(metadata["tensors"], model.config)  # transformers does not report these
        left_out = check_found(info, model, Checkpoint({}, 0), file.name, allow_unused_weights=None)
        split_digits(tokenizer, metadata)
        write_model(model, tokenizer, folder)
    whole.unlink()
    kind = quantisation(metadata)
    notes = Notes(display_name(file.name, kind), file.name, key, kind, __version__, left_out)
    (folder / NOTES).write_text(json.dumps(asdict(notes), indent=1), encoding="utf-8")
    log.info("dequantised in %.0f s", time.monotonic() - start)


def write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # a full disk raises this
        what = f"{folder.parent}: {error}"
        raise OSError(f"cannot write into the cache, {what}; set CYNOSURE_CACHE to another folder") from error


def joined(file: GgufFile, folder: Path) -> Path:
    """Put the whole file into `folder`: a link if it is in one part, else a copy of the joined parts."""
    whole = folder / file.name
    if len(file.parts) == 1:
        try:
            whole.symlink_to(file.parts[0].resolve())
            return whole
        except OSError:  # this file system has no links
            pass
    with whole.open("wb") as out:
        for part in file.parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, out, 1 << 20)
    return whole


def read_metadata(path: Path) -> dict[str, Any]:
    """Read what transformers does not: the file type, the tokenizer family and the names of all tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = reader.fields
    wanted = ("general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    values = {name: fields[name].contents() for name in wanted if name in fields}
    return values | {"tensors": [str(tensor.name) for tensor in reader.tensors]}


def beyond(names: list[str], config: Any) -> set[str]:
    """Return the tensors of layers beyond the number of layers in a configuration."""
    n_layers = config.get_text_config().num_hidden_layers
    return {name for name in names if (layer := LAYER.search(name)) and int(layer[1]) >= n_layers}


def quantisation(metadata: dict[str, Any]) -> str:
    """Return the quantisation that a file declares, for example `Q4_K_M`."""
    from gguf import LlamaFileType

    try:
        return re.sub("^(MOSTLY|ALL)_", "", LlamaFileType(metadata["general.file_type"]).name)
    except (KeyError, ValueError):
        return "unknown quantisation"


def display_name(file_name: str, kind: str) -> str:
    """Return the name shown beside results. The file name says more than the name in the metadata.

    >>> display_name("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1")
    'SmolLM2-135M-Instruct (Q4_1 GGUF, dequantised)'
    """
    stem = file_name.removesuffix(".gguf")
    stem = re.sub(rf"[-._]{re.escape(kind)}$", "", stem, flags=re.IGNORECASE)
    return f"{stem} ({kind} GGUF, dequantised)"


def split_digits(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Split digits one by one if the file's tokenizer family (llama.cpp's `tokenizer.ggml.pre`) does."""
    from tokenizers import pre_tokenizers

    if metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") in DIGIT_SPLITTING:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
