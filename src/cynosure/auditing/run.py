"""`cynosure.audit`: examine a model, its loss and its training batches for known mistakes."""

from collections.abc import Iterable
from typing import Any

import torch

from cynosure.auditing.accumulate import check_accumulation
from cynosure.auditing.batch import AuditBatch, take_batches
from cynosure.auditing.findings import Audit, Report
from cynosure.auditing.gradients import check_gradients
from cynosure.auditing.labels import (
    Specials,
    TextRows,
    check_documents,
    check_ends,
    check_labels,
    check_padding,
    check_placeholders,
    check_prompt,
    find_placeholders,
    find_specials,
    read_rows,
)
from cynosure.auditing.level import check_level
from cynosure.auditing.loss import Compared, compare_loss
from cynosure.auditing.subject import LossFunction, Subject, find_subject
from cynosure.auditing.vocabulary import check_specials, check_vocabulary
from cynosure.patching import IGNORED, untouched


def audit(
    model: Any,
    batches: Iterable[Any],
    *,
    loss_fn: LossFunction | None = None,
    tokenizer: Any = None,
    fresh: bool | None = None,
) -> Audit:
    """Examine a transformers causal language model, its training batches and its loss for known mistakes.

    The reference is computed in float64 from the model's own logits, which are materialized: use small batches. Dropout
    is off during the audit. Modes, gradients and random generators are restored afterwards. The model may be patched,
    or wrapped by PEFT. The gradients of a patch are exact during the audit, whatever its `grad_tolerance`.

    Args:
        model: the model.
        batches: any iterable of dicts, for example a DataLoader. Only the first four are read. Each has `input_ids` and
            `labels` (B, T), and usually an `attention_mask`. Other columns go to the model if it accepts them.
            `completion_mask` and `assistant_masks` (B, T), 1 at the tokens of the completion, do not: labels are
            compared with them.
        loss_fn: `loss_fn(model, batch)` or `loss_fn(model, batch, num_items_in_batch=None)`, which returns the loss of
            a batch as a 0-d tensor. Default: the model's own loss.
        tokenizer: the tokenizer of the batches. With it, BOS, special tokens and the vocabulary are checked too.
        fresh: whether the model is untrained. Default: true if all its norms and biases are as initialized.

    Returns:
        An `Audit` with the faults in `findings`, harmless observations in `notes`, and every check in `checks`.

    Raises:
        TypeError: `model` is not a causal language model, a batch is not a dict, or `loss_fn` does not return a loss.
        ValueError: there are no batches, or a batch has no labels or tensors of the wrong shape.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model, ids = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)), torch.arange(20, 52)[None]
        >>> print(audit(model, [{"input_ids": ids, "labels": ids}]))
        no problems found in 13 checks
        >>> wrong = audit(model, [{"input_ids": ids, "labels": ids.roll(-1, 1)}])  # the model shifts as well
        >>> [finding.name for finding in wrong.findings]
        ['shifted-twice']
    """
    subject, report = find_subject(model, loss_fn), Report()
    with untouched(model):
        taken = take_batches(batches, subject.device)
        specials = find_specials(tokenizer, subject.inner.config.get_text_config())
        rows = [read_rows(batch, specials) for batch in taken]
        check_batches(taken, rows, specials, tokenizer, report)
        check_placeholders(taken, find_placeholders(tokenizer, subject.inner.config), report)
        in_range = check_vocabulary(taken, subject.inner, tokenizer, report)
        check_specials(taken, rows, subject.inner, tokenizer, report)
        pairs = [pair for pair in zip(taken, rows, strict=True) if (pair[0].truth != IGNORED).any()]
        if in_range and pairs:
            check_numbers(subject, pairs, fresh, report)
        else:
            why = "no batch has a label" if in_range else "ids or labels are out of range"
            report.made("loss", f"not made: {why}")
    return report.audit()


def check_batches(
    batches: list[AuditBatch], rows: list[TextRows], specials: Specials, tokenizer: Any, report: Report
) -> None:
    """Run the checks that need only the batches."""
    check_labels(batches, rows, report)
    check_padding(batches, rows, report)
    check_prompt(batches, rows, report)
    check_documents(batches, rows, report)
    check_ends(batches, rows, specials, tokenizer, report)


def check_numbers(
    subject: Subject, pairs: list[tuple[AuditBatch, TextRows]], fresh: bool | None, report: Report
) -> None:
    """Run the checks of the loss. They stop at a wrong value, because it would cause further findings."""
    compared: list[Compared] = []
    with torch.no_grad():
        for batch, _ in pairs:
            compared.append(compare_loss(subject, batch, report, fused=not compared))
            if not compared[-1].equal:
                break
        note_loss(compared, report)
        check_level(compared, [row for _, row in pairs[: len(compared)]], subject.inner, fresh, report)
        if compared[-1].equal:
            check_accumulation(subject, compared, report)
    if compared[-1].equal:
        check_gradients(subject, compared[0], report)
    else:
        report.made("accumulation, gradients", "not made: the loss itself is wrong")


def note_loss(compared: list[Compared], report: Report) -> None:
    first = compared[0]
    if first.auxiliary:
        report.note(f"the loss includes an auxiliary loss of {first.auxiliary:.6f}, which is not cross-entropy")
    if first.batch.ahead == 1 and compared[-1].equal:
        report.note("the data set shifts the labels and the loss does not, which is correct")
