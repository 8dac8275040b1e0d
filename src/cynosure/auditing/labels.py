"""Check what needs no model: padding, prompts, labels, packed documents, placeholders, BOS and EOS."""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cynosure.auditing.batch import AuditBatch, pulled
from cynosure.auditing.findings import Report
from cynosure.patching import IGNORED
from cynosure.text import adds_bos

PLACEHOLDER = re.compile(r"(image|video|audio|speech|vision)(_pad|_patch|_soft)?_token_(id|index)")


class Specials(NamedTuple):
    """The ids of the special tokens. Configurations of chat models may have several EOS tokens."""

    pad: int | None
    bos: int | None
    eos: tuple[int, ...]


def find_specials(tokenizer: Any, config: Any) -> Specials:
    """Read the ids from the tokenizer, and those that it lacks from the model's configuration."""
    pad, bos, eos = (
        next((x for x in (getattr(tokenizer, name, None), getattr(config, name, None)) if x is not None), None)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    )
    return Specials(pad, bos, tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (eos,))


class TextRows(NamedTuple):
    """Where a batch has text, and where it has padding that is not masked; all (B, T) bool."""

    real: Tensor
    leading: Tensor  # padding at the start of rows whose mask is all 1 or missing
    trailing: Tensor  # padding at the end of these rows


def read_rows(batch: AuditBatch, specials: Specials) -> TextRows:
    """Tell text from padding: by the mask, or by runs of the pad token at either end of rows without a 0 in it.

    If the pad token is also EOS or BOS, the pad token next to the text may be the EOS or BOS of the text.
    """
    masked = torch.zeros_like(batch.ids, dtype=torch.bool) if batch.attention is None else ~batch.attention
    unmasked = ~masked.any(1, keepdim=True)
    if specials.pad is None:
        nothing = torch.zeros_like(masked)
        return TextRows(~masked, nothing, nothing)
    is_pad = (batch.ids == specials.pad) & unmasked
    leading, trailing = run_at_start(is_pad), run_at_start(is_pad.flip(1)).flip(1)
    if specials.pad in (*specials.eos, specials.bos):
        leading = leading & after(leading)
        # If even the longest row, which has no padding, ends with the pad token, then texts end with EOS.
        ends = batch.ids[:, -1:] == specials.pad
        if bool((ends | ~unmasked).all()):
            trailing = trailing & before(trailing)
    return TextRows(~(masked | leading | trailing), leading, trailing)


def run_at_start(where: Tensor) -> Tensor:
    return where.long().cumprod(1).bool()


def after(where: Tensor) -> Tensor:
    """Return at each position the value of the next one."""
    return pulled(where, 1, False)


def before(where: Tensor) -> Tensor:
    """Return at each position the value of the one before."""
    return pulled(where, -1, False)


def check_padding(batches: list[AuditBatch], rows: list[TextRows], report: Report) -> None:
    """Check that labels ignore padding, and that attention ignores padding before the text."""
    labelled, attended, harmless, n_padding = [], [], 0, 0
    for batch, row in zip(batches, rows, strict=True):
        padding, wrong = ~row.real, ~row.real & (batch.labels != IGNORED)
        n_padding += int(padding.sum())
        if wrong.any():
            values = sorted(set(batch.labels[wrong].tolist()))
            filled = f"labels {', '.join(map(str, values[:3]))}{'...' if len(values) > 3 else ''}"
            labelled.append(f"{int(wrong.sum())} of {int(padding.sum())} padded positions have {filled}; the first is "
                            f"{batch.place(wrong)}")  # fmt: skip
        if batch.masked_otherwise:
            continue
        if row.leading.any():
            attended.append(f"{int(row.leading.sum())} pad tokens before the text are not masked; the first is "
                            f"{batch.place(row.leading)}")  # fmt: skip
        harmless += int((row.trailing & (batch.labels == IGNORED)).sum())
    if labelled:
        report.find("padding-labelled", labelled[0])
    if attended:
        report.find("padding-attended", attended[0])
    if harmless and not labelled:
        report.note(f"{harmless} pad tokens after the text are not masked; in a causal model they cost time but do not "
                    "change the loss")  # fmt: skip
    report.made("padding", f"{n_padding:,} padded positions" if n_padding else "none in these batches")


