"""Who does the matrix products: each provider right in every layout, chosen once, remembered, overridable."""

import json
import os
import subprocess
import sys

import pytest
import torch

from cynosure.loss import explain, linear_cross_entropy, token_stats
from cynosure.loss.linear import matmul
from cynosure.loss.matmul import rivals, trials
from cynosure.loss.matmul.choice import VARIABLE, choose_gemm
from cynosure.loss.matmul.openblas import find_openblas
from cynosure.loss.matmul.rivals import native_matmul, takes, why_missing
from cynosure.loss.matmul.weight_sum import WeightSum
from tests.loss import oracle
from tests.loss.cases import assert_same, evaluate, make_case
from tests.loss.probes import assert_three_way, rms_error

pytestmark = pytest.mark.cpu_only

CPU = torch.device("cpu")
has_openblas = pytest.mark.skipif(bool(why_missing("openblas")), reason=why_missing("openblas") or "-")
has_native = pytest.mark.skipif(bool(why_missing("native")), reason=why_missing("native") or "-")
provider_params = pytest.mark.parametrize(
    ("provider", "dtype"),
    [
        ("torch", torch.float32),
        ("torch", torch.bfloat16),
        pytest.param("openblas", torch.float32, marks=has_openblas),
        pytest.param("native", torch.bfloat16, marks=has_native),
    ],
)


def with_stride(x):
    return torch.randn(x.shape[0], x.shape[1] + 3).to(x.dtype)[:, 1:-2].copy_(x)


LAYOUTS = [lambda x: x, lambda x: x.t().contiguous().t(), with_stride, lambda x: with_stride(x.t()).t()]
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (1, 64, 9),
    (65, 1, 33),
    (130, 70, 257),
    (13, 645, 520),
    (17, 1500, 40),
    (300, 33, 31),
    (700, 650, 50),
]


@provider_params
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_products_of_every_layout(m, k, n, add, provider, dtype):
    torch.manual_seed(0)
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    truth = a.double() @ b.double() + 2 * add
    eps = torch.finfo(dtype).eps
    atol = 2 * eps * k if dtype == torch.float32 else 4 * eps * k**0.5
    for left in LAYOUTS:
        for right in LAYOUTS:
            for out in (torch.full((m, n), 2.0, dtype=dtype), torch.full((m, n + 4), 2.0, dtype=dtype)[:, 2:-2]):
                matmul(left(a), right(b), out, add=add, provider=provider)
                torch.testing.assert_close(out.double(), truth, rtol=2 * eps, atol=atol)


LONG = (2100, 2050, 70)  # M is the longest, and B is packed in two groups of panels


@has_native
@pytest.mark.parametrize(("m", "k", "n"), [*SHAPES, LONG])
def test_our_own_products_are_summed_in_float32(m, k, n):
    torch.manual_seed(0)
    a, b = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16()
    truth = a.double() @ b.double()
    out = torch.full((m, n), torch.nan)
    native_matmul(a, b, out)
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=2e-6 * k)
    native_matmul(a, b, out, add=True)
    torch.testing.assert_close(out.double(), 2 * truth, rtol=1e-5, atol=4e-6 * k)


@has_native
@pytest.mark.parametrize(("m", "k", "n"), [(40, 70, 2000), (2000, 70, 40), (40, 2000, 70)])
def test_more_threads_than_there_is_work_for(m, k, n, monkeypatch):
    """Each thread has memory of its own: there are no more of them than parts of the matmul."""
    monkeypatch.setattr(rivals, "WORTH_THREADS", 0)
    a, b, outs = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16(), []
    for n_threads in (100, 2**31 - 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda n_threads=n_threads: n_threads)
        outs.append(torch.empty(m, n))
        native_matmul(a, b, outs[-1])
    torch.testing.assert_close(outs[0].double(), a.double() @ b.double(), rtol=1e-5, atol=2e-6 * k)
    assert torch.equal(*outs)


TALL = """
import resource, torch
from cynosure.loss.matmul.rivals import native_matmul
a, b, out = torch.ones(700, {m}).bfloat16().t(), torch.ones(700, 128).bfloat16(), torch.ones({m}, 128).bfloat16()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
native_matmul(a, b, out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
assert (out == 700).all()
"""


