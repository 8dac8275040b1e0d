"""What is the C++ kernel's own: its exponential, its sums, its threads, and how it comes to be there or not."""

import math
import multiprocessing
import shutil
import subprocess
import sys

import pytest
import torch

from cynosure.loss import token_stats
from cynosure.loss.backends.registry import backends, choose_backend
from cynosure.loss.native import build
from cynosure.loss.native.library import INSTRUCTIONS, library, load
from cynosure.loss.options import RowOptions
from cynosure.loss.pieces import Best, Piece, row_stats
from cynosure.loss.targets import TargetRows

pytestmark = pytest.mark.cpu_only

NATIVE = [
    pytest.param(name, marks=[] if available else pytest.mark.skip(reason=reason))
    for name, available, reason in backends()
    if name.startswith("native-")
]
each_native = pytest.mark.parametrize("name", NATIVE)


def exp_of(x, name):
    y = torch.empty_like(x)
    library().functions.cynosure_exp(
        x.data_ptr(), y.data_ptr(), len(x), INSTRUCTIONS.index(name.removeprefix("native-"))
    )
    return y


def loss_rows(name, z, target, upstream=None, **options):
    rows = TargetRows(target[:, None], torch.ones(len(z), 1, dtype=real(z)), torch.ones(len(z), dtype=real(z)))
    return choose_backend(name)[0].loss_rows(z, rows, RowOptions(**options), upstream)


def stats_rows(name, z, target, **options):
    beta, best = (0.5, 2.0), Best.none(len(z), 2, z.device)
    logit = z.gather(-1, target[:, None])[:, 0]
    piece = Piece(0, z.shape[-1])
    part = choose_backend(name)[0].stats_piece(z, piece, target, logit, RowOptions(**options), best, beta)
    return row_stats(part, target, best, beta)


def real(z):
    return torch.float64 if z.dtype == torch.float64 else torch.float32


@each_native
def test_exp_is_within_two_ulp_of_the_truth(name):
    x = torch.cat([torch.linspace(-87.3, 0, 1_000_003), -torch.logspace(-30, 1.9, 100_001), torch.zeros(1)])
    truth = x.double().exp()
    ulp = 2.0 ** (truth.log2().floor() - 23)
    assert ((exp_of(x, name).double() - truth).abs() / ulp).max() <= 2
    assert exp_of(torch.zeros(1), name).item() == 1


@each_native
def test_exp_at_the_edges(name):
    x = torch.tensor([-math.inf, -1e30, -104.0, -88.0, math.nan])
    assert exp_of(x, name)[:4].tolist() == [0, 0, 0, 0]
    assert exp_of(x, name)[4].isnan()


@each_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_do_not_drift_at_a_million_classes(name, dtype):
    z = torch.full((1, 1_000_003), 0.5, dtype=dtype)
    z[0, 7] = 0.25
    truth = math.log(sum(math.exp(v - 0.25) * n for v, n in ((0.5, 1_000_002), (0.25, 1))))
    assert loss_rows(name, z, torch.tensor([7])).item() == pytest.approx(truth, rel=1e-7)


@each_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 3.0}, {"z_loss": 0.1, "scale": -0.5}])
def test_infinities_and_nan_as_in_the_torch_kernel(name, dtype, special, everywhere, options):
    torch.manual_seed(0)
    z = torch.randn(4, 37, dtype=dtype)
    z[1, slice(None) if everywhere else 5] = special
    z[2, slice(None) if everywhere else 36] = special
    target, up = torch.tensor([3, 5, 7, 36]), torch.full((4,), 0.7, dtype=real(z))
    theirs, dtheirs = None, z.to(real(z), copy=True)
    theirs = loss_rows("torch", dtheirs, target, up, **options)
    ours, dours = None, z.clone()
    ours = loss_rows(name, dours, target, up, **options)
    tol = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(ours, theirs, equal_nan=True, **tol)
    torch.testing.assert_close(dours.to(real(z)), dtheirs, equal_nan=True, **tol)
    capped = {k: v for k, v in options.items() if k in ("softcap", "scale")}
    stats = [stats_rows(n, x.clone(), target, **capped) for n, x in ((name, z), ("torch", z.to(real(z))))]
    for field in ("nll", "lse", "entropy", "rank", "argmax", "confidence", "margin", "brier", "nll_at_temperature"):
        a, b = (getattr(s, field) for s in stats)
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m, field=field: f"{field}: {m}")