def check_prompt(batches: list[AuditBatch], rows: list[TextRows], report: Report) -> None:
    """Check that the labels are in the completion, in batches that mark one."""
    given = [(batch, row) for batch, row in zip(batches, rows, strict=True) if batch.completion is not None]
    if not given:
        report.made("prompt", "not made: no column completion_mask or assistant_masks marks the completion")
        return
    n_inside, n_labelled, outside = 0, 0, []
    for batch, row in given:
        assert batch.completion is not None
        has_label = (batch.own_labels != IGNORED) & row.real
        wrong = has_label & ~batch.completion
        n_inside += int(batch.completion.sum())
        n_labelled += int((has_label & batch.completion).sum())
        if wrong.any():
            outside.append(f"{int(wrong.sum())} tokens outside the completion are labelled; the first is "
                           f"{batch.place(wrong)}")  # fmt: skip
    any_label = n_labelled or outside
    if any_label and not n_labelled:
        report.find(
            "completion-unlabelled", f"none of the completion's {n_inside} tokens is labelled, and {outside[0]}"
        )
    elif outside:
        report.find("prompt-labelled", outside[0])
    report.made("prompt", f"{n_labelled} of the completion's {n_inside} tokens are labelled")


def check_labels(batches: list[AuditBatch], rows: list[TextRows], report: Report) -> None:
    """Check that every batch has a label; note rows without one, and labels that name other tokens than the text."""
    n_targets, without, differing = 0, [], []
    for batch, row in zip(batches, rows, strict=True):
        has_target = batch.truth != IGNORED
        n_targets += int(has_target.sum())
        if not has_target.any():
            report.find("no-labels", f"batch {batch.index}: nothing is labelled in its {len(batch.ids)} rows")
        elif not has_target.any(1).all():
            without.append(f"batch {batch.index}, row {int((~has_target.any(1)).nonzero()[0])}")
        other = (batch.own_labels != IGNORED) & (batch.own_labels != batch.ids) & row.real
        if other.any():
            differing.append(
                f"{int(other.sum())} labels differ from the token at their position; the first is {batch.place(other)}"
            )
    if without:
        report.note(f"rows without any label only cost time: {', '.join(without)}")
    if differing:
        report.note(differing[0])
    report.made("labels", f"{n_targets:,} tokens to predict in {len(batches)} batches")


def check_documents(batches: list[AuditBatch], rows: list[TextRows], report: Report) -> None:
    """Check that the first token is not labelled in documents that follow another in their row."""
    n_inside, crossing = 0, []
    for batch, row in zip(batches, rows, strict=True):
        inside = document_starts(batch) & row.real & before(row.real)
        wrong = inside & (batch.own_labels != IGNORED)
        n_inside += int(inside.sum())
        if wrong.any():
            counts = f"{int(wrong.sum())} of {int(inside.sum())} documents"
            crossing.append(
                f"{counts} that follow another in their row begin with a label; the first is {batch.place(wrong)}"
            )
    if crossing:
        report.find("label-crosses-documents", crossing[0])
    report.made(
        "packed documents", f"{n_inside:,} follow another in their row" if n_inside else "none in these batches"
    )


def check_placeholders(batches: list[AuditBatch], placeholders: dict[str, int], report: Report) -> None:
    """Check that labels ignore placeholders of images, videos and audio, whose ids are given by name."""
    labelled, n_placed = [], 0
    for batch in batches:
        for name, id_ in placeholders.items():
            placed = batch.ids == id_
            wrong = placed & (batch.own_labels != IGNORED)
            n_placed += int(placed.sum())
            if wrong.any():
                labelled.append(f"{int(wrong.sum())} of {int(placed.sum())} tokens {id_} ({name}) are labelled; the "
                                f"first is {batch.place(wrong)}")  # fmt: skip
    if labelled:
        report.find("placeholder-labelled", labelled[0])
    if placeholders:
        report.made("placeholders", f"{n_placed:,} tokens of {', '.join(placeholders)}")