@has_native
def test_dweight_of_many_rows_needs_little_memory():
    """With K longer than N, M stays the side that is split: no copy of A, and no float32 result per thread."""
    m = 60_000
    done = subprocess.run([sys.executable, "-c", TALL.format(m=m)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2 * m * 128


@has_native
@pytest.mark.parametrize(("v", "d"), [(1, 1), (301, 24), (70, 33), (24, 301), (515, 64)])
@pytest.mark.parametrize("rows", [1, 9, 700])
@pytest.mark.parametrize("n_chunks", [1, 2, 5])
def test_a_sum_in_two_halves_is_one_of_float32(n_chunks, rows, v, d):
    torch.manual_seed(0)
    chunks = [(torch.randn(rows, v).bfloat16(), torch.randn(rows, d).bfloat16()) for _ in range(n_chunks)]
    dweight, wide = torch.full((v, d), torch.nan).bfloat16(), torch.zeros(v, d)
    total = WeightSum(dweight, torch.bfloat16, "native")
    for i, (dlogits, hidden) in enumerate(chunks):
        total.add(dlogits.t(), hidden, i == 0, i == n_chunks - 1)
        native_matmul(dlogits.t(), hidden, wide, add=True)
    assert total.wide is None
    torch.testing.assert_close(dweight, wide.bfloat16(), rtol=2**-8, atol=1e-6)
    assert (dweight == wide.bfloat16()).float().mean() > 0.99  # threads add up in an order of their own


@has_native
def test_infinities_and_nan_pass_through_the_halves():
    special = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.0]]).bfloat16()
    dweight = torch.zeros(4, 1).bfloat16()
    total = WeightSum(dweight, torch.bfloat16, "native")
    total.add(special.t(), torch.ones(1, 1).bfloat16(), True, False)
    total.add(torch.ones(4, 1).bfloat16(), torch.ones(1, 1).bfloat16(), False, True)
    assert dweight[:2, 0].tolist() == [torch.inf, -torch.inf]
    assert dweight[2, 0].isnan()
    assert dweight[3, 0] == 2


@has_openblas
def test_what_blas_cannot_read_is_left_to_torch():
    x = torch.randn(6, 8)
    assert takes(torch.float32, x, x.t(), x[:, 1:3], x[1:2])
    for odd in (x[:, ::2], x[:0], x.double(), x.bfloat16(), x[:1].expand(6, 8)):
        assert not takes(torch.float32, odd)
    out = torch.empty(6, 6)
    matmul(x[:, ::2], x[:, 1::2].t(), out, provider="openblas")
    torch.testing.assert_close(out, x[:, ::2] @ x[:, 1::2].t())


@has_openblas
def test_nan_in_memory_that_is_overwritten_goes_nowhere():
    out = torch.full((4, 5), torch.nan)
    matmul(torch.ones(4, 3), torch.ones(3, 5), out, provider="openblas")
    assert torch.equal(out, torch.full((4, 5), 3.0))


@provider_params
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"shift": 1, "token_weight": True, "bias": True}])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_loss_is_within_the_bound(reduction, options, provider, dtype, monkeypatch):
    monkeypatch.setenv(VARIABLE, provider)
    case = make_case(lead=(3, 40), d=24, v=301, reduction=reduction, dtype=dtype, **options)
    plan = explain(120, 24, 301, dtype=dtype, chunk_tokens=32)
    assert plan.gemm.provider == provider
    assert (
        plan.accumulator_bytes == 24 * 301 * {torch.float32: 0, torch.bfloat16: 2 if provider == "native" else 4}[dtype]
    )
    ours = evaluate(linear_cross_entropy, case, chunk_tokens=32)
    theirs, truth = evaluate(oracle.loss, case), evaluate(oracle.loss, case.double())
    for name, x in ours.named().items():
        assert_three_way(x, theirs.named()[name], truth.named()[name], eps=1e-6, name=name)


@has_native
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 512])
def test_dweight_is_as_near_to_the_truth_as_torchs(chunk_tokens, monkeypatch):
    monkeypatch.setenv(VARIABLE, "native")
    case = make_case(lead=(512,), d=64, v=1003, dtype=torch.bfloat16)
    ours = evaluate(linear_cross_entropy, case, chunk_tokens=chunk_tokens).grads["weight"]
    theirs, truth = (evaluate(oracle.loss, x).grads["weight"] for x in (case, case.double()))
    assert rms_error(ours, truth) <= 1.3 * rms_error(theirs, truth)


@has_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_gives_dweight_in_the_weights_own_dtype(dtype, monkeypatch):
    """bfloat16 products of another weight: each chunk is added to a float32 dW itself, a float16 one is torch's."""
    monkeypatch.setenv(VARIABLE, "native")
    case = make_case(lead=(90,), d=24, v=301, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours = evaluate(linear_cross_entropy, case, chunk_tokens=32).grads["weight"]
        theirs = evaluate(oracle.loss, case).grads["weight"]
    assert ours.dtype == dtype
    assert_three_way(ours, theirs, evaluate(oracle.loss, case.double()).grads["weight"], eps=1e-6)


@provider_params
def test_statistics_come_through_it_too(provider, dtype, monkeypatch):
    case = make_case(lead=(40,), d=24, v=301, dtype=dtype, bias=True)
    monkeypatch.setenv(VARIABLE, provider)
    ours = case.call(token_stats)
    monkeypatch.setenv(VARIABLE, "torch")
    tol = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours.nll, case.call(token_stats).nll, equal_nan=True, rtol=tol, atol=tol)


