"""What is the Triton kernels' own: where they write, how far they reach, and when they can run.

They run in Triton's interpreter (`make test-triton`). It has no races and no barriers: `test_gpu_report.py` looks for
these in what is compiled.
"""

import math
import subprocess
import sys

import pytest
import torch

from cynosure.loss.backends import torch_rows, triton_rows
from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.options import RowOptions
from cynosure.loss.pieces import Best, Piece, put_together, row_stats
from cynosure.loss.targets import TargetRows
from tests.loss.cases import KINDS
from tests.loss.interpreter import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="the kernels run in Triton's interpreter: make test-triton")

INF, NAN = math.inf, math.nan
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "scale": -0.7}
VOCABULARIES = [1, 2, 3, 7, 8, 9, 31, 33, 255, 257, 1000, 4095, 4097, 5003]
STATISTICS = ("nll", "lse", "entropy", "rank", "argmax", "confidence", "margin", "brier", "top_ids", "top_logprobs")


def real(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_rows(kind, n_rows, vocab_size, dtype, n_classes=3, class_weight=False, std=3.0):
    """Logits, targets of this kind, and the class weights if there are any."""
    torch.manual_seed(0)
    acc = real(dtype)
    z = (torch.randn(n_rows, vocab_size) * std).to(dtype)
    k = torch.rand(n_rows, dtype=acc) + 0.5
    target = {
        "indices": lambda: (torch.randint(vocab_size, (n_rows, 1)), torch.ones(n_rows, 1, dtype=acc)),
        "sparse": lambda: (torch.randint(min(5, vocab_size), (n_rows, n_classes)), torch.rand(n_rows, n_classes)),
        "dense": lambda: (None, torch.randn(n_rows, vocab_size).softmax(-1)),
    }[kind]()
    weight = torch.rand(vocab_size, dtype=acc).masked_fill_(torch.rand(vocab_size) < 0.2, 0) if class_weight else None
    return z, TargetRows(target[0], target[1].to(acc), k), weight


def compare(z, target, options, upstream, tol, **parts):
    """Loss and gradient of the kernel and of the torch rows, on the same logits in their accumulation dtype."""
    theirs = z.to(real(z.dtype), copy=True)
    truth = torch_rows.loss_rows(theirs, target, options, upstream)
    ours = z.clone()
    loss = choose_backend("triton")[0].loss_rows(ours, target, options, upstream)
    torch.testing.assert_close(loss, truth, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=tol, atol=tol, equal_nan=True)


@interpreted
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_any_vocabulary(options, kind, dtype, vocab_size):
    z, target, weight = make_rows(kind, 2, vocab_size, dtype, class_weight=bool(options))
    options = RowOptions(**options, class_weight=weight)
    compare(z, target, options, torch.tensor([0.7, -1.3]), 1e-5 if dtype == torch.float32 else 2e-3)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_million_classes(dtype):
    z, target, _ = make_rows("indices", 1, 1_000_003, dtype)
    compare(z, target, RowOptions(label_smoothing=0.1), torch.ones(1), 1e-6 if dtype == torch.float32 else 2**-7)
    assert_statistics(z)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_do_not_drift_at_a_million_classes(dtype):
    z = torch.full((1, 1_000_003), 0.5, dtype=dtype)
    z[:, ::3] = 0.3
    target = TargetRows(torch.tensor([[7]]), torch.ones(1, 1), torch.ones(1))
    part = choose_backend("triton")[0].loss_piece(z, Piece(0, 1_000_003), target, RowOptions())
    assert part.exp.item() == pytest.approx((z.double() - 0.5).exp().sum().item(), rel=1e-7)


@interpreted
def test_bfloat16_gradients_are_rounded_once():
    z, target, _ = make_rows("indices", 4, 300, torch.bfloat16)
    truth, up = z.double(), torch.full((4,), 0.7)
    torch_rows.loss_rows(truth, target._replace(probability=target.probability.double()), RowOptions(), up.double())
    choose_backend("triton")[0].loss_rows(z, target, RowOptions(), up)
    ulp = 2.0 ** (truth.abs().log2().floor() - 7)
    assert ((z.double() - truth).abs() <= 0.501 * ulp).all()


@interpreted
@pytest.mark.parametrize("n_classes", [2, 4, 5, 9])
def test_targets_of_more_classes_than_are_taken_at_a_time(n_classes, monkeypatch):
    """Some of them twice, in different blocks: at each the gradient is the one of all of them."""
    monkeypatch.setattr(triton_rows.kernels(), "MOST_CLASSES", 4)
    z, target, weight = make_rows("sparse", 3, 50, torch.float64, n_classes=n_classes, class_weight=True)
    compare(z, target, RowOptions(**EVERYTHING, class_weight=weight), torch.ones(3, dtype=torch.float64), 1e-12)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("special", [INF, -INF, NAN])
@pytest.mark.parametrize("at", [5, 36, slice(None)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"softcap": 3.0}, {"z_loss": 0.1, "scale": -0.5}, {"scale": 0.0}], ids=str
)
def test_infinities_and_nan_as_in_the_torch_rows(options, at, special, dtype):
    z, target, _ = make_rows("indices", 3, 37, dtype)
    z[1, at] = special
    target.classes[:] = torch.tensor([[3], [5], [36]])
    compare(z, target, RowOptions(**options), torch.full((3,), 0.7), 1e-5 if dtype == torch.float32 else 1e-2)
    capped = {name: value for name, value in options.items() if name in ("softcap", "scale")}
    assert_statistics(z, target.classes[:, 0], topk=0, **capped)


