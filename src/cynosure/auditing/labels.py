"""What can be said of a batch without the model: padding, prompt, BOS and EOS, and the ids against the vocabulary."""

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
    """The ids of special tokens; there may be several EOS, in the configurations of chat models."""

    pad: int | None
    bos: int | None
    eos: tuple[int, ...]


def find_specials(tokenizer: Any, config: Any) -> Specials:
    """Those of the tokenizer; what it lacks, or all where there is none, as the model's configuration says."""
    pad, bos, eos = (
        next((x for x in (getattr(tokenizer, name, None), getattr(config, name, None)) if x is not None), None)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    )
    return Specials(pad, bos, tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (eos,))


class TextRows(NamedTuple):
    """What of a batch is text, and what looks like padding without being masked; all (B, T) bool."""

    real: Tensor
    leading: Tensor  # padding at the beginning of rows whose mask is all 1, or that have none
    trailing: Tensor  # and at their end


def read_rows(batch: AuditBatch, specials: Specials) -> TextRows:
    """Tell text from padding: by the mask, and in rows without a 0 in it by runs of the pad token at either end.

    Where pad is EOS or BOS as well, one of a run at the end of a text may be its EOS, one before it its BOS.
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
        ends = batch.ids[:, -1:] == specials.pad  # in the longest row too, which has no padding: texts end with EOS
        if bool((ends | ~unmasked).all()):
            trailing = trailing & before(trailing)
    return TextRows(~(masked | leading | trailing), leading, trailing)


def run_at_start(where: Tensor) -> Tensor:
    return where.long().cumprod(1).bool()


def after(where: Tensor) -> Tensor:
    """At each position what is at the next one."""
    return pulled(where, 1, False)


def before(where: Tensor) -> Tensor:
    """At each position what is at the one before."""
    return pulled(where, -1, False)


def check_padding(batches: list[AuditBatch], rows: list[TextRows], report: Report) -> None:
    """Padding must be ignored by the labels, and by attention where it stands before the text."""
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
        report.note(f"{harmless} pad tokens after the text have no attention_mask of 0; behind a causal model's text "
                    "that changes nothing but the time it takes")  # fmt: skip
    report.made("padding", f"{n_padding:,} padded positions" if n_padding else "none in these batches")


def check_prompt(batches: list[AuditBatch], rows: list[TextRows], report: Report) -> None:
    """Labels must be inside of the completion, where one is marked, and there must be some."""
    given = [(batch, row) for batch, row in zip(batches, rows, strict=True) if batch.completion is not None]
    if not given:
        report.made("prompt", "not made: no column completion_mask or assistant_masks says where the completion is")
        return
    n_inside, n_labelled, outside = 0, 0, []
    for batch, row in given:
        assert batch.completion is not None
        has_label = (batch.own_labels != IGNORED) & row.real
        wrong = has_label & ~batch.completion
        n_inside += int(batch.completion.sum())
        n_labelled += int((has_label & batch.completion).sum())
        if wrong.any():
            outside.append(f"{int(wrong.sum())} tokens outside of the completion are labelled; the first is "
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
    """Every batch needs a label, rows without any are told, and labels should name tokens of the text."""
    n_targets, without, odd = 0, [], []
    for batch, row in zip(batches, rows, strict=True):
        has_target = batch.truth != IGNORED
        n_targets += int(has_target.sum())
        if not has_target.any():
            report.find("no-labels", f"batch {batch.index}: nothing is labelled in its {len(batch.ids)} rows")
        elif not has_target.any(1).all():
            without.append(f"batch {batch.index}, row {int((~has_target.any(1)).nonzero()[0])}")
        other = (batch.own_labels != IGNORED) & (batch.own_labels != batch.ids) & row.real
        if other.any():
            odd.append(
                f"{int(other.sum())} labels name another token than stands there; the first is {batch.place(other)}"
            )
    if without:
        report.note(f"rows without any label, which only cost time: {', '.join(without)}")
    if odd:
        report.note(odd[0])
    report.made("labels", f"{n_targets:,} tokens to predict in {len(batches)} batches")


def check_documents(batches: list[AuditBatch], rows: list[TextRows], report: Report) -> None:
    """The first token of a document that follows another in its row must not be asked for."""
    n_inside, crossing = 0, []
    for batch, row in zip(batches, rows, strict=True):
        inside = document_starts(batch) & row.real & before(row.real)
        wrong = inside & (batch.own_labels != IGNORED)
        n_inside += int(inside.sum())
        if wrong.any():
            counts = f"{int(wrong.sum())} of {int(inside.sum())} documents"
            crossing.append(
                f"{counts} behind another in their row have a labelled first token; the first is {batch.place(wrong)}"
            )
    if crossing:
        report.find("label-crosses-documents", crossing[0])
    report.made(
        "packed documents", f"{n_inside:,} follow another in their row" if n_inside else "none in these batches"
    )


def check_placeholders(batches: list[AuditBatch], placeholders: dict[str, int], report: Report) -> None:
    """Placeholders of images, videos and sounds must be ignored by the labels; by name their ids."""
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
        report.made("placeholders", f"{n_placed:,} of {', '.join(placeholders)}")


def find_placeholders(tokenizer: Any, config: Any) -> dict[str, int]:
    """The ids that stand for images, videos and sounds in the text, by the names of model or tokenizer for them."""
    own = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id", None) for kind in ("image", "video", "audio")}
    values = own | {name: value for name, value in vars(config).items() if PLACEHOLDER.fullmatch(name)}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def check_ends(
    batches: list[AuditBatch], rows: list[TextRows], specials: Specials, tokenizer: Any, report: Report
) -> None:
    """BOS once and where the tokenizer puts it; EOS learned where texts have it."""
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
        # One right after a labelled token ends what is learned; others end prompts.
        missed = is_eos & ~has_label & before(has_label)
        if missed.any():
            unlabelled.append(f"{int(missed.sum())} texts end with EOS ({', '.join(map(str, specials.eos))}), and no "
                              f"label asks for it; the first is {batch.place(missed)}")  # fmt: skip
    if twice:
        report.find("bos-twice", twice[0])
    if unlabelled and not n_learned and batches[0].ahead != -1:  # where the last label has been shifted away
        report.find("eos-unlabelled", unlabelled[0])
    if tokenizer is not None and specials.bos is not None and not n_bos and adds_bos(tokenizer):
        missing_bos(batches, rows, specials, report)
    report.made("BOS, EOS", f"{n_bos} BOS and {n_starts} beginnings; {n_learned} of {n_eos} EOS are labelled")


def text_starts(batch: AuditBatch, real: Tensor) -> Tensor:
    """Where texts begin, (B, T): the first token of a row that is no padding, and where positions begin anew."""
    starts = real & (real.long().cumsum(1) == 1)
    return starts | (real & document_starts(batch))


def document_starts(batch: AuditBatch) -> Tensor:
    """Where documents begin inside of packed rows, (B, T): by positions, numbers of documents or cumulative lengths.

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
    """A finding where rows are whole texts, as their unequal lengths show; else they may be parts of longer ones."""
    lengths = {int(n) for row in rows for n in row.real.sum(1)}
    what = f"the tokenizer begins texts with BOS ({specials.bos}), and none of these rows has it"
    if len(lengths) > 1:
        report.find("bos-missing", f"{what}; the first is batch {batches[0].index}, row 0")
    else:
        report.note(f"{what}: right if they are parts of longer texts")
