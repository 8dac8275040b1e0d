"""docs/reference/models.md, made of the census's results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.census.peers import PEERS
from tests.census.results import Record, counted, counted_splits

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
TITLES = {"causal": "Causal language models", "other": "Encoder-decoders, speech, and images with text"}
STATUSES = ("equal", "refused", "wrong", "not built", "no loss of text")
COLUMNS = ("plain", "train", "right padding", "left padding", "num_items_in_batch", "num_items_in_batch, a tensor",
           "shift_labels", "router losses")  # fmt: skip
HEADINGS = ("type", "class", "inputs", "patch", "loss, gradients", "train mode", "padding right", "left",
            "items", "as a tensor", "shift_labels", "router", "bfloat16", "Δ loss", "Δ gradient", "split")  # fmt: skip
INTRO = """\
# Models

Every class of transformers with a loss of text, built tiny with random weights, and what `cynosure.patch` and scoring's
split make of it. `make census` writes this page in about five minutes of one core; {versions}.

**Patch.** The model's own `model(..., labels=...)` is compared with the same call after `cynosure.patch`: the loss (to
1e-5) and every parameter's gradient (to 1e-4, relative), in float32. Full logits must not be made, and logits and
generated tokens without labels must be equal bit for bit. `undo` must leave the model as it was.

**Split.** `cynosure score`, `predict` and `check` against the model's own logits.
"""
LEGEND = """\
`=`: equal. `-`: the model does not take this call itself. "Equal": every call is. Refused: `patch` says why it cannot
serve the model, which stays as it was. Δ: the worst relative difference of a loss, and of one parameter's gradient.
"""


def page(results: dict[str, Any]) -> str:
    """The whole page, as Markdown."""
    classes = results["classes"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [INTRO.format(versions=versions), "## In short\n", *in_short(classes), "",
             "## Beside other implementations\n",
             *beside(classes), "", "## Not served, and why\n", *not_served(classes)]  # fmt: skip
    for table, title in TITLES.items():
        parts += ["", f"## {title}\n", LEGEND, *every_class([r for r in classes if r["table"] == table])]
    return "\n".join(parts) + "\n"


def in_short(classes: list[Record]) -> Iterator[str]:
    yield "| | classes | " + " | ".join(STATUSES) + " |"
    yield "|---|" + "---|" * (len(STATUSES) + 1)
    for table, title in TITLES.items():
        counts = counted(classes, table)
        yield f"| patch: {title} | {counts.total()} | " + " | ".join(str(counts[s]) for s in STATUSES) + " |"
    splits = counted_splits(classes)
    row = " | ".join(str(splits[s]) if s in ("equal", "refused", "wrong") else "" for s in STATUSES)
    yield f"| split: {TITLES['causal']} | {splits.total()} | {row} |"


def beside(classes: list[Record]) -> Iterator[str]:
    """How many model types each implementation patches, and how many of these are equal here."""
    equal = {record["kind"] for record in classes if record["status"] == "equal"}
    known = {record["kind"] for record in classes}
    yield "| implementation | patches the loss of | of these, in the census | equal here |"
    yield "|---|---|---|---|"
    for peer in PEERS:
        kinds = set(peer.kinds)
        yield f"| {peer.name} ({peer.where}) | {len(kinds)} types | {len(kinds & known)} | {len(kinds & equal)} |"
    yield "| TRL 1.16 (`add_fused_lm_head`) | any with a linear head, not verified; per-token values | | |"
    yield "| unsloth (rewrites the source of each forward) | no list | | |"
    yield f"| cynosure | {len(equal)} types, each verified when it is patched | {len(equal)} | {len(equal)} |"


def not_served(classes: list[Record]) -> Iterator[str]:
    yield "| type | what | reason |"
    yield "|---|---|---|"
    for record in classes:
        if record["status"] != "equal":
            yield f"| {record['kind']} | patch: {record['status']} | {cell(record['reason'])} |"
        split = record.get("split", {})
        if split.get("status", "equal") != "equal":
            yield f"| {record['kind']} | split: {split['status']} | {cell(split['reason'])} |"


def every_class(classes: list[Record]) -> Iterator[str]:
    yield "| " + " | ".join(HEADINGS) + " |"
    yield "|" + "---|" * len(HEADINGS)
    for record in classes:
        yield "| " + " | ".join(row(record)) + " |"


def row(record: Record) -> list[str]:
    calls = record.get("calls", {})
    marks = [calls.get(name, "") for name in COLUMNS] + [record.get("bfloat16", "")]
    differences = [f"{record[name]:.0e}" if name in record else "" for name in ("loss", "gradient")]
    inputs = ", ".join(record.get("inputs", []))
    split = record.get("split", {}).get("status", "")
    return [record["kind"], record.get("class", ""), inputs, record["status"], *marks, *differences, split]


def cell(text: str, most: int = 220) -> str:
    """A text as it may stand in a table's cell."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= most else text[: most - 1] + "…"
