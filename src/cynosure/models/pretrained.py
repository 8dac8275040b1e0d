"""Call Hugging Face's loading functions without running untrusted code, and reduce their errors to one sentence."""

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from cynosure.models.packaged import PACKAGED
from cynosure.system.panics import is_failure, quiet_panic

MOST_CHARS = 300  # of a reason, which may come from a file


def from_pretrained(
    kind: Any, source: Path | str, revision: str | None, what: str, *, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Call `from_pretrained` of transformers, and reduce its errors to one sentence.

    Code in the folder or repository runs only with `trust_remote_code`. There are no prompts on standard input.
    """
    with loading_errors(source, what), quiet_panic() if what == "tokenizer" else nullcontext():
        return kind.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code, **options)


@contextmanager
def loading_errors(source: Path | str, what: str) -> Iterator[None]:
    """Turn any error that a damaged or hostile file causes into a ValueError of one sentence."""
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ValueError(sentence(source, what, error)) from error


def sentence(source: Path | str, what: str, error: BaseException) -> str:
    """Say what failed to load, where and why."""
    if isinstance(source, Path):
        way_out = "; `tokenizer` can name another one" if what == "tokenizer" else ""
        return f"cannot load the {what} in {source}: {reason_of(error)}{way_out}"
    like = difflib.get_close_matches(source, PACKAGED, n=1)
    meant = f" (did you mean {like[0]}?)" if like else ""
    offline = " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    return (
        f"no {what} {source!r}{meant}{offline}: neither a folder or file here, nor packaged ({', '.join(PACKAGED)}), "
        f"and the hub says: {reason_of(error)}"
    )


def reason_of(error: BaseException) -> str:
    """Return the first line of an error message, or the first two if the first ends with a colon.

    >>> reason_of(ValueError("Validation error for field 'n':\\n    TypeError: expected int\\nmore"))
    "Validation error for field 'n': TypeError: expected int"
    """
    message = str(error)
    if "weights_only" in message:  # its own message advises running the file
        return "its weights are a pickle that holds more than tensors, which is not run; use safetensors"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = [line.strip() for line in message.strip().splitlines()] or [""]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    shown = "".join(character if character.isprintable() else " " for character in first).rstrip(".: ")
    if isinstance(error, KeyError) or not shown:
        shown = f"{type(error).__name__} {shown}".strip()
    return shown if len(shown) <= MOST_CHARS else f"{shown[:MOST_CHARS]}..."
