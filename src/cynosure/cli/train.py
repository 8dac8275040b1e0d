"""`cynosure train`: from texts to a model."""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cynosure.cli import common

if TYPE_CHECKING:
    from cynosure.training import Trained

COUNT = re.compile(r"(\d+(?:\.\d+)?)([kKmMbBgG]?)")
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def count(text: str) -> int:
    """A number of tokens, as people write it.

    >>> count("20M"), count("1.5k"), count("4096")
    (20000000, 1500, 4096)
    """
    match = COUNT.fullmatch(text.replace(",", "").replace("_", ""))
    if not match:
        raise typer.BadParameter(f"{text!r} is no number of tokens: give one such as 4096, 500k, 20M or 1.5B")
    return round(float(match[1]) * FACTORS[match[2].lower()])


def counted(help: str) -> Any:
    """An option that is a number of tokens."""
    return typer.Option(parser=count, metavar="TOKENS", help=help, show_default=False)


def train(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="As for score: files, folders, globs, - (stdin), tables with a text column, datasets (their train).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The folder of the run. Needed.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A new model: tiny (1M parameters), small (10M) or base (124M). [default: small]", show_default=False
        ),
    ] = None,
    init: Annotated[str | None, typer.Option(metavar="MODEL", help="Begin with this model instead.")] = None,
    lora: Annotated[int | None, typer.Option(metavar="RANK", help="Train low-rank updates of it alone.")] = None,
    valid: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Texts to validate on; may be given several times.")
    ] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(help="Share of the documents to hold out. [default: 0.1; 0 with --valid]", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None,
        counted("Train on so many in all. [default: 20 a parameter, at most 4 times the text; with --init once]"),
    ] = None,
    batch_tokens: Annotated[
        int | None, counted("Of a step, over all processes. [default: the preset's; 4096 with --init]")
    ] = None,
    row_tokens: Annotated[
        int | None,
        counted(
            "Of a row: what the model sees at once. [default: the preset's; 512 with --init, up to 2,048 with prompts]"
        ),
    ] = None,
    micro_rows: Annotated[
        int | None,
        typer.Option(help="Rows that go through the model at once. [default: by memory]", show_default=False),
    ] = None,
    vocab: Annotated[
        int | None,
        typer.Option(help="Tokens of the vocabulary made of the text. [default: the preset's]", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Take the tokenizer of this folder or hub id for a new model.")
    ] = None,
    special: Annotated[
        Literal["text", "parse"] | None,
        typer.Option(
            help="Read strings that are special tokens as text or as those tokens. [default: text]", show_default=False
        ),
    ] = None,
    chat: Annotated[
        Literal["assistant", "all"] | None,
        typer.Option(
            help="Of messages predict what the assistant says, or what everybody does. [default: assistant]",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate. [default: the preset's; 2e-5 with --init, 2e-4 with --lora]", show_default=False
        ),
    ] = None,
    schedule: Annotated[
        Literal["cosine", "wsd"] | None,
        typer.Option(help="To zero by a cosine, or in the last fifth. [default: cosine]", show_default=False),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps. [default: 0.05]", show_default=False)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of matrices alone. [default: 0.1]", show_default=False)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Most of the gradient's norm. [default: 1]", show_default=False)
    ] = None,
    z_loss: Annotated[
        float | None, typer.Option(help="Coefficient of lse^2 in the objective. [default: 0]", show_default=False)
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="In the objective. [default: 0]", show_default=False)
    ] = None,
    keep_documents_whole: Annotated[
        bool,
        typer.Option(
            "--keep-documents-whole",
            help="Cut no document that fits a row; rows are padded. Always so where documents have prompts.",
        ),
    ] = False,
    overlong: Annotated[
        Literal["cut", "drop", "error"] | None,
        typer.Option(
            help="Documents kept whole but longer than a row: cut the beginning of the prompt (without a prompt, "
            "split into rows), leave out, or stop. [default: cut]",
            show_default=False,
        ),
    ] = None,
    validate_every: Annotated[
        int | None, counted("Between validations and checkpoints. [default: a tenth of all]")
    ] = None,
    validate_tokens: Annotated[
        int | None, counted("About so many of what is held out, at the end all. [default: 32768]")
    ] = None,
    spike: Annotated[
        float | None,
        typer.Option(help="Stop at a loss so many nats above the smoothed one. [default: 3]", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of products: float32, bfloat16, or auto, where the hardware is fast at it.", show_default=False
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps... [default: an accelerator if there is one]", show_default=False)
    ] = None,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Share every weight out among the processes of torchrun.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="[default: 0]", show_default=False)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in RUN; texts and options may be left out.")
    ] = False,
    report_to: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Reporters of Trainer: tensorboard, wandb, trackio. [default: none]"),
    ] = None,
    trust_remote_code: common.TrustRemoteCode = False,
    allow_unused_weights: common.AllowUnusedWeights = False,
    column: common.Column = None,
    split_at: common.SplitAt = None,
    bad_rows: common.BadRows = "stop",
    limit: common.Limit = None,
    errors: common.Errors = "strict",
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Train a model on texts: a new one, or one that is there.

    Documents are packed into rows, each apart, and a prompt stays with its completion; a tenth is held out and scored
    as training goes on. The run's folder holds the best model, its checkpoints, figures, samples and curves; after a
    stop, --resume goes on bit for bit. torchrun -m cynosure train shares every batch among processes. Exit status 1
    when the loss leaves its course.
    """
    if out is None:
        raise ValueError("where to? --out names the folder of the run")
    if not texts and not resume:
        raise ValueError("no text to train on: name files, folders, globs, - or a dataset")
    common.show_notes(quiet)
    from cynosure.text import TRAINED, find_sources
    from cynosure.text.documents import check_split_at

    sources, held_out = find_sources(texts or [], column=column), find_sources(valid or [], column=column)
    check_split_at((*sources, *held_out), split_at)
    from cynosure.measure import Corpus
    from cynosure.training import TrainSettings

    given: dict[str, Any] = {
        "preset": preset, "init": init, "lora": lora, "tokenizer": tokenizer, "vocab_size": vocab,
        "special": special, "chat": chat,
        "hold_out": 0.0 if hold_out is None and held_out and not resume else hold_out, "tokens": tokens,
        "batch_tokens": batch_tokens, "row_tokens": row_tokens, "micro_rows": micro_rows, "learning_rate": lr,
        "schedule": schedule, "warmup": warmup, "weight_decay": weight_decay, "clip": clip, "z_loss": z_loss,
        "label_smoothing": label_smoothing, "keep_documents_whole": keep_documents_whole or None, "overlong": overlong,
        "validate_every": validate_every, "validate_tokens": validate_tokens,
        "spike": spike, "dtype": dtype, "device": device, "fsdp": fsdp or None, "seed": seed,
    }  # fmt: skip
    settings = TrainSettings(**{name: value for name, value in given.items() if value is not None})
    reading: dict[str, Any] = {"column": column, "errors": errors, "split_at": split_at, "bad_rows": bad_rows}
    corpus = Corpus.of_sources(sources, limit=limit, splits=TRAINED, **reading)
    apart = Corpus.of_sources(held_out, **reading)
    from cynosure.cli.training import shown_training
    from cynosure.training import Diverged
    from cynosure.training import train as run
    from cynosure.training.folder import MANIFEST

    # Theirs of each other, which no user of ours can heed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")
    common.settings.kept_in, common.settings.kept_files = out, MANIFEST
    common.settings.way_on = " --resume"
    try:
        with shown_training(quiet) as watcher:
            trained = run(
                corpus, out, settings, valid=apart, resume=resume, watcher=watcher, report_to=tuple(report_to or ()),
                trust_remote_code=trust_remote_code, allow_unused_weights=allow_unused_weights,
            )  # fmt: skip
    except Diverged as error:
        common.complain(str(error))
        raise typer.Exit(1) from None
    if common.leads():
        show(trained, format)


def show(trained: "Trained", format: str) -> None:
    """What came of it: figures of the best model on all that was held out, and where it is."""
    from cynosure.cli import tables
    from cynosure.cli.screen import stdout

    scores = trained.scores
    if format == "json":
        common.print_json({
            "run": str(trained.folder), "model": str(trained.model_folder), "parameters": trained.parameters,
            "steps": trained.plan.steps, "tokens": trained.plan.tokens, "best_step": trained.best_step,
            "unigram_bits_per_byte": trained.unigram_bits_per_byte,
            "scores": None if scores is None else scores.to_json(),
        })  # fmt: skip
        return
    if scores is not None:
        tables.show(scores)
    if trained.unigram_bits_per_byte is not None:
        stdout().print(f"byte-unigram model of the same text: {trained.unigram_bits_per_byte:.4f} bits per byte")
    step = "" if trained.best_step is None else f", of step {trained.best_step:,}, the best on what was held out"
    stdout().print(f"model: {trained.model_folder}{step}")
    stdout().print(f"curves: {trained.folder / 'curves.svg'}")
