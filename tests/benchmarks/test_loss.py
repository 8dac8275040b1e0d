"""The whole benchmark on a tiny head, a process each."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.harness import run
from benchmarks.loss.benchmark import LossBenchmark
from benchmarks.loss.implementations import IMPLEMENTATIONS
from benchmarks.loss.prepared import Prepared
from benchmarks.results import BenchmarkReport, Result
from benchmarks.table import print_report
from tests.benchmarks.conftest import HEAD, Invoke
from tests.benchmarks.planted import planted

FAULTS = ("wrong_when_large", "slow", "crash", "unavailable")

pytestmark = [pytest.mark.exhaustive, pytest.mark.benchmark]


@pytest.fixture(scope="module")
def report(prepared: Prepared) -> BenchmarkReport:
    """Ours, the eager op, the limit and four with a fault, at 300 and 600 tokens in float32."""
    names = ("cynosure", "eager", "limit", "limit-chunked")
    implementations = [*(IMPLEMENTATIONS[name] for name in names), *map(planted, FAULTS)]
    benchmark = LossBenchmark(heads=(HEAD,), dtypes=("float32",), tokens=(600, 300), runs=2, cutoff_seconds=10.0)
    return run(benchmark, implementations)


def row(report: BenchmarkReport, name: str, case: int = 0) -> Result:
    found = report.cases[case].row(name)
    assert found is not None
    return found


def shown(report: BenchmarkReport) -> str:
    text = StringIO()
    print_report(report, LossBenchmark().how, ("cynosure",), Console(file=text, width=120))
    return text.getvalue()


def line(report: BenchmarkReport, name: str) -> str:
    """The first line of the tables that begins with an implementation's name."""
    return next(line for line in shown(report).splitlines() if line.split()[:1] == [name])


def test_cases_go_from_few_tokens_to_many(report: BenchmarkReport) -> None:
    assert [(case.head, case.dtype, case.n_tokens) for case in report.cases] == [
        (HEAD, "float32", 300),
        (HEAD, "float32", 600),
    ]


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("name", ["cynosure", "eager", "limit", "limit-chunked"])
def test_whoever_is_right_gets_a_figure(report: BenchmarkReport, name: str, case: int) -> None:
    found = row(report, name, case)
    assert (found.status, found.reason, len(found.seconds)) == ("ok", None, 2)
    assert min(found.seconds) <= (found.seconds_median or 0) <= max(found.seconds)


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("wrong_when_large", "red", "with 300 tokens dweight is off by 1.0e-05, allowed"),
        ("slow", "cut off", "cut off after 10 s with 300 tokens"),
        ("crash", "failed", "of building for 256 tokens: ended by SIGABRT"),
        ("unavailable", "missing", "needs a GPU"),
    ],
)
def test_whoever_is_not_gets_a_reason(report: BenchmarkReport, name: str, status: str, reason: str) -> None:
    for case in (0, 1):  # who left does not come back
        found = row(report, name, case)
        assert found.status == status
        assert (found.reason or "").startswith(reason)
        assert found.seconds_median is found.peak_extra_bytes is None
        assert found.to_json()["seconds"] == []
    assert line(report, name).split()[1] == status.split()[0]
    assert reason in shown(report)


def test_the_table_sets_ours_against_the_others(report: BenchmarkReport) -> None:
    case = report.cases[0]
    ours, eager = row(report, "cynosure").seconds_median, row(report, "eager").seconds_median
    assert ours
    assert eager
    assert f"ours / eager: {ours / eager:.2f} of the time" in shown(report)
    cells = line(report, "eager").split()
    assert cells[1] == f"{eager:.3f}"
    assert cells[3:5] == [f"{eager / ours:.2f}", f"{eager / (case.limit_seconds or 0):.2f}"]
    assert case.limit_seconds == min(row(report, name).seconds_median for name in ("limit", "limit-chunked"))


def test_json_holds_no_nan() -> None:
    red = Result("x", "x", "red", "wrong", errors={"loss": float("nan"), "dweight": 0.5})
    assert red.to_json()["errors"] == {"loss": None, "dweight": 0.5}