def assert_statistics(z, index=None, topk=5, **options):
    """The kernel's statistics of these rows, whole and in pieces, are those of the torch rows."""
    index = torch.arange(len(z)) if index is None else index
    logit, options, beta = z.gather(-1, index[:, None])[:, 0], RowOptions(**options), (0.5, 2.0)
    found = []
    for name, x in (("triton", z), ("torch", z.to(real(z.dtype), copy=True))):
        best = Best.none(len(z), topk, z.device)
        part = choose_backend(name)[0].stats_piece(
            x, Piece(0, z.shape[-1]), index, logit.to(x.dtype), options, best, beta
        )
        found.append(row_stats(part, index, best, beta))
    for name in STATISTICS:
        ours, theirs = (getattr(stats, name) for stats in found)
        torch.testing.assert_close(
            ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )


@interpreted
def test_a_nan_beside_an_infinity_is_the_largest():
    z = torch.randn(2, 40)
    z[0, [7, 9]] = torch.tensor([NAN, INF])
    part = choose_backend("triton")[0].stats_piece(
        z, Piece(0, 40), torch.tensor([0, 1]), z[:, 0], RowOptions(), Best.none(2, 0, z.device), []
    )
    assert part.top[0].isnan()
    assert part.argmax.tolist() == [7, z[1].index_fill(0, torch.tensor(1), -INF).argmax().item()]


@interpreted
@pytest.mark.parametrize("softcap", [1e-30, 1e-3, 1e4, 1e30])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_caps_of_any_size(scale, softcap):
    z, target, _ = make_rows("indices", 3, 100, torch.float32)
    compare(z, target, RowOptions(softcap=softcap, scale=scale), torch.ones(3), 1e-5)


@interpreted
def test_the_cap_is_exact_to_a_unit_in_the_last_place():
    x = torch.cat([torch.linspace(-12, 12, 60), torch.logspace(-12, 1, 40)])
    z = torch.stack([torch.zeros_like(x), x], -1)
    part = choose_backend("triton")[0].stats_piece(
        z, Piece(0, 2), torch.ones(len(x), dtype=torch.int64), z[:, 1], RowOptions(softcap=1.0),
        Best.none(len(x), 0, z.device), [],
    )  # fmt: skip
    truth = z[:, 1].double().tanh()
    assert ((part.target_z - truth).abs() <= 2 * 2.0 ** (truth.abs().log2().floor() - 23)).all()


@interpreted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_rows_that_do_not_count_are_not_read(options, kind):
    z, target, weight = make_rows(kind, 4, 50, torch.float32, class_weight=bool(options))
    options, up = RowOptions(**options, class_weight=weight), torch.tensor([0.7, NAN, 1.0, NAN])
    counts = torch.tensor([True, False, True, False])
    z[~counts] = NAN
    backend, ours, target = choose_backend("triton")[0], z.clone(), target._replace(counted=counts)
    part = [backend.loss_piece(z[:, s], Piece(s.start, 50), piece_of(target, s), options) for s in SLICES]
    loss = backend.loss_rows(ours, target, options, up)
    assert loss[~counts].tolist() == [0, 0]
    assert (ours[~counts] == 0).all()
    assert ours[counts].isfinite().all()
    torch.testing.assert_close(put_together(part).loss(target.k, options.z_loss).float(), loss)


