"""Check gradient accumulation: the losses of unequal micro-batches must add up to the loss of the whole batch."""

import math

import torch
from torch import Tensor

from cynosure.auditing.batch import pulled
from cynosure.auditing.findings import Report
from cynosure.auditing.loss import Compared, rounding_of, times, whole_factor
from cynosure.auditing.subject import Subject
from cynosure.auditing.truth import Nll
from cynosure.patching import IGNORED


def check_accumulation(subject: Subject, compared: list[Compared], report: Report) -> None:
    """Compare the parts of a batch with the whole; without num_items_in_batch, measure the error of a mean of means."""
    if subject.takes_items:
        whole = max(compared, key=lambda one: one.right.n)
        if whole.right.n < 2:
            report.made("accumulation", "not made: no batch has two labelled tokens")
            return
        compare_parts(subject, whole, report)
    else:
        compare_means(subject, compared, report)


def unequal_parts(right: Nll) -> list[Tensor]:
    """Return masks of two parts of the targets, cut where the mean of their means differs most from the mean."""
    places = right.counted.nonzero()
    cuts: list[tuple[float, list[Tensor]]] = []
    for cut in {max(1, len(places) * eighth // 8) for eighth in range(1, 8)}:
        masks = []
        for part in (places[:cut], places[cut:]):
            mask = torch.zeros_like(right.counted)
            mask[part[:, 0], part[:, 1]] = True
            masks.append(mask)
        error = abs(sum(right.part(mask).mean for mask in masks) / 2 - right.mean)
        cuts.append((error, masks))
    return max(cuts, key=lambda pair: pair[0])[1]


def compare_parts(subject: Subject, whole: Compared, report: Report) -> None:
    """Run the batch twice, each time with a part of its labels, as two micro-batches."""
    batch, right, n_items = whole.batch, whole.right, whole.right.n
    parts, losses, slacks = [], [], []
    for mask in unequal_parts(right):
        kept = pulled(mask, batch.ahead - 1, False)
        loss = subject.loss(batch.with_labels(batch.labels.masked_fill(~kept, IGNORED)), n_items)
        parts.append(right.part(mask))
        losses.append(float(loss) - whole.auxiliary)
        slacks.append(parts[-1].slack / n_items + rounding_of(loss))
    expected = [part.total / n_items for part in parts]
    counts = " and ".join(str(part.n) for part in parts)
    result = (f"micro-batches of {counts} labelled tokens give {shown(losses)} with num_items_in_batch={n_items}, "
              f"the float64 reference gives {shown(expected)}")  # fmt: skip
    report.made("accumulation", result)
    if close(losses, expected, slacks):
        return
    name, why = explain_parts(parts, losses, expected, slacks, n_items)
    report.find(name, f"batch {batch.index}: {result}; {why}")


def explain_parts(
    parts: list[Nll], losses: list[float], expected: list[float], slacks: list[float], n_items: int
) -> tuple[str, str]:
    """Return the name of the fault in the losses of the parts, and the evidence."""
    if not all(map(math.isfinite, losses)):
        return "not-finite", "the loss is not finite where a row has no label"
    means = [part.mean for part in parts]
    if close(losses, means, [slack * n_items / part.n for slack, part in zip(slacks, parts, strict=True)]):
        return "mean-of-means", "each is the mean over its own tokens: num_items_in_batch is ignored"
    if close(losses, [mean / n_items for mean in means], slacks):
        return "loss-divided", f"each is the mean over its own tokens, divided by {n_items} again"
    if close(losses, [part.total for part in parts], [slack * n_items for slack in slacks]):
        return "not-divided", "each is the sum over its tokens: num_items_in_batch is ignored"
    total, right = sum(losses), sum(expected)
    factor, name = whole_factor(total, right, sum(slacks))
    ratio = total / right if right else 0.0
    if factor and close(losses, [x * ratio for x in expected], [slack * max(1.0, ratio) for slack in slacks]):
        return name, f"their sum is {times(factor, name)} the right one"
    return "accumulation-differs", f"their sum is {total:.6f}, expected {right:.6f}"


def compare_means(subject: Subject, compared: list[Compared], report: Report) -> None:
    """Measure how far the mean of the means of rows, or of batches of one row, is from the mean over tokens."""
    rows = [torch.stack([one.right.nats.sum(1), one.right.counted.sum(1).double()], 1) for one in compared]
    by_row = len(rows[0]) > 1
    units = rows[0] if by_row else torch.cat(rows)
    units = units[units[:, 1] > 0]
    counts = [int(n) for n in units[:, 1]]
    mean = float(units[:, 0].sum() / units[:, 1].sum())
    error = float((units[:, 0] / units[:, 1]).mean()) - mean
    what = f"{subject.name} takes no num_items_in_batch"
    if len(set(counts)) < 2:
        report.note(f"{what}: averaging micro-batches is exact only if all have the same number of labels")
        report.made("accumulation", "not made: all micro-batches have the same number of labels")
        return
    result = (f"averaging {'rows' if by_row else 'batches'} of {min(counts)} to {max(counts)} labels gives "
              f"{mean + error:.6f}, the mean over their tokens is {mean:.6f}: an error of {error:+.6f}")  # fmt: skip
    report.made("accumulation", result)
    report.find("mean-of-means", f"{what}: {result}")


def close(values: list[float], others: list[float], slacks: list[float]) -> bool:
    return all(abs(a - b) <= slack for a, b, slack in zip(values, others, slacks, strict=True))


def shown(values: list[float]) -> str:
    return " and ".join(f"{value:.6f}" for value in values)