@each_native
def test_a_temperature_grid_of_equal_steps_in_1_over_t(name):
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 8), torch.randn(1000, 8) * 3
    target = torch.randint(1000, (5,))
    temperatures = [1 / (0.25 + 0.25 * i) for i in range(19)]
    shuffled = [temperatures[i] for i in torch.randperm(19)]
    for grid in (temperatures, shuffled, [0.3, 1.0, 7.0]):
        stats = token_stats(hidden, weight, target, temperatures=grid, backend=name)
        logits = (hidden @ weight.T).double()
        truth = torch.stack([-(logits / t).log_softmax(-1).gather(1, target[:, None])[:, 0] for t in grid], 1)
        torch.testing.assert_close(stats.nll_at_temperature.double(), truth, rtol=3e-6, atol=3e-6)


@each_native
def test_the_result_does_not_depend_on_the_number_of_threads(name):
    torch.manual_seed(0)
    z, target = torch.randn(64, 5003), torch.randint(5003, (64,))
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            dz = z.clone()
            results.append((loss_rows(name, dz, target, torch.ones(64)), dz))
    finally:
        torch.set_num_threads(before)
    for loss, dz in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(dz, results[0][1])


def in_worker(queue):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    z = torch.randn(64, 5003)
    name = choose_backend("native")[0].name
    queue.put(loss_rows(name, z, torch.arange(64)).sum().item())


@pytest.mark.skipif(not library().functions, reason="there is no C++ kernel here")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_worker_process(method):
    here = multiprocessing.get_context("spawn").SimpleQueue()
    in_worker(here)
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    worker = context.Process(target=in_worker, args=(queue,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert queue.get() == here.get()


# ---- how it comes to be there ----------------------------------------------------------------------------------------


def test_without_a_compiler_the_reason_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / build.LIBRARY).write_bytes(b"left over")
    reason = build.build(tmp_path)
    assert "no C++ compiler" in reason
    found = load(tmp_path)
    assert found.functions is None
    assert reason in found.reason
    assert "python -m cynosure.loss.native.build" in found.reason


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("/no/such/compiler -x", "could not be run"), (f"{sys.executable} --no-such-flag", "failed")],
)
def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch, compiler, message):
    monkeypatch.setenv("CXX", compiler)
    reason = build.build(tmp_path)
    assert message in reason
    assert compiler.split()[0] in reason
    assert sorted(p.name for p in tmp_path.iterdir()) == [build.MISSING]


def test_a_library_that_is_none_is_a_reason(tmp_path):
    assert "was not compiled" in load(tmp_path).reason
    (tmp_path / build.LIBRARY).write_bytes(b"not a library")
    assert "cannot be loaded" in load(tmp_path).reason


@pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler")
def test_a_library_of_other_sources_is_refused(tmp_path):
    source = tmp_path / "old.c"
    source.write_text("long cynosure_layout() { return 1; } long cynosure_instructions() { return 1; }")
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", tmp_path / build.LIBRARY], check=True)
    assert "other sources" in load(tmp_path).reason


WITHOUT = """
import torch, cynosure
from cynosure.loss.native import library
library.HERE = library.Path({folder!r})
from cynosure.loss.backends.registry import backends, choose_backend
assert [s.name for s in backends() if s.available] == ["torch"]
assert choose_backend(None)[0].name == "torch"
print(cynosure.linear_cross_entropy(torch.zeros(1, 2), torch.zeros(8, 2), torch.tensor([3])))
try:
    choose_backend("native")
except ValueError as error:
    print(error)
"""


def test_without_the_library_torch_does_the_work(tmp_path):
    code = WITHOUT.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tensor(2.0794)\nbackend 'native' cannot run here: it was not compiled")


def test_elsewhere_than_on_a_cpu():
    assert not any(status.available for status in backends("meta") if status.name.startswith("native-"))
    with pytest.raises(ValueError, match="'native' cannot run here: it needs tensors on the CPU"):
        choose_backend("native", "cuda")


@pytest.mark.skipif(not library().functions, reason="there is no C++ kernel here")
def test_none_chooses_the_best_instructions():
    assert choose_backend(None)[0] is choose_backend("native")[0]
    assert choose_backend(None)[0].name == f"native-{library().instructions[0]}"
