"""Who does the matrix products: each provider right in every layout, chosen once, remembered, overridable."""

import json
import subprocess
import sys

import pytest
import torch

from cynosure.loss import explain, gemm, linear_cross_entropy, token_stats
from cynosure.loss.gemm import PROVIDERS, VARIABLE, choose_gemm, product
from cynosure.loss.openblas import find_openblas, takes
from tests.loss import oracle
from tests.loss.cases import assert_same, evaluate, make_case
from tests.loss.probes import assert_three_way

CPU = torch.device("cpu")
has_openblas = pytest.mark.skipif(find_openblas() is None, reason="there is no OpenBLAS here")
provider_params = pytest.mark.parametrize("provider", ["torch", pytest.param("openblas", marks=has_openblas)])


@pytest.fixture
def openblas(monkeypatch):
    monkeypatch.setenv(VARIABLE, "openblas")


@provider_params
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 7), (1, 64, 9), (65, 1, 33), (130, 70, 257)])
def test_products_of_every_layout(m, k, n, add, provider):
    torch.manual_seed(0)
    a, b = torch.randn(m, k), torch.randn(k, n)
    truth = a.double() @ b.double()
    layouts = [
        lambda x: x,
        lambda x: x.t().contiguous().t(),
        lambda x: torch.randn(x.shape[0], x.shape[1] + 3)[:, 1:-2].copy_(x),
    ]
    for left in layouts:
        for right in layouts:
            for out in (torch.full((m, n), 2.0), torch.full((m, n + 4), 2.0)[:, 2:-2]):
                product(left(a), right(b), out, add=add, provider=provider)
                torch.testing.assert_close(out.double(), truth + 2 * add, rtol=1e-5, atol=1e-4)


@has_openblas
def test_what_blas_cannot_read_is_left_to_torch():
    x = torch.randn(6, 8)
    assert takes(x, x.t(), x[:, 1:3], x[1:2])
    for odd in (x[:, ::2], x[:0], x.double(), x.bfloat16(), x[:1].expand(6, 8)):
        assert not takes(odd)
    out = torch.empty(6, 6)
    product(x[:, ::2], x[:, 1::2].t(), out, provider="openblas")
    torch.testing.assert_close(out, x[:, ::2] @ x[:, 1::2].t())


@has_openblas
def test_nan_in_memory_that_is_overwritten_goes_nowhere():
    out = torch.full((4, 5), torch.nan)
    product(torch.ones(4, 3), torch.ones(3, 5), out, provider="openblas")
    assert torch.equal(out, torch.full((4, 5), 3.0))


@has_openblas
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"shift": 1, "token_weight": True, "bias": True}])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_loss_is_within_the_bound(openblas, reduction, options):
    case = make_case(lead=(3, 40), d=24, v=301, reduction=reduction, dtype=torch.float32, **options)
    assert explain(120, 24, 301).gemm.provider == "openblas"
    ours = evaluate(linear_cross_entropy, case, chunk_tokens=32)
    theirs, truth = evaluate(oracle.loss, case), evaluate(oracle.loss, case.double())
    for name, x in ours.named().items():
        assert_three_way(x, theirs.named()[name], truth.named()[name], eps=1e-6, name=name)


@has_openblas
def test_statistics_come_through_it_too(openblas, monkeypatch):
    case = make_case(lead=(40,), d=24, v=301, dtype=torch.float32, bias=True)
    ours = case.call(token_stats)
    monkeypatch.setenv(VARIABLE, "torch")
    for x, y in zip(ours, case.call(token_stats), strict=True):
        torch.testing.assert_close(x, y, equal_nan=True)


@has_openblas
def test_it_is_really_called(openblas, monkeypatch):
    called = []
    monkeypatch.setattr(find_openblas(), "product", lambda *a: called.append(a) or torch.mm(*a[:2], out=a[2]))
    linear_cross_entropy(torch.randn(4, 8), torch.randn(9, 8), torch.arange(4))
    assert len(called) == 1


