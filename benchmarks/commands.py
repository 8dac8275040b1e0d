"""`python -m benchmarks`: compare cynosure with other implementations and with the limit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.progress import shown_progress
from cynosure.cli import common

if TYPE_CHECKING:
    from benchmarks.harness import Benchmark

app = typer.Typer(
    help="Benchmark against other implementations, and against the limit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dtypes = Annotated[str, typer.Option(help="Comma-separated dtypes: float32, bfloat16.")]
Implementations = Annotated[
    str, typer.Option(help="Comma-separated implementations, e.g. cynosure,limit; or all of them.")
]
Runs = Annotated[int, typer.Option(help="Timed runs of each implementation.")]
Cutoff = Annotated[float, typer.Option(help="Time limit of a run, in seconds.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="File for the report as JSON. [default: none]")
]


@app.command()
def loss(
    heads: Annotated[
        str,
        typer.Option(
            help="Comma-separated heads: gemma3-270m, smollm2, synthetic:VxD; on a GPU the shapes gemma3-270m, "
            "llama3-8b, qwen3-8b, synthetic:VxD. [default: all named]",
            show_default=False,
        ),
    ] = "",
    tokens: Annotated[
        str,
        typer.Option(
            help="Comma-separated numbers of tokens. [default: the head's; on a GPU 4096,16384]", show_default=False
        ),
    ] = "",
    dtypes: Annotated[
        str,
        typer.Option(
            help="Comma-separated dtypes: float32, bfloat16. [default: both; on a GPU bfloat16]", show_default=False
        ),
    ] = "",
    device: Annotated[
        str,
        typer.Option(help="Device: cpu, cuda (ROCm too), or fake: a dry run of cuda in which the CPU takes its place."),
    ] = "cpu",
    implementations: Implementations = "all",
    runs: Annotated[int, typer.Option(help="Timed runs of each implementation; 1 if the first takes over 10 s.")] = 3,
    cutoff: Cutoff = 60.0,
    forward: Annotated[bool, typer.Option("--forward", help="Measure the forward pass only, as in scoring.")] = False,
    json_path: Json = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Measure time, peak memory and errors of the loss, forward and backward.

    Each implementation has its own process; their runs are interleaved. Gradients are checked against float64 first:
    an implementation that fails is not timed. The first call prepares inputs from the installed models, which takes
    minutes. Exit status 1 if cynosure fails its check.
    """
    from benchmarks.loss.benchmark import LossBenchmark
    from benchmarks.loss.on_device import SETTINGS, DeviceLossBenchmark

    chosen: dict[str, Any] = {"runs": runs, "cutoff_seconds": cutoff, "backward": not forward}
    counts = tuple(whole_number("--tokens", name) for name in names(tokens))
    asked = {"heads": names(heads), "dtypes": names(dtypes), "tokens": counts}
    chosen |= {name: values for name, values in asked.items() if values}
    if device not in ("cpu", *SETTINGS):
        raise ValueError(f"--device: unknown device {device!r}: expected one of cpu, {', '.join(SETTINGS)}")
    benchmark = (
        LossBenchmark(**chosen)
        if device == "cpu"
        else DeviceLossBenchmark(device=device, **(SETTINGS[device] | chosen))
    )
    measure(benchmark, names(implementations), json_path, format, quiet)


Heads = Annotated[
    str,
    typer.Option(
        help="Comma-separated heads: gemma3-270m, smollm2, synthetic:VxD. [default: all named]", show_default=False
    ),
]
Tokens = Annotated[str, typer.Option(help="Comma-separated numbers of tokens.")]


