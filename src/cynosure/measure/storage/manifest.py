"""The manifest of a run, which describes the run and contains its own checksum; and how two of them differ."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SEAL = "manifest_sha256"  # checksum of all its other values
DESCRIBED = ("cynosure", "environment", "units", "shards", "found", SEAL)  # values that do not identify a run
PARTS: dict[str, dict[str, type]] = {
    "model": {"name": str, "dtype": str, "weights_sha256": str, "tokenizer_sha256": str},
    "setting": {
        "model": str, "protocol": str, "window": int, "stride": int, "dtype": str, "device": str, "notes": list,
    },
    "cutting": {"protocol": str, "window": int, "stride": int, "batch_tokens": int, "unit_tokens": int},
    "corpus": {},
}  # fmt: skip
LATER = ("bos", "special", "chat")  # strings in the setting that runs of earlier versions lack


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a run. Raise FileNotFoundError if there is none, ValueError if it is damaged or foreign."""
    if not path.is_file():
        raise FileNotFoundError(f"not a run: {path.parent} has no {path.name}. Score with `out` to make one")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; restore it from a copy, or give another folder") from error
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(part), dict) for part in PARTS):
        raise ValueError(f"{path} is not the manifest of a run: give another folder")
    if SEAL in manifest and manifest[SEAL] != seal(manifest):
        raise ValueError(f"{path} was changed after the run wrote it: restore it from a copy, or give another folder")
    if wrong := first_wrong(manifest):
        raise ValueError(
            f"{path} is not the manifest of a run: {wrong}; restore it from a copy, or give another folder"
        )
    return manifest


def first_wrong(manifest: dict[str, Any]) -> str | None:
    """Say which value of a manifest is wrong; None if none is. This also checks manifests without a checksum."""
    for part, kinds in PARTS.items():
        for name, kind in kinds.items():
            if type(manifest[part].get(name)) is not kind:
                return f"its {part}.{name} is {shown(manifest[part].get(name))}"
    for name in LATER:
        if not isinstance(manifest["setting"].get(name), str | None):
            return f"its setting.{name} is {shown(manifest['setting'][name])}"
    if extra := manifest["setting"].keys() - {*PARTS["setting"], *LATER}:
        return f"it has setting.{min(extra)}"
    if not all(isinstance(note, str) for note in manifest["setting"]["notes"]):
        return "its setting.notes is not a list of strings"
    found = manifest.get("found", [])
    if not (isinstance(found, list) and all(isinstance(note, str) for note in found)):
        return "its found is not a list of strings"
    units, shards = manifest.get("units"), manifest.get("shards")
    if units is not None and (type(units) is not int or units < 1):
        return f"its units is {shown(units)}"
    if shards is not None and not (
        isinstance(shards, list) and len(shards) == units and all(isinstance(digest, str) for digest in shards)
    ):
        return "its shards do not fit its units"
    for part, name in (("setting", "window"), ("setting", "stride"), ("cutting", "batch_tokens")):
        if manifest[part][name] < 1:
            return f"its {part}.{name} is {manifest[part][name]}"
    return None


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with its checksum."""
    return manifest | {SEAL: seal(manifest)}


def seal(manifest: dict[str, Any]) -> str:
    return checksum({name: value for name, value in manifest.items() if name != SEAL})


def identity(manifest: dict[str, Any]) -> str:
    """Return what ties shards to their run. Two manifests share it if `difference` finds none between them."""
    return checksum({name: value for name, value in manifest.items() if name not in DESCRIBED})[:16]


def checksum(values: dict[str, Any]) -> str:
    """Return the SHA-256 of plain values, independent of the order of their names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def difference(old: dict[str, Any], new: dict[str, Any], at: str = "") -> str | None:
    """Say in which value two runs differ first; None if they are the same run."""
    for key in dict.fromkeys([*old, *new]):
        if not at and key in DESCRIBED:
            continue
        a, b, name = old.get(key), new.get(key), f"{at}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            if inside := difference(a, b, f"{name}."):
                return inside
        elif isinstance(a, list) and isinstance(b, list):
            if inside := difference(numbered(a), numbered(b), f"{name}."):
                return inside
        elif a != b:
            return f"its {name} is {shown(a)}, and now it is {shown(b)}"
    return None


def numbered(values: list[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def shown(value: Any) -> str:
    """Format a value of a manifest for a sentence. Digests are shortened.

    >>> shown("0123456789abcdef" * 4), shown(512), shown(None)
    ('01234567...', '512', 'nothing')
    """
    if value is None:
        return "nothing"
    text = str(value)
    return f"{text[:8]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text
