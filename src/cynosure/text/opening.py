"""What stands before a text: the token that opens it, and which of the windows begin with it."""

from typing import Any

from cynosure.text.calling import call
from cynosure.text.windows import Protocol

BOS = ("auto", "every", "first", "none")
PROBES = ("a", "the", "0", ".", "\u4e00")  # texts of which a vocabulary has some


def prefix_token(tokenizer: Any) -> int | None:
    """The token that stands before a document so that its first token can be scored: BOS, else EOS, else none."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = bos if bos is not None else eos
    return None if found is None else int(found)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer's own call puts the prefix token before a text: then the model expects it in every one.

    An EOS that follows the text alone, as T5's does, is none; nor is a CLS that is not BOS.
    """
    prefix = prefix_token(tokenizer)
    wholes = (list(call(tokenizer, probe).input_ids) for probe in PROBES)
    whole = next((ids for ids in wholes if len(ids) > 1 and ids[1] != prefix), [])
    return prefix is not None and whole[:1] == [prefix]


def check_bos(protocol: str, bos: str) -> None:
    """ValueError where windows cannot be asked to begin so."""
    if bos not in BOS:
        raise ValueError(f"unknown bos {bos!r}: expected one of {', '.join(BOS)}")
    if bos != "auto" and protocol != "sliding":
        raise ValueError(f"{protocol} has its own rule for BOS: leave bos {bos!r} out, or use sliding")


def settle_bos(tokenizer: Any, rules: Protocol, bos: str, name: str) -> str:
    """Which windows begin with BOS (EOS where there is none): `every`, the `first` of each text, or `none`.

    `bos` is what was asked for, `name` the model's. ValueError where it does not fit the protocol or the tokenizer.
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
