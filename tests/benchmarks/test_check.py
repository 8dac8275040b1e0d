"""The check that stands before every figure: it passes what is right and fails what is not."""

import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness import complaints
from benchmarks.implementation import Implementation
from benchmarks.loss.benchmark import LossBenchmark, LossWorker
from benchmarks.loss.implementations import IMPLEMENTATIONS, Inputs, Outputs
from benchmarks.loss.inputs import load_inputs
from benchmarks.loss.prepared import Prepared
from benchmarks.loss.reference import compute_truth, errors_of, probes
from tests.benchmarks.planted import planted


def answers(implementation: Implementation, prepared: Prepared, dtype: str = "float32", n_tokens: int = 300) -> dict:
    """What a worker says to `build`, and if that went well to `run`."""
    worker = LossWorker(implementation, LossBenchmark(), prepared, dtype)
    built = worker.answer({"task": "build", "n_tokens": n_tokens})
    return built if set(built) - {"plan"} else worker.answer({"task": "run", "compare": True})


def float64_outputs(inputs: Inputs) -> Outputs:
    """By autograd, through full float64 logits."""
    hidden, weight = (x.detach().double().requires_grad_() for x in inputs[:2])
    loss = F.cross_entropy(F.linear(hidden, weight), inputs.target)
    return Outputs(loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("block_bytes", [1, 900 * 8 * 128, 2**30])
def test_truth_is_that_of_autograd(prepared: Prepared, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.loss.reference.BLOCK_BYTES", block_bytes)
    inputs = load_inputs(prepared, "float32", 300)
    errors = errors_of(float64_outputs(inputs), compute_truth(inputs))
    assert max(errors.values()) < 1e-13


def test_projections_estimate_the_frobenius_error(prepared: Prepared) -> None:
    inputs = load_inputs(prepared, "float32", 300)
    right = float64_outputs(inputs)
    noise = torch.randn(right.dweight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wrong = right._replace(dweight=right.dweight + 0.01 * noise * right.dweight.norm() / noise.norm())
    assert errors_of(wrong, compute_truth(inputs))["dweight"] == pytest.approx(0.01, rel=0.25)


def test_probes_are_the_same_at_every_call() -> None:
    for first, second in zip(probes(24, 900), probes(24, 900), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["cynosure", "eager", "eager-float", "torch-fused", "trl", "jax"])
def test_a_right_implementation_is_green(prepared: Prepared, name: str, dtype: str) -> None:
    answer = answers(IMPLEMENTATIONS[name], prepared, dtype)
    if "unavailable" in answer:
        pytest.skip(answer["unavailable"])
    assert complaints(answer["errors"], answer["allowed"]) == ""
    assert answer["seconds"] > 0


@pytest.mark.parametrize(
    ("name", "what"), [("scaled", "dweight"), ("one_row", "dhidden"), ("offset", "loss"), ("nan", "loss")]
)
def test_a_wrong_implementation_is_red(prepared: Prepared, name: str, what: str) -> None:
    answer = answers(planted(name), prepared)
    assert complaints(answer["errors"], answer["allowed"]).startswith(f"{what} is off by ")


def test_the_limit_is_not_checked(prepared: Prepared) -> None:
    for name in ("limit", "limit-chunked"):
        assert "errors" not in answers(IMPLEMENTATIONS[name], prepared)


def test_chunked_products_are_the_whole_ones(prepared: Prepared) -> None:
    from benchmarks.loss.limit import chunked_gemms, whole_gemms

    inputs = load_inputs(prepared, "float32", 600)
    whole, chunked = whole_gemms(inputs, "torch"), chunked_gemms(inputs, "torch")
    torch.testing.assert_close(chunked.dhidden, whole.dhidden)
    torch.testing.assert_close(chunked.dweight, whole.dweight)


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("raise", {"failed": "RuntimeError: no room"}),
        ("unavailable", {"unavailable": "needs a GPU"}),
        ("not_installed", {"unavailable": "a_peer_that_is_not_there is not installed"}),
    ],
)
def test_a_reason_is_given(prepared: Prepared, name: str, reply: dict[str, str]) -> None:
    assert answers(planted(name), prepared) == reply


def test_an_older_torch_is_named(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    for name in ("torch-fused", "torch-chunked"):
        assert "has no F.linear_cross_entropy" in answers(IMPLEMENTATIONS[name], prepared)["unavailable"]


def test_what_cce_lacks_is_named(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.loss.implementations.find_spec", lambda name: None if name == "triton" else object()
    )
    assert answers(IMPLEMENTATIONS["cce"], prepared)["unavailable"].startswith("cut_cross_entropy imports triton")


def test_the_parent_holds_no_torch(prepared: Prepared) -> None:
    code = (
        "import pickle, sys; import benchmarks.__main__, benchmarks.table; "
        "import benchmarks.loss.benchmark, benchmarks.score.benchmark, benchmarks.train.benchmark; "
        "import benchmarks.primitives.benchmark, benchmarks.trainers.benchmark; "
        "pickle.load(sys.stdin.buffer); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(prepared), capture_output=True, check=True)
    assert done.stdout == b"False\n"


@pytest.mark.exhaustive
def test_memory_is_what_a_step_takes_beyond_its_outputs(prepared: Prepared) -> None:
    hungry = answers(planted("hungry"), prepared)["extra_bytes"]
    assert 190 * 2**20 < hungry < 260 * 2**20
    assert answers(IMPLEMENTATIONS["cynosure"], prepared)["extra_bytes"] < 32 * 2**20


PEAKS = """
import sys, torch
from benchmarks import memory
kept = sys.argv[1] == "True"
memory.can_reset_peak = lambda: kept
with memory.PeakMemory() as before:
    pass
with memory.PeakMemory() as found:
    for _ in range(20):  # long enough for a sample
        torch.ones(25 * 2**20)
print("VmHWM" in found.method, before.n_bytes, found.n_bytes)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("kept", [True, False])
def test_both_ways_to_see_the_peak(kept: bool) -> None:
    """In a process of its own, as whoever is measured: a worker of many tests has a history."""
    from benchmarks.memory import can_reset_peak

    if kept and not can_reset_peak():
        pytest.skip("this kernel keeps no peak that can be reset")
    done = subprocess.run([sys.executable, "-c", PEAKS, str(kept)], capture_output=True, text=True, check=True)
    method, before, found = done.stdout.split()
    assert method == str(kept)
    assert int(before) < 20 * 2**20
    assert 90 * 2**20 < int(found) < 130 * 2**20
