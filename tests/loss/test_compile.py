"""A model that calls the loss, trained plainly and under torch.compile."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cynosure.loss import cross_entropy, linear_cross_entropy, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import make_case


class LanguageModel(nn.Module):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.loss = loss

    def forward(self, ids, labels):
        hidden = torch.tanh(self.body(self.embed(ids)))
        return 2 * self.loss(hidden, self.head.weight, labels, bias=self.head.bias, shift=1)


def step(model, *batch):
    model.zero_grad()
    loss = model(*batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def test_training_falls_as_with_torch(backend):
    """Thirty steps of AdamW on a toy model: the two curves are the same."""

    def train(loss):
        model = LanguageModel(loss).double()
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
        ids = (torch.arange(8)[:, None] + torch.arange(7)) % 11  # every next token is sure
        losses = []
        for _ in range(30):
            optimiser.zero_grad()
            losses.append(model(ids, ids))
            losses[-1].backward()
            optimiser.step()
        return torch.stack(losses).detach()

    ours = train(lambda *args, **how: linear_cross_entropy(*args, **how, backend=backend, chunk_tokens=5))
    torch.testing.assert_close(ours, train(oracle.loss), rtol=1e-9, atol=1e-9)
    assert ours[-1] < 0.5 * ours[0]


# Torch's own, of any graph break after a hidden state; its default filters hide it.
TORCHS_OWN = pytest.mark.filterwarnings(
    "ignore:The .grad attribute", "ignore:`torch.jit.script", "ignore::ResourceWarning"
)


@TORCHS_OWN
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile(compiler, backend):
    """The same loss and gradients, for a second shape too, and with rows ignored (which peers got wrong)."""
    torch._dynamo.reset()
    model = LanguageModel(lambda *args, **how: linear_cross_entropy(*args, **how, backend=backend))
    plain = LanguageModel(oracle.loss)
    compiled = torch.compile(model, backend=compiler)
    for lead in [(2, 6), (2, 6), (3, 9)]:
        ids = torch.randint(11, lead)
        labels = torch.where(torch.rand(lead) < 0.5, -100, ids)
        for x, y in zip(step(compiled, ids, labels), step(plain, ids, labels), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    ids = torch.randint(11, (2, 6))
    assert step(compiled, ids, torch.full((2, 6), -100))[0] == 0
    torch._dynamo.reset()


@TORCHS_OWN
@pytest.mark.parametrize("function", [linear_cross_entropy, token_logprobs, token_stats, cross_entropy])
def test_compile_of_every_operation(function, backend):
    torch._dynamo.reset()
    case = make_case(lead=(9,), dtype=torch.float32)
    args = (F.linear(case.hidden, case.weight), case.target)
    args = args if function is cross_entropy else (case.hidden, case.weight, case.target)
    compiled = torch.compile(lambda *a: function(*a, backend=backend), backend="eager")
    ours, plain = compiled(*args), function(*args, backend=backend)
    torch.testing.assert_close(ours, plain, equal_nan=True)
    torch._dynamo.reset()
