"""How far the public call is from its first matmul: what a reader has to open."""

import sys
from pathlib import Path

import pytest
import torch

import cynosure
from cynosure.loss import linear_cross_entropy
from cynosure.loss.matmul.choice import VARIABLE

PACKAGE = str(Path(cynosure.__file__).parent)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_the_first_matmul_is_five_files_from_the_public_call(requires_grad, monkeypatch):
    """Files of the package on the stack at that moment, each once."""
    passed, mm = [], torch.mm

    def noted(*args, **kwargs):
        frame = None if passed else sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                passed.append(Path(frame.f_code.co_filename).name)
            frame = frame.f_back
        return mm(*args, **kwargs)

    monkeypatch.setenv(VARIABLE, "torch")
    monkeypatch.setattr(torch, "mm", noted)
    hidden, weight = (torch.randn(n, 8, requires_grad=requires_grad) for n in (64, 500))
    linear_cross_entropy(hidden, weight, torch.arange(64))
    driver = "chunked.py" if requires_grad else "forward.py"
    assert list(dict.fromkeys(passed)) == ["linear.py", driver, "autograd.py", "functional.py", "compiler.py"]
