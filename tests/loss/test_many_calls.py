"""Nothing is left behind by a call: neither memory nor objects, threads or files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.exhaustive
def test_ten_thousand_calls_leave_nothing_behind():
    command = [sys.executable, "-m", "tests.loss.many_calls"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown = json.loads(done.stdout)
    assert grown["resident_bytes"] < 4 * 2**20, grown
    assert grown["objects"] < 100, grown
    assert grown["threads"] == grown["python_threads"] == grown["files"] == 0, grown
