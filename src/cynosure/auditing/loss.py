"""Compare the value of a loss with the reference, and find the likeliest reason for a difference."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cynosure.auditing.batch import AuditBatch, pulled
from cynosure.auditing.findings import Report
from cynosure.auditing.subject import Subject
from cynosure.auditing.truth import Nll, OwnLogits, nll_of, own_logits, reduced, split_of
from cynosure.loss import linear_cross_entropy
from cynosure.models import why_not_finite
from cynosure.patching import IGNORED

FACTORS = 64  # the largest whole factor that is recognized, such as the number of accumulated steps


class Reason(NamedTuple):
    """A wrong loss that may have been computed instead, and the names of its faults."""

    names: tuple[str, ...]
    what: str
    value: float
    slack: float


class Compared(NamedTuple):
    """A batch whose loss was compared with the reference. `auxiliary` is the auxiliary loss that it includes, or 0."""

    batch: AuditBatch
    right: Nll
    auxiliary: float
    equal: bool


def compare_loss(subject: Subject, batch: AuditBatch, report: Report, *, fused: bool) -> Compared:
    """Compare the loss of a batch, and the fused loss, with the float64 cross-entropy of the model's own logits."""
    loss = subject.loss(batch.with_labels(batch.labels))
    own = own_logits(subject, batch)
    right = nll_of(own, batch.truth)
    value, extra = float(loss), 0.0 if own.auxiliary is None else float(own.auxiliary)
    slack = right.slack / right.n + rounding_of(loss)
    if not math.isfinite(right.total):
        bad = (~torch.isfinite(right.nats)) & right.counted
        why = why_not_finite(subject.inner, type(subject.inner).__name__, lambda: own_logits(subject, batch))
        report.find(
            "not-finite",
            f"the model's own logits give a loss of {float(right.nats[bad][0])} at {batch.place(bad)}: {why}",
        )
        return Compared(batch, right, 0.0, False)
    auxiliary = min((0.0, extra), key=lambda x: abs(value - right.mean - x))
    difference = value - right.mean - auxiliary
    equal = abs(difference) <= slack
    added = f" with an auxiliary loss of {auxiliary:.6f}" if auxiliary else ""
    report.made(f"loss, batch {batch.index}", f"{value:.6f}, in float64 {right.mean + auxiliary:.6f}{added}; "
                f"difference {difference:+.1e}, rounding allows {slack:.1e}")  # fmt: skip
    if not equal:
        names, what = explain(subject, batch, own, right, loss)
        start = f"batch {batch.index}: {subject.name} gives {value:.6f}, the model's own logits give {right.mean:.6f}"
        for name in names:
            report.find(name, f"{start}; {what}")
    elif loss.dtype in (torch.float16, torch.bfloat16):
        report.note(f"the loss is rounded to {loss.dtype}: compute it from logits.float() to make it more exact")
    if fused:
        compare_fused(subject, batch, own, right, report)
    return Compared(batch, right, auxiliary, equal)


def rounding_of(loss: Tensor) -> float:
    """Return the rounding error of the loss itself; in float32 and above, that of its sum counts too."""
    eps = torch.finfo(loss.dtype).eps
    return eps * (4 if eps < 1e-6 else 1) * max(1.0, abs(float(loss)))


def explain(
    subject: Subject, batch: AuditBatch, own: OwnLogits, right: Nll, loss: Tensor
) -> tuple[tuple[str, ...], str]:
    """Return the names of the faults and the evidence: those of the wrong loss whose value is nearest."""
    value, last_digit = float(loss), rounding_of(loss)
    if not math.isfinite(value):
        return ("not-finite",), "the logits are finite"
    fitting = []
    for reason in reasons(subject, batch, own, right):
        slack, difference = reason.slack + last_digit, abs(value - reason.value)
        if difference <= slack < abs(reason.value - right.mean):
            fitting.append((difference, reason))
    if fitting:
        _, best = min(fitting, key=lambda pair: pair[0])
        return best.names, f"{best.what} {best.value:.6f}"
    factor, name = whole_factor(value, right.mean, right.slack / right.n + last_digit)
    if factor:
        return (name,), f"it is {times(factor, name)} that"
    return ("loss-differs",), f"the difference is {value - right.mean:+.6f}, which no known mistake explains"


def whole_factor(value: float, right: float, slack: float) -> tuple[int, str]:
    """Return k if a value is k times or 1/k of the right one, and the name of the fault; 0 if it is neither."""
    for larger, smaller, name in ((value, right, "loss-multiplied"), (right, value, "loss-divided")):
        factor = round(larger / smaller) if smaller else 0
        # The slack is that of the right value, which the factor multiplies where the loss is the larger one.
        scale = 1 if name == "loss-divided" else factor
        if 2 <= factor <= FACTORS and abs(larger - factor * smaller) <= slack * scale:
            return factor, name
    return 0, ""


def times(factor: int, name: str) -> str:
    return f"{factor} times" if name == "loss-multiplied" else f"1/{factor} of"


def reasons(subject: Subject, batch: AuditBatch, own: OwnLogits, right: Nll) -> Iterator[Reason]:
    """Yield wrong losses, each with one mistake, on the model's own logits."""
    yield from wrong_shifts(batch, own)
    yield from wrong_heads(subject, batch, own)
    yield from wrong_targets(batch, own)
    yield from wrong_means(batch, right)
    yield from without_inputs(subject, batch)


def mean_reason(names: tuple[str, ...], what: str, nll: Nll) -> Iterator[Reason]:
    if nll.n:
        yield Reason(names, what, nll.mean, nll.slack / nll.n)


