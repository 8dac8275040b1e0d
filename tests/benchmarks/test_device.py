"""The benchmark on a GPU, with the CPU in its place: all that is new on the day there is a GPU is the GPU."""

import json
import math
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device as measuring
from benchmarks.device import Cuda, Fake, HostMark, measured, smi, times
from benchmarks.harness import Steps, run, take_turns
from benchmarks.loss import inputs as made_inputs
from benchmarks.loss.implementations import IMPLEMENTATIONS, Outputs
from benchmarks.loss.inputs import eager_errors, make_inputs
from benchmarks.loss.on_device import SHAPES, DeviceLossBenchmark, DeviceWorker
from benchmarks.loss.prepared import Prepared
from benchmarks.loss.reference import compute_truth
from cynosure.loss import devices
from tests.benchmarks.conftest import Invoke
from tests.benchmarks.test_harness import Fake as FakeParticipant

SMI = """#!/bin/sh
case "$*" in
    *driver_version*) echo "580.159.03" ;;
    *) echo "1980 MHz, 1980 MHz, 3201 MHz, 41, 612.30 W, 700.00 W" ;;
esac
"""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _synchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the fake device changes this process."""
    monkeypatch.setattr(devices, "SYNCHRONOUS", devices.SYNCHRONOUS)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.exhaustive
@pytest.mark.benchmark
def test_a_dry_run_from_end_to_end(
    invoke: Invoke, nvidia_smi: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYNOSURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = ["cynosure", "eager", "trl", "liger", "limit"]
    code, out, err = invoke(
        "--device", "fake", "--implementations", ",".join([*names, "jax", "stats"]), "--runs", "1",
        "--format", "json", "--quiet",
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert {"bench", "command", "date", "settings", "environment", "cases", "skipped"} == set(report)
    assert report["bench"] == "loss"
    assert (report["settings"]["device"], report["settings"]["budget_seconds"]) == ("fake", 400.0)
    assert set(report["settings"]) == {*(x.name for x in fields(DeviceLossBenchmark)), "contestants"}
    about = report["environment"]["device"]
    assert about["kind"] == "fake"
    assert "a dry run, no result" in about["name"]
    assert about["driver_version"] == "580.159.03"
    assert [(case["n_tokens"], case["dtype"]) for case in report["cases"]] == [(64, "bfloat16"), (300, "bfloat16")]
    for case in report["cases"]:
        assert [row["contestant"] for row in case["rows"]] == names  # neither what needs a CPU nor what has no backward
        for row in case["rows"]:
            check_row(row)
    plan = report["cases"][0]["rows"][0]["plan"]
    assert (plan["backend"], plan["products"]) == ("torch", "torch")  # the branch of a device


def check_row(row: dict) -> None:
    if row["contestant"] == "liger" and row["status"] == "missing":
        assert "is not installed" in row["reason"]
        return
    assert row["status"] == "ok", row
    assert len(row["seconds"]) == len(row["forward_seconds"]) == len(row["forward_extra_bytes"]) == 1
    assert row["forward_seconds_median"] > 0
    assert row["seconds_median"] > 0
    assert row["device"]["clocks.sm"] == "1980 MHz"
    assert row["device"]["temperature.gpu"] == "41"
    assert row["memory_method"] == "resident set"
    limit = row["contestant"].startswith("limit")
    assert list(row["errors"] or {}) == ([] if limit else ["loss", "dhidden", "dweight"])


@pytest.mark.exhaustive
def test_without_a_gpu_it_says_so_once(invoke: Invoke) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, out, err = invoke("--device", "cuda", "--quiet")
    assert code == 2
    assert err.count("finds no GPU here") == 1
    assert all(f"{head} skipped: --device cuda: torch" in out for head in SHAPES)


def test_an_unknown_device_is_named(invoke: Invoke) -> None:
    code, _, err = invoke("--device", "tpu")
    assert (code, err) == (2, "cynosure: --device: unknown device 'tpu': expected one of cpu, cuda, fake\n")


class Recorded(Fake):
    """Writes down what is asked of it; its clock counts the steps."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0.0

    def mark(self) -> "Recorded.At":
        return Recorded.At(self)

    class At:
        def __init__(self, device: "Recorded") -> None:
            self.device = device

        def record(self) -> None:
            self.seconds = self.device.now
            self.device.log.append("mark")

        def elapsed_time(self, later: "Recorded.At") -> float:
            return 1e3 * (later.seconds - self.seconds)

    def wait(self) -> None:
        self.log.append("wait")

    def start_peak(self) -> int:
        self.log.append("start peak")
        return 100

    def peak(self) -> int:
        return 130

    def step(self) -> str:
        self.now += 0.25
        self.log.append("step")
        return "outcome"


def test_steps_are_timed_between_marks_after_a_warm_up() -> None:
    device = Recorded()
    outcome, reply = measured(device, device.step, 0.6, lambda: device.log.append("look"))
    assert outcome == "outcome"
    assert reply == {"seconds": 0.25, "extra_bytes": 30, "peak_bytes": 130, "memory_method": "resident set"}
    once = ["mark", "step", "mark"]
    assert device.log == [
        *("step", "wait"), *once, "wait", *once, "step", "mark", "look", "wait", "start peak", "step", "wait",
    ]  # fmt: skip


