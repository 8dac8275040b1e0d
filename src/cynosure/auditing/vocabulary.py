"""Check ids, labels, tokenizer and configuration against the rows of the model's embedding and head."""

from typing import Any

import torch

from cynosure.auditing.batch import AuditBatch
from cynosure.auditing.findings import Report
from cynosure.auditing.labels import TextRows
from cynosure.patching import IGNORED

SPECIALS = ("pad", "bos", "eos")


def check_vocabulary(batches: list[AuditBatch], model: Any, tokenizer: Any, report: Report) -> bool:
    """Check that every id has a row in the embedding and every label one in the head; return whether all have."""
    n_rows = model.get_input_embeddings().weight.shape[0]
    head = getattr(model.get_output_embeddings(), "weight", None)
    n_classes = n_rows if head is None else head.shape[0]
    n_tokens = None if tokenizer is None else len(tokenizer)
    if n_classes != n_rows and model.config.get_text_config().tie_word_embeddings:
        report.find("embedding-and-head-differ", f"the embedding has {n_rows:,} rows, the head {n_classes:,}")
    ids = first_outside(batches, "ids", n_rows)
    labels = first_outside(batches, "labels", n_classes)
    if n_tokens is not None and n_tokens > n_rows and needed(tokenizer, n_rows, ids):
        report.find("tokenizer-too-large", f"the tokenizer has {n_tokens:,} tokens, the embedding {n_rows:,} rows"
                    + (f"; {ids} has none" if ids else ""))  # fmt: skip
    elif ids:
        report.find("ids-out-of-range", f"{ids} is outside the embedding's {n_rows:,} rows")
    elif labels:
        report.find("labels-out-of-range", f"{labels} is outside the head's {n_classes:,} rows")
    if n_tokens is not None:
        compare_sizes(tokenizer, n_tokens, n_rows, report)
    rows = f"{n_rows:,} rows in the embedding, {n_classes:,} in the head"
    tokens = f", {n_tokens:,} tokens in the tokenizer" if n_tokens is not None else "; no tokenizer given"
    report.made("vocabulary", rows + tokens)
    return not (ids or labels)


def first_outside(batches: list[AuditBatch], which: str, n: int) -> str | None:
    """Describe the first id, or label other than -100, that is not in [0, n); None if there is none."""
    for batch in batches:
        values = batch.ids if which == "ids" else batch.labels
        outside = (values < 0) | (values >= n)
        if which == "labels":
            outside &= values != IGNORED
        if outside.any():
            what = "id" if which == "ids" else "label"
            return f"{what} {int(values[outside][0])} ({batch.place(outside)})"
    return None


def needed(tokenizer: Any, n_rows: int, outside: str | None) -> bool:
    """Whether tokens without a row are used: in a batch, or as pad, BOS, EOS or UNK."""
    ids = (getattr(tokenizer, f"{name}_token_id", None) for name in (*SPECIALS, "unk"))
    return outside is not None or any(id_ is not None and id_ >= n_rows for id_ in ids)


def compare_sizes(tokenizer: Any, n_tokens: int, n_rows: int, report: Report) -> None:
    if n_tokens < n_rows:
        report.note(f"the embedding has {n_rows - n_tokens:,} rows more than the tokenizer's {n_tokens:,} tokens, as "
                    "in a padded vocabulary")  # fmt: skip
    elif n_tokens > n_rows and not any(finding.name == "tokenizer-too-large" for finding in report.findings):
        beyond = ", ".join(tokenizer.convert_ids_to_tokens(list(range(n_rows, min(n_tokens, n_rows + 3)))))
        report.note(f"{n_tokens - n_rows:,} tokens of the tokenizer have no row in the embedding; none is used here: "
                    f"{beyond}")  # fmt: skip


def check_specials(batches: list[AuditBatch], rows: list[TextRows], model: Any, tokenizer: Any, report: Report) -> None:
    """Compare special tokens of the configurations with the tokenizer's: a fault if the batches contain the latter.

    The pad token of generation is only noted, because training never uses it.
    """
    if tokenizer is None:
        report.made("special tokens", "not made: no tokenizer given")
        return
    faults: list[str] = []
    harmless: list[str] = []
    for name in SPECIALS:
        own = getattr(tokenizer, f"{name}_token_id", None)
        for owner in ("config", "generation_config"):
            theirs = getattr(getattr(model, owner, None), f"{name}_token_id", None)
            known = theirs if isinstance(theirs, list | tuple) else [theirs]
            if own is None or theirs is None or own in known:
                continue
            used = occurs(batches, rows, own, padding=name == "pad") and (name, owner) != ("pad", "generation_config")
            (faults if used else harmless).append(f"{name} is {own} in the tokenizer and {theirs} in model.{owner}")
    if faults:
        report.find("special-tokens-differ", f"{'; '.join(faults)}; these batches contain the tokenizer's")
    if harmless:
        report.note(f"{'; '.join(harmless)}; these batches do not contain the tokenizer's")
    n_differing = len(faults) + len(harmless)
    report.made("special tokens", f"{n_differing} differ between tokenizer and configurations")


def occurs(batches: list[AuditBatch], rows: list[TextRows], id_: int, padding: bool) -> bool:
    """Whether a token occurs in the text of a batch, or in its padding."""
    return any(
        bool(torch.any((batch.ids == id_) & (row.real ^ padding))) for batch, row in zip(batches, rows, strict=True)
    )