def test_float64_and_half_precision_are_torchs(openblas):
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert choose_gemm(1e12, dtype, CPU).provider == "torch"
    assert choose_gemm(1e12, torch.float32, torch.device("meta")).provider == "torch"
    case = make_case()
    assert_same(evaluate(linear_cross_entropy, case), evaluate(oracle.loss, case))


def test_small_products_are_torchs(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_gemm(1e6, torch.float32, CPU) == ("torch", "the products are small")


def test_an_unknown_provider(monkeypatch):
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(ValueError, match="CYNOSURE_GEMM must be one of torch, openblas, got 'mkl'"):
        linear_cross_entropy(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0]))


def test_a_provider_that_is_not_there(monkeypatch):
    monkeypatch.setenv(VARIABLE, "openblas")
    monkeypatch.setattr(gemm, "find_openblas", lambda: None)
    with pytest.raises(ValueError, match="there is no OpenBLAS"):
        choose_gemm(1e12, torch.float32, CPU)
    monkeypatch.delenv(VARIABLE)
    chosen = gemm.fastest.__wrapped__(1)
    assert chosen.provider == "torch"
    assert "no OpenBLAS was found" in chosen.reason


@has_openblas
class TestTheTrial:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CYNOSURE_CACHE", str(tmp_path / "cache"))
        self.kept = tmp_path / "cache" / "gemm.json"
        self.rates = {"torch": 100.0, "openblas": 300.0}
        self.tried = []
        monkeypatch.setattr(gemm, "trial", lambda name: self.tried.append(name) or self.rates[name])

    def choose(self, n_threads=1):
        return gemm.fastest.__wrapped__(n_threads)

    def test_is_made_once_and_remembered(self):
        assert self.choose() == ("openblas", "OpenBLAS 300 GFLOP/s, torch 100 in a trial")
        assert self.tried == list(PROVIDERS)
        self.rates = {"torch": 1.0, "openblas": 0.1}
        assert self.choose().provider == "openblas"
        assert self.tried == list(PROVIDERS)
        assert list(json.loads(self.kept.read_text()).values()) == [{"torch": 100.0, "openblas": 300.0}]

    def test_is_made_again_for_another_number_of_threads(self):
        self.choose(1), self.choose(2)
        assert len(json.loads(self.kept.read_text())) == 2

    def test_torch_stays_unless_clearly_beaten(self):
        self.rates = {"torch": 100.0, "openblas": 105.0}
        assert self.choose().provider == "torch"

    @pytest.mark.parametrize("content", ["", "[]", "{"])
    def test_a_broken_file_is_made_again(self, content):
        self.kept.parent.mkdir()
        self.kept.write_text(content)
        assert self.choose().provider == "openblas"
        assert len(json.loads(self.kept.read_text())) == 1

    def test_a_folder_that_cannot_be_written_costs_a_trial(self, monkeypatch):
        monkeypatch.setenv("CYNOSURE_CACHE", "/dev/null/nowhere")
        assert self.choose().provider == "openblas"

    def test_wrong_products_are_not_chosen(self, monkeypatch):
        monkeypatch.setattr(find_openblas(), "product", lambda a, b, out, add: out.fill_(1))
        assert self.choose().provider == "torch"
        assert "gives other products than torch" in self.choose().reason


@has_openblas
def test_the_trial_measures():
    assert gemm.trial("torch") > 0.1
    assert gemm.trial("openblas") > 0.1


PINNED = """
import torch
from cynosure.loss import linear_cross_entropy
torch.manual_seed(0)
hidden, weight = torch.randn(300, 64, requires_grad=True), torch.randn(5000, 64, requires_grad=True)
linear_cross_entropy(hidden, weight, torch.arange(300), chunk_tokens=100).backward()
print(hidden.grad.double().sum().item().hex(), weight.grad.double().sum().item().hex())
"""


@provider_params
def test_a_pinned_plan_repeats_bit_for_bit(provider, monkeypatch):
    monkeypatch.setenv(VARIABLE, provider)
    runs = [
        subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
