"""The benchmarks of log-probabilities and of the divergence: their check, and all of them once on a tiny head."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import published
from benchmarks.harness import complaints
from benchmarks.implementation import Implementation
from benchmarks.loss.implementations import Inputs
from benchmarks.loss.inputs import load_inputs
from benchmarks.loss.prepared import Prepared
from benchmarks.primitives.benchmark import DivergenceBenchmark, LogprobsBenchmark, PrimitiveBenchmark, PrimitiveWorker
from benchmarks.primitives.implementations import Outputs, Step, build_logprobs, teacher_of, upstream_of
from benchmarks.primitives.reference import TRUTHS, distances_of
from tests.benchmarks.conftest import HEAD, Invoke

BENCHMARKS = {kind.name: kind(heads=(HEAD,), tokens=(300,)) for kind in (LogprobsBenchmark, DivergenceBenchmark)}
RESULTS = ("logprobs", "entropy", "dhidden", "dweight")
EVERYONE = [
    pytest.param(kind, name, marks=[pytest.mark.exhaustive] if name == "trl" else [])  # takes long to import
    for kind, benchmark in BENCHMARKS.items()
    for name in benchmark.implementations
    if name != "compile"
]


@pytest.fixture(scope="module")
def ready(prepared: Prepared) -> Prepared:
    """The head with the truths of both benchmarks."""
    for benchmark in BENCHMARKS.values():
        benchmark.prepare(HEAD, lambda line: None)
    return prepared


def answer_of(benchmark: PrimitiveBenchmark, implementation: Implementation, ready: Prepared, dtype: str) -> dict:
    """What a worker says to `build`, and if that went well to `run`."""
    worker = PrimitiveWorker(implementation, benchmark, ready, dtype)
    return worker.answer({"task": "build", "n_tokens": 300}) or worker.answer({"task": "run", "compare": True})


def float64_values(kind: str, inputs: Inputs, hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Through full float64 logits."""
    logits = F.linear(hidden, weight)
    if kind == "logprobs":
        distribution = torch.distributions.Categorical(logits=logits)
        return distribution.log_prob(inputs.target), distribution.entropy()
    teacher = teacher_of(inputs)
    wanted = F.linear(teacher.hidden.double(), teacher.weight.double()).softmax(1)
    return ((F.cross_entropy(logits, wanted) - torch.distributions.Categorical(wanted).entropy().mean()),)


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_truth_is_that_of_autograd(ready: Prepared, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.loss.reference.BLOCK_BYTES", 900 * 8 * 128)
    inputs = load_inputs(ready, "float32", 300)
    hidden, weight = (x.detach().double().requires_grad_() for x in inputs[:2])
    values = float64_values(kind, inputs, hidden, weight)
    upstream = [x.double() for x in upstream_of(inputs)] if kind == "logprobs" else None
    gradients = torch.autograd.grad(values, (hidden, weight), upstream)
    found = distances_of(Outputs(tuple(x.detach() for x in values), *gradients), TRUTHS[kind](inputs))
    assert len(found) == len(BENCHMARKS[kind].values) + 2
    assert max(found) < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "name"), EVERYONE)
def test_a_right_implementation_is_green(ready: Prepared, kind: str, name: str, dtype: str) -> None:
    benchmark = BENCHMARKS[kind]
    answer = answer_of(benchmark, benchmark.implementations[name], ready, dtype)
    if "unavailable" in answer:
        pytest.skip(answer["unavailable"])
    assert answer["seconds"] > 0
    assert complaints(answer.get("errors", {}), answer.get("allowed", {})) == ""
    assert list(answer.get("errors", {})) == ([] if "limit" in name else [*benchmark.values, "dhidden", "dweight"])


@pytest.mark.parametrize(("number", "what"), list(enumerate(RESULTS)))
def test_a_wrong_implementation_is_red(ready: Prepared, number: int, what: str) -> None:
    def build(inputs: Inputs) -> Step:
        """One of the results is a hundred-thousandth too large."""
        right = build_logprobs(inputs)

        def step() -> Outputs:
            outputs = right()
            results = [*outputs.values, outputs.dhidden, outputs.dweight]
            results[number] = results[number] * (1 + 1e-5)
            return Outputs(tuple(results[:2]), *results[2:])

        return step

    answer = answer_of(BENCHMARKS["logprobs"], Implementation("x", "planted", build), ready, "float32")
    assert complaints(answer["errors"], answer["allowed"]).startswith(f"{what} is off by 1.0e-05")


@pytest.mark.exhaustive
@pytest.mark.benchmark
@pytest.mark.parametrize("kind", BENCHMARKS)
def test_the_command(ready: Prepared, kind: str, invoke: Invoke, tmp_path: Path) -> None:
    path, names = tmp_path / "report.json", ["cynosure", "eager", "limit", "limit-chunked"]
    code, out, err = invoke(
        "--heads", HEAD, "--tokens", "300", "--dtypes", "bfloat16", "--runs", "2", "--implementations", ",".join(names),
        "--json", str(path), "--quiet", command=kind,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "ours / eager: " in out
    report = json.loads(path.read_text())
    assert (report["bench"], report["settings"]["runs"]) == (kind, 2)
    assert f"| **`{BENCHMARKS[kind].implementations['cynosure'].title}`** | 0.0" in published.primitives({"x": report})
    (case,) = report["cases"]
    assert [(row["contestant"], row["status"]) for row in case["rows"]] == [(name, "ok") for name in names]
    limits = [row["seconds_median"] for row in case["rows"] if row["contestant"] in ("limit", "limit-chunked")]
    assert case["limit_seconds"] == min(limits)


def test_the_defaults() -> None:
    assert LogprobsBenchmark().tokens_of("smollm2") == [2048]
    with pytest.raises(ValueError, match="must all be positive"):
        replace(BENCHMARKS["kl"], runs=0)
