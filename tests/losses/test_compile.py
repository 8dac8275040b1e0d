"""A captured graph has no breaks: no value is read while it is captured."""

import pytest
import torch

from tests.losses.cases import ALL, TRAINED

ONE_OF_EACH = list({case.loss: case for case in ALL}.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_compile_without_a_graph_break(case):
    arguments = case.draw()
    compiled = torch.compile(case.call, backend="eager", fullgraph=True)
    loss, own = compiled(arguments), case.call(arguments)
    torch.testing.assert_close(loss, own, rtol=0, atol=0)
    leaves = [value for name, value in arguments.items() if name in TRAINED]
    for mine, other in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(own, leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
