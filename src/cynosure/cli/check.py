"""`cynosure check`: compare the fused loss with a model's own loss, and audit the model on a padded batch."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cynosure.cli import common
from cynosure.system.numbers import finite

if TYPE_CHECKING:
    from torch import Tensor

    from cynosure.auditing import Audit, Check

EXAMPLES = ("cynosure check smollm2", 'cynosure check smollm2 "Some text of your own"')
N_TOKENS = 64  # few, because the check materializes full logits
N_SHORT = 40  # tokens in the second row of the audit's batch; the rest is padding
# Fills up a TEXT of fewer than 64 tokens.
FILLER = (
    "The loss of a language model is its surprise at the text it reads. Each word costs as much as the model "
    "thought it unlikely: a sure and right guess costs almost nothing, a sure and wrong one a great deal. "
    "In 1948 Claude Shannon measured the entropy of English with nothing but patient readers, "
    "who guessed one letter after another."
)


def check(
    model: common.Model,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT]",
            help="Text to check on: the words, a file, or - (stdin); its first 64 tokens are used. "
            "[default: a built-in text]",
        ),
    ] = None,
    device: common.Device = "auto",
    tokenizer: common.Tokenizer = None,
    revision: common.Revision = None,
    trust_remote_code: common.TrustRemoteCode = False,
    allow_unused_weights: common.AllowUnusedWeights = False,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Check the fused loss against a model's own, and audit the model.

    Compares with model(..., labels=...) in float32: logits, loss, gradients, ignored labels, and division by
    num_items_in_batch. Then audits model and tokenizer on a padded batch of the text: vocabulary, special tokens, loss
    against ln V, and gradient accumulation. Exit status 1 if a loss differs or the audit reports a problem.
    `cynosure.audit` runs the audit on your own batches and loss.
    """
    from cynosure import auditing, models
    from cynosure.text import one_text, tokenize

    common.show_notes(quiet)
    words = "" if text is None else one_text(text)[: 100 * N_TOKENS]
    loaded = models.load(
        model, dtype="float32", device=device, tokenizer=tokenizer, revision=revision,
        trust_remote_code=trust_remote_code, allow_unused_weights=allow_unused_weights,
    )  # fmt: skip
    import torch

    common.note(loaded.notes, quiet)
    ids = [token for part in (words, FILLER) for token in tokenize(loaded.tokenizer, part).ids.tolist()]
    audit = auditing.audit(loaded.model, [padded_batch(loaded.tokenizer, ids)], tokenizer=loaded.tokenizer)
    head = models.read_head(loaded.model)
    in_range = max(ids[:N_TOKENS]) < len(head.weight)  # else the tokenizer is another model's: the audit reports that
    checks = auditing.check(loaded.model, torch.tensor(ids[:N_TOKENS])) if in_range else []
    passed = all(check.passed for check in checks) and audit.passed
    common.settings.failed = not passed
    if format == "json":
        values = [numbers(check) | {"passed": check.passed} for check in checks]
        parts = {"scale": head.scale, "softcap": head.softcap, "bias": head.bias is not None}
        audited = {"findings": [finding._asdict() for finding in audit.findings], "notes": list(audit.notes)}
        common.print_json({"model": loaded.name, "passed": passed, "head": parts, "checks": values} | audited)
    else:
        vocab_size, hidden_size = head.weight.shape
        softcap = f"softcap {head.softcap:g}" if head.softcap else "no softcap"
        bias = "a bias" if head.bias is not None else "no bias"
        show(loaded.name, f"head: {vocab_size:,} x {hidden_size:,}, {bias}, scale {head.scale:g}, {softcap}", checks)
        show_audit(audit)
    if not passed:
        raise typer.Exit(1)


def numbers(check: "Check") -> dict[str, Any]:
    """The fields of a check, null where they are not finite."""
    return {key: x if isinstance(x, str) else finite(x) for key, x in check._asdict().items()}


def padded_batch(tokenizer: Any, ids: list[int]) -> "dict[str, Tensor]":
    """Return two rows as a data collator builds them: the beginning of a text, and a shorter one with padding."""
    import torch

    from cynosure.text import adds_bos, prefix_token

    start = [prefix_token(tokenizer)] if adds_bos(tokenizer) else []
    row = torch.tensor([*start, *ids][:N_TOKENS])
    mask = torch.stack([torch.ones_like(row), (torch.arange(len(row)) < N_SHORT).long()])
    pad = next((x for x in (tokenizer.pad_token_id, tokenizer.eos_token_id) if x is not None), 0)
    tokens = row.expand(2, -1)
    return {
        "input_ids": tokens.masked_fill(mask == 0, pad),
        "attention_mask": mask,
        "labels": tokens.masked_fill(mask == 0, -100),
    }


def show(name: str, head: str, checks: "list[Check]") -> None:
    from cynosure.auditing import TOLERANCE
    from cynosure.cli.screen import headed_table, stdout

    console = stdout()
    console.print(name, style="bold")
    console.print(head)
    console.print()
    if not checks:
        console.print("The losses are not compared: some ids of this tokenizer are outside the model's vocabulary.")
        return
    table = headed_table("in float32", "ours", "the\nmodel's", "apart", "error\nof ours", "error of\nmodel's", "<")
    for check in checks:
        values = f"{check.ours:.6g}", f"{check.theirs:.6g}"
        errors = (f"{x:.1e}" for x in (check.difference, check.ours_from_exact, check.theirs_from_exact))
        verdict = "equal" if check.equal else "nearer" if check.passed else "DIFFERS"
        table.add_row(check.name, *values, *errors, verdict, style=None if check.passed else "bold red")
    console.print(table)
    console.print()
    console.print("Differences are relative, for tensors in the norm. Errors are against float64 with full logits.")
    failed = sum(not check.passed for check in checks)
    if failed:
        console.print(f"FAILED: {failed} of {len(checks)} differ by more than {TOLERANCE:g}.", style="bold red")
        return
    equal = f"the fused loss and its gradients equal the model's own within a relative {TOLERANCE:g}"
    nearer = "" if all(check.equal for check in checks) else "; where they differ by more, ours are nearer to exact"
    console.print(f"Passed: {equal}{nearer}.", style="bold")


def show_audit(audit: "Audit") -> None:
    from rich.padding import Padding

    from cynosure.cli.screen import stdout
    from cynosure.system.escapes import visible
    from cynosure.system.numbers import counted

    console = stdout()
    where = f"{len(audit.checks)} checks of the model on a padded batch of the text"
    if audit.passed:
        console.print(f"Audit: no problems in {where}.", style="bold")
    else:
        console.print()
        console.print(f"Audit: {counted(len(audit.findings), 'problem')} in {where}.", style="bold red")
    for finding in audit.findings:
        console.print()
        console.print(f"{finding.name}: {finding.what}.", style="bold")
        for line in (f"It means: {finding.means}.", f"The fix: {finding.fix}."):
            console.print(Padding(visible(line), (0, 0, 0, 2)))
    for note in audit.notes:
        console.print(f"Note: {note}.")