def find_placeholders(tokenizer: Any, config: Any) -> dict[str, int]:
    """Return the ids that stand for images, videos and audio, by their names in the tokenizer or configuration."""
    own = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id", None) for kind in ("image", "video", "audio")}
    values = own | {name: value for name, value in vars(config).items() if PLACEHOLDER.fullmatch(name)}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def check_ends(
    batches: list[AuditBatch], rows: list[TextRows], specials: Specials, tokenizer: Any, report: Report
) -> None:
    """Check that BOS occurs once, where the tokenizer adds it, and that the EOS of texts is labelled."""
    n_starts, n_bos, n_eos, n_learned = 0, 0, 0, 0
    twice, unlabelled = [], []
    for batch, row in zip(batches, rows, strict=True):
        starts = text_starts(batch, row.real)
        is_bos = (batch.ids == specials.bos) & row.real if specials.bos is not None else torch.zeros_like(starts)
        n_starts, n_bos = n_starts + int(starts.sum()), n_bos + int(is_bos.sum())
        double = starts & is_bos & after(is_bos)
        if double.any() and specials.bos not in specials.eos:
            twice.append(f"{int(double.sum())} texts begin with BOS ({specials.bos}) twice; the first is "
                         f"{batch.place(double)}")  # fmt: skip
        is_eos = torch.isin(batch.ids, torch.tensor(specials.eos, device=batch.ids.device)) & row.real & ~starts
        has_label = batch.own_labels != IGNORED
        n_eos, n_learned = n_eos + int(is_eos.sum()), n_learned + int((is_eos & has_label).sum())
        # An EOS after a labelled token ends a completion, any other ends a prompt.
        missed = is_eos & ~has_label & before(has_label)
        if missed.any():
            unlabelled.append(f"{int(missed.sum())} texts end with EOS ({', '.join(map(str, specials.eos))}), and no "
                              f"label names it; the first is {batch.place(missed)}")  # fmt: skip
    if twice:
        report.find("bos-twice", twice[0])
    if unlabelled and not n_learned and batches[0].ahead != -1:  # -1: the shift drops the last label
        report.find("eos-unlabelled", unlabelled[0])
    if tokenizer is not None and specials.bos is not None and not n_bos and adds_bos(tokenizer):
        missing_bos(batches, rows, specials, report)
    report.made("BOS, EOS", f"{n_bos} BOS in {n_starts} texts; {n_learned} of {n_eos} EOS are labelled")


def text_starts(batch: AuditBatch, real: Tensor) -> Tensor:
    """Return where texts begin, (B, T): at the first token of a row that is not padding, and at document starts."""
    starts = real & (real.long().cumsum(1) == 1)
    return starts | (real & document_starts(batch))


def document_starts(batch: AuditBatch) -> Tensor:
    """Return where documents begin in packed rows, (B, T): by positions, document numbers or cumulative lengths.

    Some collators number the documents of a row in its attention mask.
    """
    starts = torch.zeros_like(batch.ids, dtype=torch.bool)
    for name in ("position_ids", "seq_idx", "attention_mask"):
        values = batch.given.get(name)
        if isinstance(values, Tensor) and values.shape == starts.shape:
            before, after = values[:, :-1], values[:, 1:]
            starts[:, 1:] |= after <= before if name == "position_ids" else after != before
    lengths = batch.given.get("cu_seq_lens_q")
    if isinstance(lengths, Tensor) and lengths.ndim == 1 and len(starts) == 1:
        inside = lengths[(lengths > 0) & (lengths < starts.shape[1])]
        starts[0, inside.long()] = True
    return starts


def missing_bos(batches: list[AuditBatch], rows: list[TextRows], specials: Specials, report: Report) -> None:
    """Report a fault if unequal lengths show that rows are whole texts. Otherwise they may be parts of longer texts."""
    lengths = {int(n) for row in rows for n in row.real.sum(1)}
    what = f"the tokenizer adds BOS ({specials.bos}), but none of these rows has it"
    if len(lengths) > 1:
        report.find("bos-missing", f"{what}; the first is batch {batches[0].index}, row 0")
    else:
        report.note(f"{what}: correct if they are parts of longer texts")
