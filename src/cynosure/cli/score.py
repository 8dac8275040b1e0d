"""`cynosure score`: a model's loss on texts."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cynosure.cli import common
from cynosure.cli.progress import shown_progress
from cynosure.cli.report import NoReport, add_report

EXAMPLES = (
    "cynosure score smollm2 notes.txt",
    "cynosure score smollm2 notes/ --out run",
    "torchrun --nproc-per-node 2 -m cynosure score smollm2 notes/ --out run",
)


def score(
    model: common.Model,
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT...",
            help="Texts: files, directories, globs, - (stdin), JSON, CSV or Parquet tables, or dataset names.",
        ),
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="Scoring protocol: sliding, rolling, strided, strided-legacy, llama-cpp, blocks; or all, to compare "
            "them."
        ),
    ] = "sliding",
    window: Annotated[
        int | None,
        typer.Option(
            help="Window length in tokens. [default: the protocol's, at most the positions of the model]",
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
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Directory for the loss of every token, and report.html; an interrupted run resumes there. "
            "[default: not stored]",
            show_default=False,
        ),
    ] = None,
    no_report: NoReport = False,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens per forward pass; affects speed and memory only. "
            "[default: what fits in memory, at most 1024 on a CPU]",
            show_default=False,
        ),
    ] = None,
    limit: common.Limit = None,
    bins: Annotated[int, typer.Option(min=1, help="Number of bins for the calibration error.")] = 15,
    binning: Annotated[
        Literal["mass", "width"],
        typer.Option(help="Calibration bins: of equal token count (mass), or of equal width (as torchmetrics does)."),
    ] = "mass",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the model with torch.compile: slower to start, then faster.")
    ] = False,
    column: common.Column = None,
    split_at: common.SplitAt = None,
    bad_rows: common.BadRows = "stop",
    tokenizer: common.Tokenizer = None,
    revision: common.Revision = None,
    trust_remote_code: common.TrustRemoteCode = False,
    allow_unused_weights: common.AllowUnusedWeights = False,
    errors: common.Errors = "strict",
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Score texts with a model.

    Shows the loss per token, perplexity per token and per word, and bits per byte and per character, each with its 95%
    interval. Also shows calibration and which parts of the texts cost most. torchrun shares the work among processes.
    """
    from cynosure.text import ONCE, PROTOCOLS, check_bos, check_protocol, check_split_at, find_sources, total_bytes

    common.show_notes(quiet)
    if protocol != "all":  # checked early: loading a model takes seconds
        default = PROTOCOLS[protocol].window if protocol in PROTOCOLS else 0
        # Without --window, cap the stride: the model may have fewer positions, which is checked after loading.
        check_protocol(protocol, window or default, stride if window or not stride else min(stride, default))
        check_bos(protocol, bos)
    sources = find_sources(texts, column=column)
    check_split_at(sources, split_at)
    if any(source.kind in ONCE for source in sources) and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes cannot read standard input or a pipe: give a file")
    from cynosure import measure, models
    from cynosure.cli import tables

    reading: dict[str, Any] = {"column": column, "errors": errors, "split_at": split_at, "bad_rows": bad_rows}
    corpus = measure.Corpus.of_sources(sources, limit=limit, **reading)
    if protocol == "all" and any(source.kind in ONCE for source in sources):
        corpus = corpus._replace(documents=list(corpus.documents))  # read once, scored by every protocol
    common.settings.kept_in, common.settings.kept_files = out, "**/tokens-*.parquet"
    if out is not None:
        (measure.check_all_own if protocol == "all" else measure.check_own)(out)
        out.mkdir(parents=True, exist_ok=True)
    loaded = models.load(
        model, dtype=dtype, device=device, tokenizer=tokenizer, revision=revision,
        trust_remote_code=trust_remote_code, allow_unused_weights=allow_unused_weights,
    )  # fmt: skip
    split = models.split(loaded, compile=compile)
    total = total_bytes(sources) if limit is None else None
    options: dict[str, Any] = {"window": window, "stride": stride, "batch_tokens": batch_tokens, "out": out}
    options |= {"bos": bos, "special": special, "chat": chat}
    if protocol == "all":
        with shown_progress(None if total is None else total * (len(PROTOCOLS) - 1), quiet) as progress:
            by_protocol = measure.score_all(split, corpus, keep=False, progress=progress, **options)
        every = [scores for scores in by_protocol.values() if not isinstance(scores, str)]
    else:
        with shown_progress(total, quiet) as progress:
            every = [measure.score(split, corpus, protocol=protocol, keep=False, progress=progress, **options)]
    if not common.leads():
        return
    for scores in every:
        scores.n_bins, scores.binning = bins, binning
        scores.save()
    if format == "json":
        values = [scores.to_json() for scores in every]
        common.print_json(values if protocol == "all" else values[0])
    elif protocol == "all":
        tables.show_protocols(by_protocol)
    else:
        tables.show(every[0])
    common.note((note for scores in every for note in scores.notes), quiet)
    if out is None or no_report:
        return
    from cynosure import reporting

    if protocol == "all":
        found = {name: scores for name, scores in by_protocol.items() if not isinstance(scores, str)}
        add_report(lambda: reporting.write_page(reporting.protocols_page(found, out), out / reporting.REPORT), quiet)
    else:
        add_report(lambda: reporting.report(every[0]), quiet)
