"""The benchmark of training: its pieces here, on a tiny model, and all of it once, a process each."""

import functools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from benchmarks.commands import app
from benchmarks.harness import run
from benchmarks.implementation import Implementation
from benchmarks.loss.implementations import Inputs
from benchmarks.loss.limit import whole_gemms
from benchmarks.results import BenchmarkReport, Result
from benchmarks.table import print_report
from benchmarks.train.benchmark import (
    Curves,
    TrainBenchmark,
    TrainCase,
    TrainWorker,
    check_plain,
    judge,
    largest_difference,
    new_work,
    texts_of,
)
from benchmarks.train.implementations import (
    IMPLEMENTATIONS,
    Step,
    TrainWork,
    build_cynosure,
    build_exact,
    build_limit,
    build_loop,
    build_transformers,
)
from benchmarks.train.stepping import Recording, arguments, exact_loss, products_only, stepper
from cynosure.cli.app import main
from cynosure.patching import patch
from tests.tiny import byte_tokenizer, tiny, tiny_model

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.benchmark,
    pytest.mark.filterwarnings("ignore"),  # Trainer's own
]

SETTINGS = TrainBenchmark(models=("tiny",), dtypes=("float32",), n_rows=2, n_tokens=32, n_steps=6)


def build_off(work: TrainWork) -> Step:
    """The patched loss is 1% too large."""
    model = work.model.model
    patch(model)
    forward = model.forward

    @functools.wraps(forward)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.loss = output.loss * 1.01
        return output

    model.forward = scaled
    return stepper(work)


def build_lost(work: TrainWork) -> Step:
    """The head gets no gradient."""
    work.model.model.get_output_embeddings().weight.register_hook(torch.zeros_like)
    return build_cynosure(work)


def build_mute(work: TrainWork) -> Step:
    """Dies in its third step."""
    step, done = build_transformers(work), []

    def mute() -> float:
        done.append(step())
        if len(done) == 3:
            os.abort()
        return done[-1]

    return mute