@has_openblas
def test_it_is_really_called(monkeypatch):
    monkeypatch.setenv(VARIABLE, "openblas")
    called = []
    monkeypatch.setattr(find_openblas(), "matmul", lambda *a: called.append(a) or torch.mm(*a[:2], out=a[2]))
    linear_cross_entropy(torch.randn(4, 8), torch.randn(9, 8), torch.arange(4))
    assert len(called) == 1


@has_openblas
def test_what_a_provider_has_not_is_torchs(monkeypatch):
    monkeypatch.setenv(VARIABLE, "openblas")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert choose_gemm(1e12, dtype, CPU).provider == "torch"
    assert choose_gemm(1e12, torch.float32, torch.device("meta")).provider == "torch"
    case = make_case()
    assert_same(evaluate(linear_cross_entropy, case), evaluate(oracle.loss, case))


def test_small_products_are_torchs(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_gemm(1e6, torch.float32, CPU) == ("torch", "the matmuls are small")


def test_an_unknown_provider(monkeypatch):
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(ValueError, match="CYNOSURE_GEMM must be one of torch, openblas, native, got 'mkl'"):
        linear_cross_entropy(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0]))


def test_a_provider_that_is_not_there(monkeypatch):
    monkeypatch.setenv(VARIABLE, "openblas")
    monkeypatch.setattr(rivals, "find_openblas", lambda: None)
    with pytest.raises(ValueError, match="OpenBLAS is not installed"):
        choose_gemm(1e12, torch.float32, CPU)
    monkeypatch.delenv(VARIABLE)
    chosen = trials.fastest.__wrapped__(torch.float32, 1)
    assert chosen.provider == "torch"
    assert "OpenBLAS is not installed" in chosen.reason


