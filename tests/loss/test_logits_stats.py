"""Statistics and log-probabilities of logits that are there already, against full float64 ones; the logits stay."""

import pytest
import torch

from cynosure.loss import logits_token_logprobs, logits_token_stats
from tests.loss import oracle

GRID = [2.0, 0.5]
LAYOUTS = [lambda z: z, lambda z: z.mT.contiguous().mT, lambda z: z.transpose(0, 1).contiguous().transpose(0, 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignored", [0, 4])
def test_of_given_logits(ignored, dtype, layout, backend):
    torch.manual_seed(0)
    given = layout((torch.randn(3, 9, 53) * 5).to(dtype)).requires_grad_()
    before, target = given.detach().clone(), torch.randint(53, (3, 9))
    target[1, :ignored] = -100
    stats = logits_token_stats(given, target, shift=1, softcap=9.0, topk=2, temperatures=GRID, backend=backend)
    logprobs = logits_token_logprobs(given, target, shift=1, softcap=9.0, backend=backend)
    z, t = before.double()[:, :-1].reshape(-1, 53), target[:, 1:].reshape(-1)
    truth = oracle.stats(z, t, softcap=9.0, topk=2, temperatures=GRID)
    tol = 1e-12 if dtype == torch.float64 else 4e-6
    for name in ("nll", "entropy", "confidence", "brier", "top_logprobs", "nll_at_temperature", "rank"):
        x, y = getattr(stats, name).double().flatten(), truth[name].double().flatten()
        torch.testing.assert_close(x, y, rtol=tol, atol=tol, equal_nan=True)
    torch.testing.assert_close(logprobs.double().flatten(), -truth["nll"].nan_to_num(0.0), rtol=tol, atol=tol)
    logprobs.sum().backward()
    wide = before.double().requires_grad_()
    logits_token_logprobs(wide, target, shift=1, softcap=9.0, backend="torch").sum().backward()
    torch.testing.assert_close(
        given.grad.double(), wide.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
    assert torch.equal(given.detach(), before)