def wrong_shifts(batch: AuditBatch, own: OwnLogits) -> Iterator[Reason]:
    """Yield the losses without a shift and with two, in the variants that differ at the ends of a row."""
    labels, ahead = batch.labels, batch.ahead
    never, what = batch.targets(-ahead), "for the tokens just read they give"
    if ahead == -1:
        what = f"the data set shifts the wrong way; {what}"
    for target in (
        never,
        pulled(pulled(never, 1, IGNORED), -1, IGNORED),
        pulled(pulled(never, -1, IGNORED), 1, IGNORED),
    ):
        yield from mean_reason(("never-shifted",), what, nll_of(own, target))
    shifted_by = "the data set shifts, and so does the loss" if ahead else "the loss shifts twice"
    for target in (batch.targets(2 - ahead), pulled(labels.roll(-1, 1), 1, IGNORED)):
        what = f"{shifted_by}; for the tokens after the next they give"
        yield from mean_reason(("shifted-twice",), what, nll_of(own, target))


def wrong_heads(subject: Subject, batch: AuditBatch, own: OwnLogits) -> Iterator[Reason]:
    parts = split_of(subject, batch, own)
    if parts is None:
        return
    hidden, whole = parts
    for names, head in reduced(whole):
        faults = tuple(f"{name}-dropped" for name in names)
        with subject.precision():
            logits = head.logits(hidden)
        yield from mean_reason(faults, f"without the {' and '.join(names)} of the head they give",
                               nll_of(own, batch.truth, logits))  # fmt: skip


def wrong_targets(batch: AuditBatch, own: OwnLogits) -> Iterator[Reason]:
    """Yield the losses of the ids themselves, which ignore the labels."""
    everything = pulled(batch.ids, 1, IGNORED)
    what = "for every token, labelled or not, they give"
    yield from mean_reason(("labels-unused",), what, nll_of(own, everything))
    if batch.attention is not None:
        target = pulled(batch.ids.masked_fill(~batch.attention, IGNORED), 1, IGNORED)
        yield from mean_reason(("labels-unused",), what.replace("every token", "all but padding"), nll_of(own, target))


def wrong_means(batch: AuditBatch, right: Nll) -> Iterator[Reason]:
    n_rows, n_columns = right.nats.shape
    for name, n, counted in divisors(batch, n_rows, n_columns):
        if n:
            what = f"their sum over {right.n} labels divided by {counted} is"
            yield Reason((name,), what, right.total / n, right.slack / n)
    rows = [right.part(torch.arange(n_rows, device=right.nats.device)[:, None] == i) for i in range(n_rows)]
    rows = [row for row in rows if row.n]
    value = sum(row.mean for row in rows) / len(rows)
    slack = sum(row.slack / row.n for row in rows) / len(rows)
    yield Reason(("mean-of-rows",), f"the mean of the means of {len(rows)} rows is", value, slack)
    yield Reason(("not-divided",), f"their sum over {right.n} labels is", right.total, right.slack)


def divisors(batch: AuditBatch, n_rows: int, n_columns: int) -> Iterator[tuple[str, int, str]]:
    """Yield wrong divisors of a sum of losses: the name of the fault, the number and a description of what it counts.

    If no label is ignored, several divisors are equal. The first of them is then the likeliest.
    """
    n_labels = int((batch.labels != IGNORED).sum())
    yield "counted-before-shift", n_labels, f"the {n_labels} labels before the shift"
    masks = (("attention_mask", batch.attention), ("the completion mask", batch.completion))
    for name, mask in masks:
        for n in () if mask is None else (int(mask[:, 1:].sum()), int(mask.sum())):
            yield "ignored-counted", n, f"the {n} positions of {name}"
    for n in (n_rows * (n_columns - 1), n_rows * n_columns):
        yield "ignored-counted", n, f"all {n} positions"


def without_inputs(subject: Subject, batch: AuditBatch) -> Iterator[Reason]:
    given = [name for name in ("attention_mask", "position_ids") if name in subject.inputs(batch.given)]
    for dropped in (*({name} for name in given), *([set(given)] if len(given) > 1 else [])):
        what = f"without {' and '.join(sorted(dropped))} they give"
        yield from mean_reason(("input-dropped",), what, nll_of(own_logits(subject, batch, dropped), batch.truth))


def compare_fused(subject: Subject, batch: AuditBatch, own: OwnLogits, right: Nll, report: Report) -> None:
    """Compare the fused loss, which `patch` would use, with the reference."""
    layer = subject.inner.get_output_embeddings()
    if layer is not None and any(parameter.is_meta for parameter in layer.parameters()):
        report.made("fused loss", "not made: the head's weights are offloaded and present only during its forward")
        return
    parts, target = split_of(subject, batch, own), batch.truth
    if parts is None:
        report.made("fused loss", "not made: the logits are not those of a linear layer with a scale or softcap")
        return
    hidden, head = parts
    with subject.precision():
        fused = linear_cross_entropy(
            hidden, head.weight, target, bias=head.bias, scale=head.scale, softcap=head.softcap
        )
    theirs = nn.functional.cross_entropy(own.logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    difference = float(fused) - right.mean
    slack = 2 * abs(float(theirs) - right.mean) + right.slack / right.n + rounding_of(fused)
    values = f"{float(fused):.6f}, in float64 {right.mean:.6f}"
    result = f"{values}; difference {difference:+.1e}, rounding allows {slack:.1e}"
    report.made("fused loss", result)
    if not abs(difference) <= slack:
        report.find("fused-loss", f"batch {batch.index}: {result}")