@app.command()
def logprobs(
    heads: Heads = "",
    tokens: Tokens = "2048",
    dtypes: Dtypes = "float32,bfloat16",
    implementations: Implementations = "all",
    runs: Runs = 3,
    cutoff: Cutoff = 150.0,
    json_path: Json = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Measure log-probabilities with entropies, forward and backward.

    Each implementation has its own process; their runs are interleaved, and one run is made if the first takes over
    10 s. Values and gradients are checked against float64 first: an implementation that fails is not timed. Exit status
    1 if cynosure fails its check.
    """
    from benchmarks.primitives.benchmark import LogprobsBenchmark

    chosen = primitive_settings(heads, tokens, dtypes, runs, cutoff)
    measure(LogprobsBenchmark(**chosen), names(implementations), json_path, format, quiet)


@app.command()
def kl(
    heads: Heads = "",
    tokens: Tokens = "2048",
    dtypes: Dtypes = "float32,bfloat16",
    implementations: Implementations = "all",
    runs: Runs = 3,
    cutoff: Cutoff = 150.0,
    json_path: Json = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Measure the divergence between a student's and a teacher's head.

    The mean forward KL divergence, forward and backward; the teacher has no gradient. Measured and checked as
    log-probabilities are.
    """
    from benchmarks.primitives.benchmark import DivergenceBenchmark

    chosen = primitive_settings(heads, tokens, dtypes, runs, cutoff)
    measure(DivergenceBenchmark(**chosen), names(implementations), json_path, format, quiet)


def primitive_settings(heads: str, tokens: str, dtypes: str, runs: int, cutoff: float) -> dict[str, Any]:
    counts = tuple(whole_number("--tokens", name) for name in names(tokens))
    chosen = {"tokens": counts, "dtypes": names(dtypes), "runs": runs, "cutoff_seconds": cutoff}
    return chosen | ({"heads": names(heads)} if names(heads) else {})


@app.command()
def score(
    models: Annotated[str, typer.Option(help="Comma-separated model names, as for cynosure score.")] = (
        "smollm2,gemma3-270m"
    ),
    tokens: Annotated[int, typer.Option(help="Number of tokens of real text.")] = 20_000,
    window: Annotated[int, typer.Option(help="Window length in tokens.")] = 1024,
    dtypes: Dtypes = "float32,bfloat16",
    implementations: Implementations = "all",
    runs: Runs = 3,
    cutoff: Cutoff = 600.0,
    json_path: Json = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Measure tokens per second, peak memory and errors of scoring a text.

    Each implementation has its own process; their runs are interleaved. Its nats are checked first against float64
    from the model's own logits: an implementation that fails is not timed. Exit status 1 if cynosure fails its check.
    """
    from benchmarks.score.benchmark import ScoreBenchmark

    benchmark = ScoreBenchmark(
        models=names(models), dtypes=names(dtypes), n_tokens=tokens, window=window, runs=runs, cutoff_seconds=cutoff
    )
    measure(benchmark, names(implementations), json_path, format, quiet)


@app.command()
def train(
    models: Annotated[
        str,
        typer.Option(
            help="Comma-separated model names, as for cynosure score; or new: small, small:32768 (vocabulary)."
        ),
    ] = "smollm2,gemma3-270m",
    dtypes: Annotated[
        str, typer.Option(help="Comma-separated dtypes: float32, bfloat16, autocast.")
    ] = "float32,bfloat16",
    implementations: Implementations = "all",
    rows: Annotated[int, typer.Option(help="Rows of real text per step.")] = 2,
    tokens: Annotated[int, typer.Option(help="Tokens per row.")] = 512,
    steps: Annotated[int, typer.Option(help="Training steps; all but the first are timed.")] = 50,
    json_path: Json = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Measure time, peak memory and loss curve of training.

    Compares Hugging Face's Trainer, patched and unpatched, and a plain loop. Each has its own process; their steps are
    interleaved. Loss curves are compared with the same training with an exact head, which runs first. Exit status 1 if
    our curve differs from it by more than rounding.
    """
    from benchmarks.train.benchmark import TrainBenchmark

    benchmark = TrainBenchmark(models=names(models), dtypes=names(dtypes), n_rows=rows, n_tokens=tokens, n_steps=steps)
    measure(benchmark, names(implementations), json_path, format, quiet)


@app.command()
def trainers(
    trainers: Annotated[str, typer.Option(help="Comma-separated trainers of TRL: dpo, grpo.")] = "dpo,grpo",
    model: Annotated[str, typer.Option(help="Model name, as for cynosure score.")] = "smollm2",
    dtypes: Annotated[str, typer.Option(help="Comma-separated dtypes: float32, bfloat16, autocast.")] = "float32",
    implementations: Implementations = "all",
    texts: Annotated[int, typer.Option(help="Texts per step: pairs of DPO, completions of GRPO's one prompt.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens per text; a quarter is the prompt.")] = 128,
    steps: Annotated[int, typer.Option(help="Training steps; all but the first are timed.")] = 20,
    json_path: Json = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Measure time, peak memory, loss curve and rewards of TRL's DPOTrainer and GRPOTrainer.

    Compares the patched trainer with TRL's own. Each has its own process; their steps are interleaved. DPO's loss
    curves are compared with the same training with an exact head, which runs first. Exit status 1 if our curve differs
    from it by more than rounding.
    """
    from benchmarks.trainers.benchmark import TrainersBenchmark

    benchmark = TrainersBenchmark(
        trainers=names(trainers), model=model, dtypes=names(dtypes), n_texts=texts, n_tokens=tokens, n_steps=steps
    )
    measure(benchmark, names(implementations), json_path, format, quiet)


@app.command()
def growth(
    dtypes: Dtypes = "float32,bfloat16",
    runs: Annotated[int, typer.Option(help="Timed runs of each size.")] = 5,
    json_path: Json = None,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Measure how time and memory of our loss grow with its sizes.

    Runs 64 to 65,536 tokens and 8,192 to 1,048,576 classes, and fits an exponent to each.
    """
    from benchmarks.loss.growth import measure_growth, print_growth, to_json
    from cynosure.cli import screen

    common.show_notes(quiet)
    check_folder(json_path)
    with shown_progress(quiet) as say:
        axes, report = measure_growth(names(dtypes), runs, say)
    write_json(json_path, to_json(axes, report))
    print_growth(axes, report, screen.stdout())


def measure(
    benchmark: "Benchmark[Any]", implementations: tuple[str, ...], json_path: Path | None, format: str, quiet: bool
) -> None:
    """Run a benchmark, then write and print its report. Raises ValueError if nothing could be measured."""
    from benchmarks.harness import find_implementations, run
    from benchmarks.table import print_report
    from cynosure.cli import screen

    common.show_notes(quiet)
    chosen = find_implementations(implementations, benchmark.implementations)
    check_folder(json_path)
    with shown_progress(quiet) as say:
        report = run(benchmark, chosen, say)
    write_json(json_path, report.to_json())
    if format == "json":
        common.print_json(report.to_json())
    else:
        print_report(report, benchmark.how, benchmark.ours, screen.stdout())
    if not report.cases:
        raise ValueError("nothing could be prepared: " + "; ".join(dict.fromkeys(report.skipped.values())))
    if not all(map(report.green, benchmark.ours)):
        common.complain(benchmark.red)
        raise typer.Exit(1)


def check_folder(json_path: Path | None) -> None:
    """Raise ValueError if the report could not be written, before any work is done."""
    if json_path is not None and not json_path.parent.is_dir():
        raise ValueError(f"--json: no such folder: {json_path.parent}. Make it first")


def write_json(json_path: Path | None, values: Any) -> None:
    """Write values as a JSON file, atomically; do nothing without a path."""
    if json_path is not None:
        from cynosure.system.files import write_out

        write_out(json_path, f"{json.dumps(values, indent=1, allow_nan=False)}\n".encode())


def names(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated list, without repetitions."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def whole_number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{option}: {text!r} is not a whole number")
    return int(text)
