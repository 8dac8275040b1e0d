"""`cynosure compare`: two runs, or two models, on the same texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cynosure.cli import common
from cynosure.cli.progress import shown_progress
from cynosure.cli.report import NoReport, add_report

if TYPE_CHECKING:
    from cynosure.measure import Comparison

EXAMPLES = (
    "cynosure compare run-a run-b",
    'cynosure compare run-a run-b --fail-if "bits_per_byte > +0.5%" --junit gates.xml',
    "cynosure compare model-a model-b notes.txt",
)
COMPARISON = "comparison.json"
OF_MODELS = (
    "protocol", "window", "stride", "bos", "special", "chat", "dtype", "device", "batch_tokens", "limit", "column",
    "errors", "split_at", "bad_rows", "trust_remote_code", "allow_unused_weights",
)  # fmt: skip


def compare(
    context: typer.Context,
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Baseline: a directory written by score --out, or a model if TEXT is given.",
            show_default=False,
        ),
    ],
    b: Annotated[
        str, typer.Argument(metavar="B", help="Run or model to compare with the baseline.", show_default=False)
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Texts to score with models A and B, which must share a tokenizer; as for score.",
            show_default=False,
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="GATE",
            help='Exit with status 1 if the whole interval of B - A satisfies this condition, e.g. "bits_per_byte > '
            '+0.5%". Repeatable. [default: none]',
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for a Markdown report, e.g. for a pull request. [default: none]",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for the gates as JUnit XML; needs --fail-if. [default: none]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory for comparison.json and report.html. [default: none]", show_default=False
        ),
    ] = None,
    no_report: NoReport = False,
    protocol: Annotated[
        str, typer.Option(help="Scoring protocol, as for score. This option and those below need TEXT.")
    ] = "sliding",
    window: Annotated[
        int | None,
        typer.Option(
            help="Window length in tokens. [default: the protocol's, at most the positions of the models]",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens scored per window after the first. [default: half the window]", show_default=False),
    ] = None,
    bos: common.Bos = "auto",
    special: common.SpecialOfProtocol = "auto",
    chat: common.Chat = "assistant",
    dtype: common.Dtype = "auto",
    device: common.Device = "auto",
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens per forward pass. [default: what fits in memory, at most 1024 on a CPU]",
            show_default=False,
        ),
    ] = None,
    limit: common.Limit = None,
    column: common.Column = None,
    split_at: common.SplitAt = None,
    bad_rows: common.BadRows = "stop",
    errors: common.Errors = "strict",
    trust_remote_code: common.TrustRemoteCode = False,
    allow_unused_weights: common.AllowUnusedWeights = False,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Compare two runs of the same texts, or two models.

    Shows how much better B is than A on the same bytes, with a 95% interval and a p-value, and where they differ most.
    A and B are directories written by score --out; their tokenizers may differ. With TEXT, A and B are models with the
    same tokenizer, scored in one pass, and their KL divergence is shown too. Exit status 1 if a gate fails.
    """
    from cynosure import measure
    from cynosure.cli import compare_report
    from cynosure.system.files import write_out

    common.show_notes(quiet)
    gates = [measure.Gate.parse(text) for text in fail_if or []]
    check_files(markdown, junit, len(gates))
    if out is not None:
        check_out(out)
    if texts:
        comparison = of_models((a, b), texts, {name: context.params[name] for name in OF_MODELS}, quiet)
    else:
        check_left_out(context)
        comparison = measure.compare(a, b)
    verdicts = [gate.judge(comparison) for gate in gates]
    common.settings.failed = any(verdict.failed for verdict in verdicts)
    if markdown is not None:
        write_out(markdown, compare_report.markdown(comparison, verdicts).encode())
    if junit is not None:
        write_out(junit, measure.junit(verdicts))
    if format == "json":
        common.print_json(comparison.to_json() | {"gates": [verdict.to_json() for verdict in verdicts]})
    else:
        compare_report.show(comparison, verdicts)
    common.note(comparison.notes, quiet)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        values = comparison.to_json() | {"gates": [verdict.to_json() for verdict in verdicts]}
        write_out(out / COMPARISON, common.json_text(values).encode("utf-8", "backslashreplace"))
        if not no_report:
            add_report(lambda: write_report(comparison, out, () if texts else (a, b)), quiet)
    if common.settings.failed:
        raise typer.Exit(1)


def check_files(markdown: Path | None, junit: Path | None, n_gates: int) -> None:
    """Raise ValueError for files that could not be written, before any work is done."""
    from cynosure.system.files import check_writable

    for option, path in (("--markdown", markdown), ("--junit", junit)):
        if path is not None:
            check_writable(path, option)
    if junit is not None and not n_gates:
        raise ValueError("--junit has no gates to write: add --fail-if")


def check_out(folder: Path) -> None:
    """Raise ValueError for a folder that holds anything but a comparison, before any work is done."""
    from cynosure.reporting import REPORT
    from cynosure.system.folders import check_is_folder, first_foreign

    check_is_folder(folder)
    if folder.is_dir() and (other := first_foreign(folder, (COMPARISON, REPORT).__contains__)):
        raise ValueError(f"{folder} holds {other}, which is not of a comparison: give another `out`")


def write_report(comparison: "Comparison", out: Path, runs: tuple[str, ...]) -> Path:
    """Write the report of a comparison, with the text token by token if it is of two runs."""
    from cynosure import measure, reporting

    page = reporting.comparison_page(comparison, *map(measure.open_run, runs))
    return reporting.write_page(page, out / reporting.REPORT)


def check_left_out(context: typer.Context) -> None:
    """Raise ValueError for an option that needs TEXT if there is none."""
    for name in OF_MODELS:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} needs TEXT: without it, A and B are runs that have been scored already")


def of_models(names: tuple[str, str], texts: list[str], given: dict[str, Any], quiet: bool) -> "Comparison":
    """Score the texts with two models and compare them."""
    from cynosure import measure, models
    from cynosure.text import check_split_at, find_sources, total_bytes

    reading = {name: given.pop(name) for name in ("column", "errors", "limit", "split_at", "bad_rows")}
    sources = find_sources(texts, column=reading["column"])
    check_split_at(sources, reading["split_at"])
    corpus = measure.Corpus.of_sources(sources, **reading)
    where = {name: given.pop(name) for name in ("dtype", "device", "trust_remote_code", "allow_unused_weights")}
    loaded = [models.load(name, **where) for name in names]
    a, b = map(models.split, loaded)
    common.note((*a.notes, *b.notes), quiet)
    total = total_bytes(sources) if reading["limit"] is None else None
    with shown_progress(total, quiet) as progress:
        return measure.diverge(a, b, corpus, progress=progress, **given)
