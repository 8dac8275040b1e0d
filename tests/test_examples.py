"""Every example works when started as its docstring says."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
}


def commands() -> list[tuple[Path, list[str]]]:
    """Return (example, words of a command in its docstring) for all examples."""
    starts = []
    for example in sorted((ROOT / "examples").glob("*.py")):
        lines = (ast.get_docstring(ast.parse(example.read_text())) or "").splitlines()[1:]
        starts += [(example, line.split("#")[0].split()) for line in lines if line.strip().startswith(tuple(LAUNCH))]
    return starts


def test_every_example_says_how_to_start_it() -> None:
    examples = set((ROOT / "examples").glob("*.py"))
    assert len(examples) >= 6
    assert {example for example, _ in commands()} == examples
    table = (ROOT / "examples" / "README.md").read_text()
    assert set(re.findall(r"\[`(\w+\.py)`\]", table)) == {example.name for example in examples}


@pytest.mark.exhaustive
@pytest.mark.parametrize(("example", "words"), commands(), ids=lambda x: x[0] if isinstance(x, list) else x.stem)
def test_the_loss_falls_and_no_logits_are_made(example: Path, words: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*LAUNCH[words[0]], *words[1:]], capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"(?:step \d+: |'loss': )(\d+\.\d+)", done.stdout)]
    assert len(losses) >= 2, done.stdout
    if example.stem != "sft":  # it trains on two data sets in turn
        assert losses[-1] < losses[0], done.stdout
    assert "full logits" not in done.stderr
    assert "nothing" in done.stdout or "made by" not in done.stdout
