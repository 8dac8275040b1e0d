"""Call a tokenizer and report its failures, Rust panics included, as ValueError."""

from typing import Any

from cynosure.system.panics import is_failure, quiet_panic

SHOWN_CHARS = 40  # of a text that the tokenizer cannot read


def added_tokens(tokenizer: Any) -> dict[int, Any]:
    """Return the tokens added to a tokenizer's vocabulary, by id. Raise ValueError if it does not list them."""
    tokens = getattr(tokenizer, "added_tokens_decoder", None)
    if not isinstance(tokens, dict):
        name = type(tokenizer).__name__
        raise ValueError(f"the tokenizer, a {name}, does not list its special tokens: give one with a tokenizer.json")
    return tokens


def call(tokenizer: Any, text: str, **options: Any) -> Any:
    """Call the tokenizer. Raise ValueError if it fails or its Rust library panics."""
    try:
        with quiet_panic():
            return tokenizer(text, **options)
    except BaseException as error:
        if not is_failure(error):
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ValueError(f"the tokenizer of {name} cannot read {shown!r}: {reason}") from error