@interpreted
@pytest.mark.parametrize("vocab_size", [50, 2500])
@pytest.mark.parametrize("kind", ["indices", "sparse"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_entropy_as_a_term_of_the_loss(softcap, kind, vocab_size):
    """Of rows that do not count too, of an impossible class, and in two pieces."""
    z, target, _ = make_rows(kind, 4, vocab_size, torch.float32)
    z[2, 3], z[1] = -torch.inf, NAN
    counts = torch.tensor([True, False, True, True])
    target = target._replace(
        classes=target.classes.masked_fill(target.classes == 3, 4), entropy=torch.tensor([0.7, NAN, -1.3, 2.0]),
        counted=counts,
    )  # fmt: skip
    options, up = RowOptions(softcap=softcap, scale=0.7), torch.tensor([0.7, NAN, 1.0, -2.0])
    compare(z, target, options, up, 1e-5)
    backend, z = choose_backend("triton")[0], z[counts]
    target = TargetRows(target.classes[counts], target.probability[counts], target.k[counts], None, up[counts])
    slices = slice(0, 21), slice(21, vocab_size)
    part = [backend.loss_piece(z[:, s], Piece(s.start, vocab_size), target, options) for s in slices]
    part, truth = put_together(part), torch_rows.loss_piece(z.double(), Piece(0, vocab_size), target, options)
    torch.testing.assert_close(part.surprise / part.exp, truth.surprise / truth.exp, rtol=1e-5, atol=1e-6)


SLICES = slice(0, 21), slice(21, 50)


def piece_of(target, columns):
    return target if target.classes is not None else target._replace(probability=target.probability[:, columns])


GUARD, GUARDS = 64, -7.0


class Guards:
    """Tensors with guard words before and after them, which stay what they are."""

    def __init__(self):
        self.memory = []

    def empty(self, *shape, dtype=torch.float32, device=None):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        n = math.prod(shape)
        memory = torch.full((n + 2 * GUARD,), GUARDS, dtype=torch.float64).to(dtype)
        self.memory.append((memory, n))
        return memory[GUARD : GUARD + n].view(shape)

    def around(self, x):
        return self.empty(*x.shape, dtype=x.dtype).copy_(x)

    def check(self):
        assert self.memory
        for memory, n in self.memory:
            assert (memory[:GUARD] == GUARDS).all()
            assert (memory[GUARD + n :] == GUARDS).all()


@interpreted
@pytest.mark.parametrize("vocab_size", [1, 37, 4095, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_outside_its_buffer(kind, dtype, vocab_size, monkeypatch):
    guards, backend = Guards(), choose_backend("triton")[0]
    launch = triton_rows.kernels()
    z, target, _ = make_rows(kind, 3, vocab_size, dtype)
    rows = guards.empty(3, vocab_size + 5, dtype=dtype).fill_(9)
    z, before = rows[:, 2 : vocab_size + 2].copy_(z), z.clone()
    index, piece = torch.tensor([0, vocab_size // 2, vocab_size - 1]), Piece(0, vocab_size)
    target = TargetRows(*(None if x is None else guards.around(x) for x in target[:3]))
    for module in (launch.torch, triton_rows.torch):
        monkeypatch.setattr(module, "empty", guards.empty)
    best = Best.none(3, 4, z.device)
    backend.stats_piece(z, piece, index, before[:, 0], RowOptions(), best, [0.5, 1.0, 2.0])
    backend.loss_piece(z, piece, target, RowOptions(label_smoothing=0.1))
    assert torch.equal(z, before)
    backend.loss_rows(z, target, RowOptions(**EVERYTHING), guards.around(torch.ones(3)))
    assert not torch.equal(z, before) or vocab_size == 1
    assert (rows[:, :2] == 9).all()
    assert (rows[:, vocab_size + 2 :] == 9).all()
    guards.check()


@interpreted
@pytest.mark.parametrize(("n_rows", "stride"), [(2, 2**31 + 24), (4, 2**30 + 8)])
def test_rows_more_than_two_billion_elements_apart(n_rows, stride, tmp_path):
    """In a sparse file of which only the rows are ever touched."""
    memory = torch.from_file(
        str(tmp_path / "sparse"), shared=True, size=(n_rows - 1) * stride + 37, dtype=torch.float16
    )
    z = memory.as_strided((n_rows, 37), (stride, 1))
    values, target, _ = make_rows("indices", n_rows, 37, torch.float16)
    theirs, backend = values.float(), choose_backend("triton")[0]
    truth = torch_rows.loss_rows(theirs, target, RowOptions(), torch.ones(n_rows))
    z.copy_(values)
    stats = backend.stats_piece(
        z, Piece(0, 37), target.classes[:, 0], z[:, 0], RowOptions(), Best.none(n_rows, 0, z.device), [1.0]
    )
    torch.testing.assert_close(backend.loss_rows(z, target, RowOptions(), torch.ones(n_rows)), truth)
    torch.testing.assert_close(z.float(), theirs, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(stats.tempered[0], stats.exp)


def test_where_it_can_run(monkeypatch):
    backend = triton_rows.TritonRows()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for device in ("cpu", "mps", "xpu", "meta"):
        assert (
            backend.unavailable(torch.device(device)) == f"it needs a CUDA or ROCm device, the tensors are on {device}"
        )
    monkeypatch.setattr(triton_rows, "find_spec", lambda name: None)
    triton_rows.reason.cache_clear()
    assert backend.unavailable(torch.device("cuda")) == "triton is not installed: pip install triton"
    triton_rows.reason.cache_clear()


def test_an_old_gpu_is_told(monkeypatch):
    monkeypatch.setattr(triton_rows, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, why in (((9, 0), None), ((7, 5), "it needs compute capability 8.0, this GPU has 7.5")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, capability=capability: capability)
        triton_rows.reason.cache_clear()
        assert triton_rows.TritonRows().unavailable(torch.device("cuda:0")) == why
    triton_rows.reason.cache_clear()


CALL = """
import sys, torch
from cynosure.loss import cross_entropy
cross_entropy(torch.ones(1, 3), torch.tensor([1]))
print(*(name for name in sys.modules if name.startswith("cynosure.loss.triton")))
"""


def test_the_kernels_are_not_imported_before_one_of_them_runs():
    """Nor is triton for their sake. torch may have imported it."""
    assert subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=True).stdout == "\n"
