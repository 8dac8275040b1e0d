"""Python code that comes with a model: refused unless it is trusted, and then pinned to what it is now."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from cynosure.models.pretrained import told

CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG = "config.json", "tokenizer_config.json", "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
MOST_BYTES = 1 << 24  # of a JSON file; those of real models are far smaller
COMMIT = re.compile(r"[0-9a-f]{40}")
# Implementations that transformers and torch bring themselves; others are fetched from the hub and run.
ATTENTION = frozenset({None, "eager", "sdpa", "flex_attention"})
EXPERTS = frozenset({None, "eager", "batched_mm", "grouped_mm"})


class Origin(NamedTuple):
    """A folder, or a repository at one commit, and the JSON file in it that says what the rest is."""

    source: Path | str
    revision: str | None
    values: dict[str, Any]  # empty where there is no such file

    def check_code(self, trust_remote_code: bool, known: bool) -> None:
        """ValueError for code that would have to run without being trusted, and for code of another repository.

        `known` says that transformers has a class of its own for this model or tokenizer, so that it needs no code.
        """
        found = references(self.values)
        if not found or (known and not trust_remote_code):
            return
        reference = found[0]
        if not trust_remote_code:
            file = reference.rpartition(".")[0] + ".py"
            raise ValueError(
                f"{self.source} needs Python code of its own, {file}, which is not run: "
                "read it, then give `trust_remote_code=True`"
            )
        if other := next((name for name in found if "--" in name), None):
            raise ValueError(
                f"{self.source} takes its code from another repository, {other.partition('--')[0]}, which may change: "
                f"download that code into the model's folder"
            )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()


def find_origin(source: Path | str, revision: str | None, what: str, name: str = CONFIG) -> Origin:
    """Read the JSON file that describes a model or tokenizer; of a hub id, settle the commit that everything is of.

    Raises ValueError when the file cannot be read.
    """
    from transformers.utils.hub import cached_file

    with told(source, what):
        # A folder is looked into only; a file that is missing is for transformers to tell.
        found = cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=name == CONFIG,
        )  # fmt: skip
        path = None if found is None else Path(found)
        if isinstance(source, str) and path is not None and COMMIT.fullmatch(path.parent.name):
            revision = path.parent.name
        return Origin(source, revision, {} if path is None else read_json(path))


def pinned(source: Path | str, revision: str | None, what: str) -> str | None:
    """What the code that comes with a model or tokenizer is: a repository's commit, or a SHA-256 of a folder's Python
    files; None where there is none."""
    described = [find_origin(source, revision, what, name) for name in (CONFIG, TOKENIZER_CONFIG)]
    if not any(references(origin.values) for origin in described):
        return None
    if isinstance(source, Path):
        return f"sha256:{code_sha256(source)}"
    commit = next((found for _, found, _ in described if found and COMMIT.fullmatch(found)), None)
    if commit is None:
        raise ValueError(f"{source} has code, and its commit is not known: give `revision` with a commit")
    return f"commit:{commit}"


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. ValueError for anything else, or for more than a model's description."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path.name} has {size:,} bytes, more than {MOST_BYTES:,}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return values


def references(values: dict[str, Any]) -> list[str]:
    """The classes that an `auto_map` names, such as `modeling_x.XForCausalLM` or `owner/name--modeling_x.X`."""
    classes = values.get("auto_map")
    listed = classes.values() if isinstance(classes, dict) else [classes]
    flat = [name for entry in listed for name in (entry if isinstance(entry, list | tuple) else [entry])]
    return [name for name in flat if isinstance(name, str)]


def code_sha256(folder: str | Path) -> str:
    """A digest of every Python file in a folder, their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def keep_to_own(config: Any, trust_remote_code: bool) -> None:
    """Remove from a configuration what would fetch and run kernels of the hub or, untrusted, code.

    Which kernel computes attention changes the speed, not the model: the default one takes its place.
    """
    for part in parts(config):
        part.return_dict = True  # else a forward returns tuples, which nothing here reads
        if getattr(part, "_attn_implementation", None) not in ATTENTION:
            part._attn_implementation = None
        if getattr(part, "_experts_implementation", None) not in EXPERTS:
            part._experts_implementation = None
        if not trust_remote_code and hasattr(part, "auto_map"):  # or parts of the model would ask on standard input
            del part.auto_map


def parts(config: Any) -> list[Any]:
    """A configuration and those inside it."""
    inside = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return [config, *(part for found in inside if hasattr(found, "to_dict") for part in parts(found))]
