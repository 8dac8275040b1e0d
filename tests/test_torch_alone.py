"""`patch`, `audit` and the losses need only torch and transformers."""

import subprocess
import sys

import pytest

BLOCKED = ("accelerate", "altair", "datasets", "numpy", "pandas", "peft", "pyarrow", "rich", "tqdm", "trl", "typer")

# The packages are hidden from cynosure only: torch and transformers may use them.
ALONE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if name.partition(".")[0] in {BLOCKED} and "cynosure" in frame.f_globals.get("__name__", ""):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())

import torch
from transformers import LlamaConfig, LlamaForCausalLM
import cynosure

torch.manual_seed(0)
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
model = LlamaForCausalLM(LlamaConfig(**sizes))
ids = torch.randint(0, 300, (2, 9))
batch = dict(input_ids=ids, labels=ids)
own = model(**batch).loss.item()
"""

CALLS = """
assert abs(cynosure.causal_lm_loss(model, ids, ids).item() - own) < 1e-5
cynosure.audit(model, [batch])
assert all(check.passed for check in cynosure.check(model, torch.randint(0, 300, (40,))))
cynosure.linear_cross_entropy(torch.randn(4, 8), torch.randn(9, 8), torch.arange(4))
cynosure.patch(model)
assert abs(model(**batch).loss.item() - own) < 1e-5
"""

SCORE = """
try:
    cynosure.score(model, ["a"])
except ImportError as error:
    print(error)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ALONE + code], capture_output=True, text=True, check=False)


def test_it_needs_torch_and_transformers_alone() -> None:
    done = run(CALLS)
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_what_an_extra_brings_is_named_in_one_line() -> None:
    done = run(SCORE)
    assert done.stdout == (
        "cynosure.score needs the package 'pyarrow' of the extra 'lm': in a clone of cynosure, pip install '.[lm]'\n"
    ), done.stderr
