"""Too little memory is a MemoryError, never a crash: every allocation of the C++ kernels is made to fail once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cynosure.loss.native import library
from cynosure.loss.native.library import LossRows, call

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and LD_PRELOAD are Linux's"),
    pytest.mark.skipif(not library.library().functions, reason="there is no C++ kernel here"),
]


def run(walk, **environment):
    command = [sys.executable, "-m", "tests.loss.short_memory", walk]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler")
def test_every_allocation_and_thread_may_fail(tmp_path):
    shim = tmp_path / "failing_malloc.so"
    subprocess.run(["gcc", "-shared", "-fPIC", HERE / "failing_malloc.c", "-o", shim, "-ldl"], check=True)
    assert len(run("allocations", LD_PRELOAD=str(shim))) >= 2


def test_a_limit_raised_step_by_step():
    assert len(run("limit")) >= 2


def test_the_error_says_what_failed_and_what_to_do(monkeypatch):
    class Functions:
        cynosure_loss_rows = staticmethod(lambda arguments: 123_456_789)

    monkeypatch.setattr(library, "library", lambda: library.Library(Functions, (), False, ""))
    with pytest.raises(MemoryError, match=r"cynosure_loss_rows .* cannot allocate 123,456,789 bytes .* chunk_tokens"):
        call("cynosure_loss_rows", LossRows())
