"""`cynosure check`: the fused loss against a model's own, and an audit of the model on a padded batch."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cynosure.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from cynosure.auditing import Audit, Check

N_TOKENS = 64  # full logits of so few are made here for once
N_SHORT = 40  # of the second row of the audit's batch, which is padded
# Whatever TEXT lacks of 64 tokens.
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
        typer.Argument(metavar="[TEXT]", help="Words, a file or - (stdin); its first 64 tokens are taken."),
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
    """Prove our loss equal to the model's own, and audit the model.

    The fused loss, which makes no full logits, is compared with model(..., labels=...) in float32: the logits, the
    loss, its gradients, ignored labels, and division by num_items_in_batch. Then model and tokenizer are audited on a
    padded batch of the text: vocabulary, special tokens, loss against ln V, accumulation. Exit status 1 when something
    differs or is found. `cynosure.audit` does so with your own batches and loss.
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
    in_range = max(ids[:N_TOKENS]) < len(head.weight)  # of another tokenizer they may not be: the audit says so
    checks = auditing.check(loaded.model, torch.tensor(ids[:N_TOKENS])) if in_range else []
    passed = all(check.passed for check in checks) and audit.passed
    common.settings.failed = not passed
    if format == "json":
        values = [check._asdict() | {"passed": check.passed} for check in checks]
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


def padded_batch(tokenizer: Any, ids: list[int]) -> "dict[str, Tensor]":
    """Two rows as a data collator makes them: the beginning of a text, and less of it, padded."""
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
        console.print("The losses are not compared: the model has no rows for the ids of this tokenizer.")
        return
    table = headed_table("in float32", "ours", "the\nmodel's", "apart", "ours to\nexact", "its to\nexact", "<")
    for check in checks:
        values = f"{check.ours:.6g}", f"{check.theirs:.6g}"
        errors = (f"{x:.1e}" for x in (check.difference, check.ours_from_exact, check.theirs_from_exact))
        verdict = "equal" if check.equal else "nearer" if check.passed else "DIFFERS"
        table.add_row(check.name, *values, *errors, verdict, style=None if check.passed else "bold red")
    console.print(table)
    console.print()
    console.print("Differences are relative; of tensors, of their norms. Exact is float64 from full logits.")
    failed = sum(not check.passed for check in checks)
    if failed:
        console.print(f"FAILED: {failed} of {len(checks)} differ by more than {TOLERANCE:g}.", style="bold red")
        return
    equal = f"the fused loss and its gradients equal the model's own to a relative {TOLERANCE:g}"
    nearer = "" if all(check.equal for check in checks) else "; where float32 leaves more, they are nearer to exact"
    console.print(f"Passed: {equal}{nearer}.", style="bold")


def show_audit(audit: "Audit") -> None:
    from rich.padding import Padding

    from cynosure.cli.screen import stdout
    from cynosure.system.escapes import visible

    console = stdout()
    where = f"{len(audit.checks)} checks of the model on a padded batch of the text"
    if audit.passed:
        console.print(f"Audit: nothing found in {where}.", style="bold")
    else:
        console.print()
        console.print(f"Audit: {len(audit.findings)} found in {where}.", style="bold red")
    for finding in audit.findings:
        console.print()
        console.print(f"{finding.name}: {finding.what}.", style="bold")
        for line in (f"It means: {finding.means}.", f"The fix: {finding.fix}."):
            console.print(Padding(visible(line), (0, 0, 0, 2)))
    for note in audit.notes:
        console.print(f"Note: {note}.")