def test_the_report_says_what_its_figures_depend_on(report: BenchmarkReport) -> None:
    record = json.loads(json.dumps(report.to_json()))
    assert {"bench", "command", "date", "settings", "environment", "cases", "skipped"} == set(record)
    about = record["environment"]
    assert about["threads"] >= 1
    assert about["versions"]["torch"]
    assert all(about[key] for key in ("cpu", "blas", "class", "python", "platform"))
    assert "commit" in about
    assert record["settings"]["runs"] == 2
    (ours,) = (row for row in record["cases"][1]["rows"] if row["contestant"] == "cynosure")
    assert set(ours["errors"]) == set(ours["allowed"]) == {"loss", "dhidden", "dweight"}
    assert ours["seconds_median"] == sum(ours["seconds"]) / 2
    assert ours["peak_extra_bytes"] == max(ours["extra_bytes"])
    assert ours["memory_method"]


def test_a_head_that_is_not_installed_is_said(report: BenchmarkReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.prepare_subject", lambda *_: {"unavailable": "not here"})
    skipped = run(LossBenchmark(heads=("smollm2",)), [])
    assert skipped.skipped == {"smollm2": "not here"}
    assert "smollm2 skipped: not here" in shown(skipped)


def test_the_command(prepared: Prepared, invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "loss.json"
    code, out, err = invoke(
        "--heads", HEAD, "--implementations", "cynosure,eager", "--dtypes", "bfloat16", "--tokens", "300",
        "--runs", "1", "--format", "json", "--json", str(path), "--quiet",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(path.read_text())
    assert json.loads(out)["command"].startswith(f"python -m benchmarks loss --heads {HEAD} ")
    (case,) = json.loads(out)["cases"]
    plan = case["rows"][0]["plan"]
    assert (plan["products"], plan["chunk_tokens"]) == ("torch", 300)
    assert case["accumulator_bytes"] == plan["accumulator_bytes"] == 0  # one chunk needs none
    assert case["rows"][1]["plan"] is None
    assert [(row["contestant"], row["status"]) for row in case["rows"]] == [("cynosure", "ok"), ("eager", "ok")]
    assert list(tmp_path.iterdir()) == [path]


def test_the_forward_alone(prepared: Prepared, invoke: Invoke) -> None:
    names = ["cynosure", "stats", "stats-16", "eager", "limit", "limit-best", "limit-chunked"]
    code, out, _ = invoke(
        "--heads", HEAD, "--implementations", ",".join(names), "--dtypes", "float32", "--tokens", "300", "--runs", "1",
        "--forward", "--format", "json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert report["settings"]["backward"] is False
    (case,) = report["cases"]
    assert [row["contestant"] for row in case["rows"]] == names
    for row in case["rows"]:
        assert row["status"] == "ok", row
        assert list(row["errors"] or {}) == ([] if row["contestant"].startswith("limit") else ["loss"])


def test_statistics_have_no_backward(prepared: Prepared, invoke: Invoke) -> None:
    _, out, _ = invoke(
        "--heads", HEAD, "--implementations", "stats,eager", "--dtypes", "float32", "--tokens", "300", "--runs", "1",
        "--format", "json",
    )  # fmt: skip
    assert [row["contestant"] for row in json.loads(out)["cases"][0]["rows"]] == ["eager"]


def test_the_command_fails_where_ours_is_red(
    prepared: Prepared, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "cynosure", replace(planted("scaled"), name="cynosure"))
    arguments = (
        "--heads",
        HEAD,
        "--implementations",
        "cynosure",
        "--dtypes",
        "float32",
        "--tokens",
        "300",
        "--runs",
        "1",
    )
    code, out, err = invoke(*arguments)
    assert code == 1
    assert "red" in line_of(out, "cynosure")
    assert err.endswith("cynosure: a check of our own gradients failed\n")
    assert err.startswith(f"[0/4] {HEAD}: preparing inputs\n")


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.split()[:1] == [name])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--implementations", "nobody"), "unknown implementation 'nobody'"),
        (("--implementations", ""), "name at least one implementation"),
        (("--heads", "synthetic:0x3"), "unknown head 'synthetic:0x3': expected one of gemma3-270m, smollm2"),
        (("--dtypes", "int8"), "unknown dtype 'int8': expected one of float32, bfloat16"),
        (("--tokens", "many"), "--tokens: 'many' is not a whole number"),
        (("--tokens", "0"), "must all be positive"),
        (("--runs", "0"), "must all be positive"),
        (("--cutoff", "0"), "must all be positive"),
        (("--json", "nowhere/loss.json"), "--json: no such folder: nowhere"),
    ],
)
def test_bad_usage_is_said_in_one_line(invoke: Invoke, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("cynosure: ")
    assert err.count("\n") == 1
