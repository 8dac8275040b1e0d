"""`cynosure score`: a model's loss on texts."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cynosure.cli import common
from cynosure.cli.progress import shown_progress


def score(
    model: common.Model,
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT...",
            help="Files, folders, globs, - (stdin), JSON, CSV or Parquet tables with a text column, dataset names.",
        ),
    ],
    protocol: Annotated[
        str, typer.Option(help="sliding, rolling, strided, strided-legacy, llama-cpp, blocks; all: side by side.")
    ] = "sliding",
    window: Annotated[
        int | None,
        typer.Option(
            help="Positions seen at once. [default: the protocol's, or all the model has]", show_default=False
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens scored by each further window. [default: half the window]", show_default=False),
    ] = None,
    bos: common.Bos = "auto",
    special: common.SpecialOfProtocol = "auto",
    chat: common.Chat = "assistant",
    dtype: common.Dtype = "auto",
    device: common.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Keep every token in this folder, and go on there after a stop.", show_default=False
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Positions computed at once: speed and memory only. [default: by memory; on a CPU at most 1024]",
            show_default=False,
        ),
    ] = None,
    limit: common.Limit = None,
    bins: Annotated[int, typer.Option(min=1, help="Number of bins of the calibration error.")] = 15,
    binning: Annotated[
        Literal["mass", "width"],
        typer.Option(help="Bins with equally many tokens (mass), or of equal width as in torchmetrics and netcal."),
    ] = "mass",
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the model under torch.compile: slow to start, then faster.")
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

    Prints the loss per token, perplexity per token and per word, bits per byte and per character with their 95%
    intervals, calibration, and where the nats go. torchrun -m cynosure score shares the work among processes.
    """
    from cynosure.text import ONCE, PROTOCOLS, check_bos, check_protocol, check_split_at, find_sources, total_bytes

    common.show_notes(quiet)
    if protocol != "all":  # before the seconds it takes to load a model
        default = PROTOCOLS[protocol].window if protocol in PROTOCOLS else 0
        # Without --window the model's positions may be fewer, which are known when it is loaded.
        check_protocol(protocol, window or default, stride if window or not stride else min(stride, default))
        check_bos(protocol, bos)
    sources = find_sources(texts, column=column)
    check_split_at(sources, split_at)
    if any(source.kind in ONCE for source in sources) and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("standard input or a pipe cannot be read by several processes: give a file")
    from cynosure import measure, models
    from cynosure.cli import tables

    reading: dict[str, Any] = {"column": column, "errors": errors, "split_at": split_at, "bad_rows": bad_rows}
    corpus = measure.Corpus.of_sources(sources, limit=limit, **reading)
    if protocol == "all" and any(source.kind in ONCE for source in sources):
        corpus = corpus._replace(documents=list(corpus.documents))  # they cannot be read again
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
            found = measure.score_all(split, corpus, keep=False, progress=progress, **options)
        every = [scores for scores in found.values() if not isinstance(scores, str)]
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
        tables.show_protocols(found)
    else:
        tables.show(every[0])
    common.note((note for scores in every for note in scores.notes), quiet)
