"""The sampled backward is unbiased: over many draws the mean error of a gradient is within the chance of its draws."""

import pytest
import torch

from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.sampling import sampler
from cynosure.loss.sampling.sampler import Sampler
from tests.loss.sampled import check_unbiased, sampled_case

pytestmark = pytest.mark.cpu_only

DRAWS = 4000
BF16, F16, F64 = torch.bfloat16, torch.float16, torch.float64
ALL = {
    "v": 400, "lead": (2, 13), "shift": 1, "bias": True, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 12.0,
    "scale": 1.3, "class_weight": True, "token_weight": True, "reduction": "sum", "chunk_tokens": 16,
}  # fmt: skip
CASES = {
    "plain": {},
    "smoothing and z-loss": {"label_smoothing": 0.2, "z_loss": 0.05, "reduction": "none"},
    "softcap, scale and bias": {"softcap": 8.0, "scale": -1.4, "bias": True},
    "weights of classes and tokens": {"class_weight": True, "token_weight": True, "reduction": "sum"},
    "normalizer": {"normalizer": 3.5, "token_weight": True, "chunk_tokens": 9, "frozen": ("weight",)},
    "shift and ignored targets": {"lead": (3, 12), "shift": 2, "ignore_index": 7, "ignored": 0.6},
    "dense": {"kind": "dense", "tolerance": 0.2, "dtype": F64},
    "sparse": {"kind": "sparse", "label_smoothing": 0.1, "reduction": "none", "frozen": ("hidden",)},
    "chunks of bfloat16": {"dtype": BF16, "chunk_tokens": 9},
    "chunks of float16": {"dtype": F16, "chunk_tokens": 9, "kind": "dense", "tolerance": 0.3},
    "all together": ALL,
}
BRIEF = {
    "all together": ALL,
    "distributions of a half": {"kind": "dense", "tolerance": 0.25, "dtype": BF16, "reduction": "none"},
}


def check(n_draws=DRAWS, tolerance=0.1, frozen=(), **options):
    return check_unbiased(sampled_case(**options).freeze(*frozen), n_draws, tolerance)


LIKE_OTHERS = CASES.keys() - {"all together"}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.each_variant if name in LIKE_OTHERS else ()) for name in CASES]
)
def test_every_option_is_unbiased(name):
    check(**CASES[name])


@pytest.mark.exhaustive
@pytest.mark.each_variant
def test_every_backend_is_unbiased(backend):
    check(**ALL, backend=backend, n_draws=1000)


@pytest.mark.parametrize("name", BRIEF)
def test_all_options_together_are_unbiased(name):
    check(**BRIEF[name], n_draws=400)


HIDDEN_ALONE = {"v": 3000, "std": 2.0, "weight_offset": 1.0, "tolerance": 0.02, "frozen": ("weight",), "n_draws": 400}
WEIGHT_ALONE = {"kind": "sparse", "frozen": ("hidden",), "n_draws": 100}


@pytest.mark.parametrize("options", [HIDDEN_ALONE, WEIGHT_ALONE], ids=["hidden", "weight"])
def test_a_bias_of_a_hundredth_is_seen(options, monkeypatch):
    backend = choose_backend(None)[0]
    own = backend.take_columns
    monkeypatch.setattr(
        backend, "take_columns", lambda d, ids, factor: own(d, ids, torch.where(factor > 1, factor * 1.01, factor))
    )
    with pytest.raises(AssertionError, match="biased"):
        check(**options)


@pytest.mark.parametrize("options", [HIDDEN_ALONE, WEIGHT_ALONE], ids=["hidden", "weight"])
def test_nothing_else_is_seen(options):
    """What the test above sees is the bias."""
    check(**options)


def test_kept_columns_that_count_twice_along_the_mean_are_seen(monkeypatch):
    own = Sampler.finish

    def finish(self):
        self.along.copy_(self.projected)
        own(self)

    monkeypatch.setattr(Sampler, "finish", finish)
    with pytest.raises(AssertionError, match="biased"):
        check(n_draws=100)


def test_columns_that_are_never_kept_are_seen(monkeypatch):
    """A biased estimate that is closer to the truth than ours."""
    own = sampler.draw
    monkeypatch.setattr(sampler, "draw", lambda q, generator: own(q.where(q > 0.5, 0), generator))
    with pytest.raises(AssertionError, match="biased"):
        check(**HIDDEN_ALONE)


def test_a_dense_path_is_seen(monkeypatch):
    monkeypatch.setattr(Sampler, "few", lambda *_: None)
    with pytest.raises(AssertionError, match="nothing was sampled"):
        check(n_draws=3)


def test_an_exact_path_is_seen():
    with pytest.raises(AssertionError):
        check(n_draws=3, tolerance=0.0)