def test_at_least_one_step_and_not_too_many() -> None:
    assert len(times(Recorded(), lambda: None, 3)) == 3
    slow, fast = Recorded(), Recorded()
    measured(slow, slow.step, 0.1)
    measured(fast, fast.step, 1e6)
    assert (slow.log.count("step"), fast.log.count("step")) == (4, 3 + measuring.MOST_REPETITIONS)


def test_clocks_are_read_where_there_is_nvidia_smi(nvidia_smi: None) -> None:
    assert smi()["power.draw"] == "612.30 W"
    assert smi(("driver_version",)) == {"driver_version": "580.159.03"}


def test_and_left_out_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert smi() == {}


def test_cuda_asks_torch(monkeypatch: pytest.MonkeyPatch, nvidia_smi: None) -> None:
    """Every name that is asked for is there; what it answers on a GPU is not tested."""
    properties = SimpleNamespace(name="H", major=9, minor=0, multi_processor_count=132, total_memory=7)
    answers = {
        "is_available": True, "current_device": 0, "synchronize": None, "reset_peak_memory_stats": None,
        "memory_allocated": 5, "max_memory_allocated": 9, "empty_cache": None, "get_device_properties": properties,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: HostMark())
    device = Cuda()
    _, reply = measured(device, lambda: None, 0.0)
    device.release()
    assert (reply["extra_bytes"], reply["peak_bytes"]) == (4, 9)
    assert device.place == torch.device("cuda", 0)
    about = device.about()
    assert (about["name"], about["capability"], about["driver_version"]) == ("H", "9.0", "580.159.03")


@pytest.fixture
def small(tmp_path: Path) -> Prepared:
    return Prepared("small", "random weights", 90, 8, tmp_path, 40, str(torch.__version__))


def test_inputs_are_the_same_for_every_process_and_more_tokens(small: Prepared) -> None:
    torch.manual_seed(5)
    few, many = make_inputs(small, "bfloat16", 10, CPU), make_inputs(small, "bfloat16", 40, CPU)
    assert torch.equal(few.weight, many.weight)
    assert torch.equal(few.hidden, many.hidden[:10])
    assert torch.equal(few.target, many.target[:10])
    assert (many.weight.dtype, many.hidden.shape, int(many.target.max()) < 90) == (torch.bfloat16, (40, 8), True)


def test_without_room_for_full_logits_the_yardstick_is_made_from_fewer_tokens(
    small: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, eager = make_inputs(small, "bfloat16", 40, CPU), made_inputs.build_eager

    def short(inputs):
        if len(inputs.hidden) > 10:
            raise torch.OutOfMemoryError
        return eager(inputs)

    ten = make_inputs(small, "bfloat16", 10, CPU)
    expected = eager_errors(ten, compute_truth(ten))
    monkeypatch.setattr(made_inputs, "build_eager", short)
    assert eager_errors(inputs, compute_truth(inputs)) == expected


def test_an_implementation_out_of_memory_is_named_and_the_next_goes_on(small: Prepared) -> None:
    def build(inputs):
        def step() -> Outputs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB.\nGPU 0 has ...")

        return step

    benchmark = DeviceLossBenchmark(device="fake", heads=("synthetic:90x8",), tokens=(40,), run_seconds=0.01)
    made = benchmark.prepare("synthetic:90x8", lambda _: None)
    hungry = SimpleNamespace(build=build, name="hungry", checked=True)
    worker = DeviceWorker(hungry, benchmark, made, "bfloat16")
    assert worker.answer({"task": "build", "n_tokens": 40}) == {}
    answer = worker.answer({"task": "run", "compare": True})
    assert answer == {"failed": "OutOfMemoryError: CUDA out of memory. Tried to allocate 40.00 GiB."}
    eager = DeviceWorker(IMPLEMENTATIONS["eager"], benchmark, made, "bfloat16")
    eager.answer({"task": "build", "n_tokens": 40})
    assert set(eager.answer({"task": "run", "compare": True})["errors"]) == {"loss", "dhidden", "dweight"}


def test_when_its_time_is_spent_nothing_is_begun_and_no_run_repeated() -> None:
    log: list[str] = []
    first, second = FakeParticipant("first", 1.0, log), FakeParticipant("second", 1.0, log)
    benchmark = DeviceLossBenchmark(device="fake", heads=("synthetic:90x8",), tokens=(7,), runs=3)
    steps = Steps(lambda *_: None, 0)

    def then_late(n_tokens: int) -> None:
        steps.deadline = -math.inf

    first.build = then_late  # type: ignore[method-assign]
    second.process = SimpleNamespace(end=lambda patience: None)  # type: ignore[assignment]
    ours, theirs = take_turns([first, second], 7, benchmark, steps, "")
    assert log == ["first checked"]
    assert (ours.status, ours.seconds) == ("ok", [1.0])
    assert (theirs.status, theirs.reason) == ("cut off", "not begun: the benchmark's time for it was spent")


def test_every_head_has_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("benchmarks.harness.time.monotonic", lambda: 1000.0)
    monkeypatch.setattr(
        "benchmarks.harness.prepare_subject", lambda _, __, steps: seen.append(steps.deadline) or {"unavailable": "no"}
    )
    run(DeviceLossBenchmark(device="fake", heads=tuple(SHAPES), budget_seconds=300.0), [])
    assert seen == [1100.0, 1200.0, 1300.0]
