"""torch's own samples of its cross-entropies give what torch gives, but for the differences named here."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only

# docs/explanation/math.md, "Where it differs from torch"
DIFFERENCES = {"a mean over nothing is 0"}
SOURCES = {
    "nn.functional.cross_entropy",
    "nn.functional.linear_cross_entropy",
    "nn.functional.linear_cross_entropy chunked",
    "nn.functional.linear_cross_entropy chunked_none",
    "nn.CrossEntropyLoss",
    "nn.LinearCrossEntropyLoss",
}


@pytest.mark.exhaustive
def test_every_sample_is_equal_or_a_documented_difference():
    command = [sys.executable, "-m", "tests.loss.torch_samples"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts.keys() == SOURCES
    results = sum((Counter(of_source) for of_source in counts.values()), Counter())
    n_equal = results.pop("equal")
    assert results.keys() <= DIFFERENCES, done.stderr[:5000]
    assert n_equal > 2000