MUTE = Implementation("mute", "planted", build_mute)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    environment = pytest.MonkeyPatch()
    environment.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(spread=0.1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    yield folder
    environment.undo()


def curve(build: Any, folder: Path, dtype: str = "float32", settings: TrainBenchmark = SETTINGS) -> list[float]:
    step = build(new_work(str(folder), dtype, settings))
    return [step() for _ in range(settings.n_steps)]


def judged(folder: Path, dtype: str, *builds: Any, n_steps: int = 6) -> list[Result]:
    """The model's own curve and those of these implementations, after they were judged."""
    settings = replace(SETTINGS, n_steps=n_steps)
    rows = [Result("transformers", "")] + [Result(build.__name__[6:], "") for build in builds]
    for row, build in zip(rows, (build_transformers, *builds), strict=True):
        row.losses = curve(build, folder, dtype, settings)
    judge(rows, curve(build_exact, folder, dtype, settings))
    return rows


def test_steps_are_those_of_trainer(folder: Path) -> None:
    work = new_work(str(folder), "float32", SETTINGS)
    data = [{"input_ids": ids, "labels": ids} for ids in work.texts]
    trainer = Recording(work.model.model, arguments(work, str(folder.parent / "out")), train_dataset=data)
    trainer.losses = []
    trainer.train()
    assert curve(build_transformers, folder) == trainer.losses
    assert len(set(trainer.losses)) == SETTINGS.n_steps


def test_a_step_that_fails_says_so(folder: Path) -> None:
    def build(work: TrainWork) -> Step:
        work.texts[1] = work.texts[1][:5]  # rows of unequal length, which the collator cannot stack
        return stepper(work)

    settings, prepared = replace(SETTINGS, n_rows=12, n_steps=2), Curves(str(folder), "", {})
    worker = TrainWorker(Implementation("x", "", build), settings, prepared, "float32")
    assert worker.answer({"task": "build", "n_tokens": 64})["failed"].startswith("ValueError: expected sequence of")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
def test_a_right_curve_agrees(folder: Path, dtype: str) -> None:
    own, ours = judged(folder, dtype, build_cynosure, n_steps=12)
    assert (ours.status, ours.reason) == ("ok", None)
    assert 0 < (ours.errors or {})["loss"] <= (ours.allowed or {})["loss"] < {"float32": 3e-6}.get(dtype, 1e-2)
    assert own.status == "ok"


@pytest.mark.parametrize("dtype", ["float32", "autocast"])
def test_a_loop_trains_as_trainer_does(folder: Path, dtype: str) -> None:
    _, loop = judged(folder, dtype, build_loop, n_steps=12)
    assert (loop.status, loop.reason) == ("ok", None)


def test_new_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a preset and a vocabulary that is made once; the same weights in every process."""
    monkeypatch.setenv("CYNOSURE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "benchmarks.train.fresh.every_address", lambda: iter(["the cat and the hat sat on the mat"] * 9)
    )
    monkeypatch.setattr("benchmarks.texts.text_ids", lambda words: iter(range(1000)))
    first = new_work("tiny:264", "autocast", SETTINGS)
    monkeypatch.setattr("benchmarks.train.fresh.every_address", lambda: iter(()))
    again = new_work("tiny:264", "autocast", SETTINGS)
    assert first.model.name == "tiny, new, 264 tokens of vocabulary"
    assert first.model.model.config.hidden_size == 128
    for a, b in zip(first.model.model.parameters(), again.model.model.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("build", [build_off, build_lost])
def test_a_wrong_curve_is_red(folder: Path, build: Any) -> None:
    _, wrong = judged(folder, "float32", build)
    assert wrong.status == "red"
    assert (wrong.reason or "").startswith("over 6 steps loss is off by ")


def test_one_percent_is_red_in_bfloat16(folder: Path) -> None:
    assert [row.status for row in judged(folder, "bfloat16", build_off)] == ["ok", "red"]


def test_nan_is_red() -> None:
    rows = [Result("transformers", "", losses=[3.0, 2.0]), Result("cynosure", "", losses=[3.0, math.nan])]
    judge(rows, [3.0, 2.0])
    assert [row.status for row in rows] == ["ok", "red"]
    record = json.loads(json.dumps(rows[1].to_json(), allow_nan=False))
    assert (record["losses"], record["errors"]) == ([3.0, None], {"loss": None})
    assert math.isnan(largest_difference([1.0, math.nan, 1.0], [2.0, 2.0, 9.0]))


def test_without_the_models_own_curve_nothing_is_judged() -> None:
    rows = [
        Result("transformers", "", "failed", "out of memory", losses=[3.0]),
        Result("cynosure", "", losses=[3.0, 2.5]),
    ]
    judge(rows, [3.0, 2.0])
    assert (rows[1].status, rows[1].errors, rows[1].allowed) == ("ok", {"loss": 0.5}, None)
    case = TrainCase("m", "m", "float32", 2, 8, 2, [3.0, 2.0], rows)
    assert "whether the curve is right is not known: transformers has none to judge it by" in shown(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exact_loss_is_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(600, 16).to(dtype).requires_grad_(), torch.randn(50, 16).to(dtype).requires_grad_()
    target = torch.randint(50, (600,))
    found = exact_loss(hidden, weight, target, torch.tensor(600))
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = F.cross_entropy(F.linear(*wide), target)
    torch.testing.assert_close(found.double(), truth, rtol=1e-6 if dtype == torch.bfloat16 else 1e-12, atol=0)
    for gradient, right in zip(
        torch.autograd.grad(found, (hidden, weight)), torch.autograd.grad(truth, wide), strict=True
    ):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), right, rtol=torch.finfo(dtype).eps, atol=1e-9)


def test_the_limit_makes_the_products_of_the_head(folder: Path) -> None:
    work = new_work(str(folder), "float32", SETTINGS)
    weight = work.model.model.get_output_embeddings().weight
    hidden = torch.randn(62, 16, requires_grad=True)
    loss = products_only(work)(hidden, weight, torch.empty(0), torch.empty(0))
    right = whole_gemms(Inputs(hidden, weight, torch.empty(0)), "torch")
    dhidden, dweight = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(dhidden, right.dhidden)
    torch.testing.assert_close(dweight, right.dweight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
def test_the_limit_trains(folder: Path, dtype: str) -> None:
    work = new_work(str(folder), dtype, SETTINGS)
    model = work.model.model
    ends = [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    before = [weight.detach().clone() for weight in ends]
    step = build_limit(work)
    assert [step() for _ in range(SETTINGS.n_steps)] == [0.0] * SETTINGS.n_steps
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert not any(torch.equal(weight, old) for weight, old in zip(ends, before, strict=True))


def test_rows_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr("benchmarks.texts.text_ids", lambda words: iter(range(100, 200)))
    bos = model.tokenizer.bos_token_id
    settings = replace(SETTINGS, n_rows=1, n_tokens=51, n_steps=2)
    assert texts_of(model, settings) == [[bos, *range(100, 150)], [bos, *range(150, 200)]]
    with pytest.raises(ValueError, match="there are no 104 tokens of addresses"):
        texts_of(model, replace(settings, n_tokens=52))


def test_a_head_that_is_more_than_a_matrix_is_refused() -> None:
    check_plain(tiny())
    with pytest.raises(ValueError, match="the head of tiny is more than a matrix"):
        check_plain(tiny(kind="Gemma2", final_logit_softcapping=5.0, head_dim=8))


@pytest.fixture(scope="module")
def report(folder: Path) -> BenchmarkReport[TrainCase]:
    settings = replace(SETTINGS, models=(str(folder),), n_steps=4)
    return run(settings, [*IMPLEMENTATIONS.values(), MUTE])


def row(report: BenchmarkReport[TrainCase], name: str) -> Result:
    found = report.cases[0].row(name)
    assert found is not None
    return found


def shown(*cases: TrainCase, about: dict[str, Any] | None = None) -> str:
    text = StringIO()
    about = about or {"versions": {}, "cpu": "", "threads": 1, "blas": "", "commit": "", "class": ""}
    report = BenchmarkReport("train", "", "", {}, about, list(cases), {})
    print_report(report, SETTINGS.how, SETTINGS.ours, Console(file=text, width=130))
    return text.getvalue()


def test_whoever_is_right_gets_a_figure(report: BenchmarkReport[TrainCase]) -> None:
    for name in ("cynosure", "transformers", "loop", "limit"):
        found = row(report, name)
        assert (found.status, found.reason, len(found.seconds)) == ("ok", None, 3)
        assert (found.peak_process_bytes or 0) > (found.peak_extra_bytes or 0) > 0
        assert (None if found.losses is None else len(found.losses)) == (None if name == "limit" else 4)
    assert 0 < (report.cases[0].largest_difference_nats or 0) < 1e-5


def test_whoever_is_not_gets_a_reason(report: BenchmarkReport[TrainCase]) -> None:
    mute = row(report, "mute")
    assert (mute.status, mute.reason, mute.seconds_median) == ("failed", "with 64 tokens: ended by SIGABRT", None)


def test_the_table_and_the_record(report: BenchmarkReport[TrainCase]) -> None:
    text = shown(*report.cases, about=report.environment)
    assert "tiny: 4 steps of 2 x 32 tokens, float32" in text
    assert "mute: with 64 tokens: ended by SIGABRT" in text
    assert "cynosure / transformers: " in text
    assert "their losses differ by " in text
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (record["bench"], record["settings"]["n_steps"]) == ("train", 4)
    assert record["environment"]["versions"]["accelerate"]
    (case,) = record["cases"]
    assert case["largest_difference_nats"] == report.cases[0].largest_difference_nats
    assert len(case["exact_losses"]) == 4
    assert set(case["rows"][0]["errors"]) == set(case["rows"][0]["allowed"]) == {"loss"}


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["benchmarks", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main(app, "python -m benchmarks")
    return int(done.value.code or 0)


def test_the_command(
    report: BenchmarkReport[TrainCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[TrainBenchmark] = []

    def measured(benchmark: TrainBenchmark, *_: object) -> BenchmarkReport[TrainCase]:
        asked.append(benchmark)
        return report

    monkeypatch.setattr("benchmarks.harness.run", measured)
    path = tmp_path / "train.json"
    command = ["--models", "a, b", "--dtypes", "autocast", "--rows", 3, "--tokens", 70, "--steps", 9]
    assert invoke(monkeypatch, *command, "--format", "json", "--json", path) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert asked == [TrainBenchmark(models=("a", "b"), dtypes=("autocast",), n_rows=3, n_tokens=70, n_steps=9)]
    wrong = replace(report.cases[0], rows=[replace(row(report, "cynosure"), status="red", reason="wrong")])
    report = replace(report, cases=[wrong])
    assert invoke(monkeypatch, *command) == 1
    assert "our own loss curve disagrees" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dtypes", "int8"), "unknown dtype 'int8': expected one of float32, bfloat16, autocast"),
        (("--models", ""), "name at least one model and one dtype"),
        (("--rows", 0), "rows and the cut-off must be positive"),
        (("--tokens", 1), "tokens and steps must be at least 2"),
        (("--steps", 1), "tokens and steps must be at least 2"),
        (("--json", "nowhere/train.json"), "--json: no such folder: nowhere"),
    ],
)
def test_bad_usage_is_said_in_one_line(
    arguments: tuple[object, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
