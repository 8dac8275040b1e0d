"""Refuse Python code that comes with a model unless it is trusted, and then pin its version."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from cynosure.models.pretrained import loading_errors

CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG = "config.json", "tokenizer_config.json", "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
MOST_BYTES = 1 << 24  # of a JSON file; real ones are far smaller
COMMIT = re.compile(r"[0-9a-f]{40}")
# Implementations in transformers and torch themselves; others would be fetched from the hub and run.
ATTENTION = frozenset({None, "eager", "sdpa", "flex_attention"})
EXPERTS = frozenset({None, "eager", "batched_mm", "grouped_mm"})


class Origin(NamedTuple):
    """A folder, or a repository at one commit, and the content of its JSON description."""

    source: Path | str
    revision: str | None
    values: dict[str, Any]  # empty if there is no such file

    def check_code(self, trust_remote_code: bool, known: bool) -> None:
        """Raise ValueError if code is needed but not trusted, or if it comes from another repository.

        `known` means that transformers has its own class for this model or tokenizer, so no code is needed.
        """
        classes = references(self.values)
        if not classes or (known and not trust_remote_code):
            return
        reference = classes[0]
        if not trust_remote_code:
            file = reference.rpartition(".")[0] + ".py"
            raise ValueError(
                f"{self.source} needs Python code of its own, {file}, which is not run: "
                "read it, then pass `trust_remote_code=True`"
            )
        if other := next((name for name in classes if "--" in name), None):
            raise ValueError(
                f"{self.source} takes its code from another repository, {other.partition('--')[0]}, which may change: "
                f"download that code into the model's folder"
            )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()


def find_origin(source: Path | str, revision: str | None, what: str, name: str = CONFIG) -> Origin:
    """Read the JSON file that describes a model or tokenizer, and resolve the commit of a hub id.

    Raises ValueError if the file cannot be read.
    """
    from transformers.utils.hub import cached_file

    with loading_errors(source, what):
        # A missing file is no error here: transformers reports it later.
        file = cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=name == CONFIG,
        )  # fmt: skip
        path = None if file is None else Path(file)
        if isinstance(source, str) and path is not None and COMMIT.fullmatch(path.parent.name):
            revision = path.parent.name
        return Origin(source, revision, {} if path is None else read_json(path))


def pinned(source: Path | str, revision: str | None, what: str) -> str | None:
    """Return the version of the code that comes with a model or tokenizer, None if there is no code.

    It is the commit of a repository, or a SHA-256 of the Python files of a folder.
    """
    described = [find_origin(source, revision, what, name) for name in (CONFIG, TOKENIZER_CONFIG)]
    if not any(references(origin.values) for origin in described):
        return None
    if isinstance(source, Path):
        return f"sha256:{code_sha256(source)}"
    commit = next((known for _, known, _ in described if known and COMMIT.fullmatch(known)), None)
    if commit is None:
        raise ValueError(f"{source} has code of an unknown commit: pass a commit as `revision`")
    return f"commit:{commit}"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raise ValueError if the file is anything else or larger than a model's description."""
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
    """Return the classes that an `auto_map` names, like `modeling_x.XForCausalLM` or `owner/name--modeling_x.X`."""
    classes = values.get("auto_map")
    listed = classes.values() if isinstance(classes, dict) else [classes]
    flat = [name for entry in listed for name in (entry if isinstance(entry, list | tuple) else [entry])]
    return [name for name in flat if isinstance(name, str)]


def code_sha256(folder: str | Path) -> str:
    """Return a digest of the names and contents of all Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def keep_to_own(config: Any, trust_remote_code: bool) -> None:
    """Remove settings that would fetch and run kernels from the hub or untrusted code.

    An attention kernel changes the speed, not the model, so the default kernel replaces it.
    """
    for part in parts(config):
        part.return_dict = True  # otherwise a forward returns tuples, which are not supported here
        if getattr(part, "_attn_implementation", None) not in ATTENTION:
            part._attn_implementation = None
        if getattr(part, "_experts_implementation", None) not in EXPERTS:
            part._experts_implementation = None
        if not trust_remote_code and hasattr(part, "auto_map"):  # otherwise it prompts on standard input
            del part.auto_map


def parts(config: Any) -> list[Any]:
    """Return a configuration and those inside it."""
    inside = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return [config, *(part for nested in inside if hasattr(nested, "to_dict") for part in parts(nested))]
