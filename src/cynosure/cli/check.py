"""`cynosure check`: the fused loss against a model's own."""

from typing import TYPE_CHECKING, Annotated

import typer

from cynosure.cli import common

if TYPE_CHECKING:
    from cynosure.models.check import Check

N_TOKENS = 64  # full logits of so few are made here for once
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
        str | None, typer.Argument(metavar="[TEXT]", help="Text to check on; its first 64 tokens are taken.")
    ] = None,
    device: common.Device = "auto",
    tokenizer: common.Tokenizer = None,
    revision: common.Revision = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Prove our loss equal to the model's own.

    The fused loss, which makes no full logits, is compared with model(..., labels=...) in float32: the logits, the
    loss, its gradients, ignored labels, and division by num_items_in_batch. Exit status 1 when one of them differs.
    """
    import torch

    from cynosure import models
    from cynosure.text import tokenize

    common.show_notes(quiet)
    loaded = models.load(model, dtype="float32", device=device, tokenizer=tokenizer, revision=revision)
    ids = [token for part in (text or "", FILLER) for token in tokenize(loaded.tokenizer, part).ids.tolist()]
    checks = models.check(loaded.model, torch.tensor(ids[:N_TOKENS]))
    head = models.read_head(loaded.model)
    passed = all(check.passed for check in checks)
    if format == "json":
        values = [check._asdict() | {"passed": check.passed} for check in checks]
        parts = {"scale": head.scale, "softcap": head.softcap, "bias": head.bias is not None}
        common.print_json({"model": loaded.name, "passed": passed, "head": parts, "checks": values})
    else:
        vocab_size, hidden_size = head.weight.shape
        softcap = f"softcap {head.softcap:g}" if head.softcap else "no softcap"
        bias = "a bias" if head.bias is not None else "no bias"
        show(loaded.name, f"head: {vocab_size:,} x {hidden_size:,}, {bias}, scale {head.scale:g}, {softcap}", checks)
    if not passed:
        raise typer.Exit(1)


def show(name: str, head: str, checks: "list[Check]") -> None:
    from rich.table import Table

    from cynosure.models.check import TOLERANCE

    console = common.stdout()
    console.print(name, style="bold")
    console.print(head + "\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("in float32")
    for column in ("ours", "the model's", "difference", "ours to exact", "its to exact"):
        table.add_column(column, justify="right")
    table.add_column("")
    for check in checks:
        values = f"{check.ours:.6f}", f"{check.theirs:.6f}"
        errors = (f"{x:.1e}" for x in (check.difference, check.ours_from_exact, check.theirs_from_exact))
        verdict = "equal" if check.equal else "nearer" if check.passed else "DIFFERS"
        table.add_row(check.name, *values, *errors, verdict, style=None if check.passed else "bold red")
    console.print(table)
    console.print("\nDifferences are relative; of tensors, of their norms. Exact is float64 from full logits.")
    failed = sum(not check.passed for check in checks)
    if failed:
        console.print(f"FAILED: {failed} of {len(checks)} differ by more than {TOLERANCE:g}.", style="bold red")
        return
    equal = f"the fused loss and its gradients equal the model's own to a relative {TOLERANCE:g}"
    nearer = "" if all(check.equal for check in checks) else "; where float32 leaves more, they are nearer to exact"
    console.print(f"Passed: {equal}{nearer}.", style="bold")
