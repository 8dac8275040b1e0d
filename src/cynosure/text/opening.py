"""Choose the token that opens a text, and the windows that begin with it."""

from typing import Any

from cynosure.text.calling import call
from cynosure.text.windows import Protocol

BOS = ("auto", "every", "first", "none")
PROBES = ("a", "the", "0", ".", "\u4e00")  # every vocabulary has at least one of these


def prefix_token(tokenizer: Any) -> int | None:
    """Return the token to put before a document so that its first token can be scored: BOS, else EOS, else None."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    prefix = bos if bos is not None else eos
    return None if prefix is None else int(prefix)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts the prefix token before a text, so that the model expects it in every window.

    An EOS only after the text, as T5 has it, does not count; nor does a CLS that is not BOS.
    """
    prefix = prefix_token(tokenizer)
    wholes = (list(call(tokenizer, probe).input_ids) for probe in PROBES)
    whole = next((ids for ids in wholes if len(ids) > 1 and ids[1] != prefix), [])
    return prefix is not None and whole[:1] == [prefix]


def check_bos(protocol: str, bos: str) -> None:
    """Raise ValueError if `bos` is unknown or does not fit the protocol."""
    if bos not in BOS:
        raise ValueError(f"unknown bos {bos!r}: expected one of {', '.join(BOS)}")
    if bos != "auto" and protocol != "sliding":
        raise ValueError(f"{protocol} has its own rule for BOS: leave bos {bos!r} out, or use sliding")


def settle_bos(tokenizer: Any, rules: Protocol, bos: str, name: str) -> str:
    """Decide which windows begin with BOS, or with EOS if there is no BOS.

    Args:
        tokenizer: a transformers tokenizer.
        rules: the protocol.
        bos: one of `BOS`; `"auto"` decides by the protocol and the tokenizer.
        name: the model's name, for errors.

    Returns:
        `"every"`, `"first"` (the first window of each text) or `"none"`.

    Raises:
        ValueError: `bos` does not fit the protocol or the tokenizer.
    """
    check_bos(rules.name, bos)
    has_prefix, expected = prefix_token(tokenizer) is not None, adds_bos(tokenizer)
    if not rules.led:
        return "none" if not expected else "every" if rules.overwrites else "first"
    if bos in ("every", "first") and not has_prefix:
        raise ValueError(f"bos {bos!r} needs a BOS or EOS token, and the tokenizer of {name} has neither: leave it out")
    if bos != "auto":
        return bos
    if not has_prefix:
        return "none"
    return "every" if expected and rules.name == "sliding" else "first"