@has_openblas
class TestTheTrial:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CYNOSURE_CACHE", str(tmp_path / "cache"))
        self.kept = tmp_path / "cache" / "matmuls.json"
        self.rates = {"torch": 100.0, "openblas": 300.0}
        self.tried = []
        self.share = 0.9  # of a processor that the trial got
        monkeypatch.setattr(trials, "trial", self.trial)
        monkeypatch.setattr(trials.time, "perf_counter", lambda: float(len(self.tried)))
        monkeypatch.setattr(trials.time, "thread_time", lambda: self.share * len(self.tried))

    def trial(self, providers, dtype):
        self.tried += providers
        return {name: self.rates[name] for name in providers}

    def choose(self, n_threads=1, dtype=torch.float32):
        return trials.fastest.__wrapped__(dtype, n_threads)

    def test_is_made_once_and_remembered(self):
        assert self.choose() == ("openblas", "openblas 300 GFLOP/s, torch 100 in a trial")
        assert self.tried == ["torch", "openblas"]
        self.rates = {"torch": 1.0, "openblas": 0.1}
        assert self.choose().provider == "openblas"
        assert self.tried == ["torch", "openblas"]
        assert list(json.loads(self.kept.read_text()).values()) == [{"torch": 100.0, "openblas": 300.0}]

    def test_is_made_again_for_another_number_of_threads(self):
        self.choose(1), self.choose(2)
        assert len(json.loads(self.kept.read_text())) == 2

    def test_is_not_remembered_where_other_work_disturbed_it(self):
        self.share = 0.6
        assert self.choose().provider == "openblas"
        assert not self.kept.exists()
        self.share, self.rates = 0.9, {"torch": 100.0, "openblas": 50.0}
        assert self.choose().provider == "torch"
        assert self.kept.exists()

    def test_torch_stays_unless_beaten(self):
        self.rates = {"torch": 100.0, "openblas": 100.0}
        assert self.choose().provider == "torch"

    @pytest.mark.skipif(bool(rivals.why_missing("native")), reason=rivals.why_missing("native"))
    @pytest.mark.parametrize(("rate", "provider"), [(96.0, "native"), (94.0, "torch")])
    def test_our_own_matmuls_may_be_a_little_slower_for_their_memory(self, rate, provider):
        self.rates = {"torch": 100.0, "native": rate}
        assert self.choose(dtype=torch.bfloat16).provider == provider

    @pytest.mark.parametrize(
        "content",
        ["", "[]", "{", "null", '"x"', "1", b"\xff\xfe", b"\x00" * 9, "[" * 100_000, '{"a":' * 100_000, '{"x": 1e999}'],
        ids=lambda x: str(x)[:8],
    )
    def test_a_broken_file_is_made_again(self, content):
        self.kept.parent.mkdir()
        self.kept.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert self.choose().provider == "openblas"
        assert len(json.loads(self.kept.read_text())) == 1

    @pytest.mark.parametrize(
        "rates",
        [
            "null", "[]", "{}", "3", '"torch"', '{"torch": 9.0}', '{"openblas": 9.0}',
            '{"torch": null, "openblas": 1.0}', '{"torch": "900.0", "openblas": 1.0}',
            '{"torch": NaN, "openblas": 1.0}', '{"torch": -900.0, "openblas": -999.0}',
            '{"torch": 1e999, "openblas": 1.0}', '{"torch": 900.0, "openblas": {"a": [1]}}',
            '{"torch": true, "openblas": 0.5}', '{"torch": ' + "9" * 400 + ', "openblas": 1.0}',
        ],
        ids=lambda x: x[:40],
    )  # fmt: skip
    def test_rates_that_are_none_are_measured_again(self, rates):
        self.choose()
        (key,) = json.loads(self.kept.read_text())
        self.kept.write_text(f'{{{json.dumps(key)}: {rates}, "another": {{"torch": 1.0, "native": 2.0}}}}')
        self.tried.clear()
        assert self.choose() == ("openblas", "openblas 300 GFLOP/s, torch 100 in a trial")
        assert self.tried == ["torch", "openblas"]
        kept = json.loads(self.kept.read_text())
        assert kept == {key: {"torch": 100.0, "openblas": 300.0}, "another": {"torch": 1.0, "native": 2.0}}

    def test_a_file_too_large_to_be_ours_is_not_read_whole(self):
        self.kept.parent.mkdir()
        with self.kept.open("wb") as file:
            file.truncate(2**40)  # sparse
        assert self.choose().provider == "openblas"
        assert self.kept.stat().st_size < 1000

    @pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
    def test_what_is_no_file_costs_a_trial(self, make):
        self.kept.parent.mkdir()
        make(self.kept)
        assert self.choose().provider == "openblas"
        assert [path.name for path in self.kept.parent.iterdir()] == ["matmuls.json"]

    def test_without_a_home_directory_nothing_is_kept(self, monkeypatch):
        monkeypatch.setenv("CYNOSURE_CACHE", "~no-such-user/cache")
        assert self.choose().provider == "openblas"
        assert self.choose().provider == "openblas"
        assert len(self.tried) == 4

    def test_a_folder_that_cannot_be_written_costs_a_trial(self, monkeypatch):
        monkeypatch.setenv("CYNOSURE_CACHE", "/dev/null/nowhere")
        assert self.choose().provider == "openblas"

    def test_wrong_products_are_not_chosen(self, monkeypatch):
        monkeypatch.setattr(find_openblas(), "matmul", lambda a, b, out, add: out.fill_(1))
        assert self.choose().provider == "torch"
        assert "gives other results than torch" in self.choose().reason


@provider_params
def test_the_trial_measures(provider, dtype):
    assert trials.agrees(provider, dtype)
    rates = trials.trial(("torch", provider), dtype)
    assert rates.keys() == {"torch", provider}
    assert min(rates.values()) > 0.1


def test_the_trial_measures_each_provider(monkeypatch):
    clock, ran = [0.0], []

    def chunk_matmuls(name, dtype):
        def run():
            ran.append(name)
            clock[0] += {"torch": 0.5, "openblas": 0.25}[name] * (2 if len(ran) % 2 else 1)  # the second run in a row

        return run

    monkeypatch.setattr(trials, "chunk_matmuls", chunk_matmuls)
    monkeypatch.setattr(trials.time, "perf_counter", lambda: clock[0])
    rates = trials.trial(("torch", "openblas"), torch.float32)
    assert rates["openblas"] == pytest.approx(2 * rates["torch"], rel=0.02) == pytest.approx(24.2, abs=0.1)
    assert ran[:6] == ["torch", "torch", "openblas", "openblas", "torch", "torch"]


PINNED = """
import torch
from cynosure.loss import linear_cross_entropy
torch.manual_seed(0)
hidden, weight = (torch.randn(n, 64).to(torch.{dtype}).requires_grad_() for n in (300, 5000))
linear_cross_entropy(hidden, weight, torch.arange(300), chunk_tokens=100).backward()
print(hidden.grad.double().sum().item().hex(), weight.grad.double().sum().item().hex())
"""


@provider_params
@pytest.mark.exhaustive
@pytest.mark.each_variant
def test_a_pinned_plan_repeats_bit_for_bit(provider, dtype, monkeypatch):
    monkeypatch.setenv(VARIABLE, provider)
    command = [sys.executable, "-c", PINNED.format(dtype=str(dtype).removeprefix("torch."))]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
