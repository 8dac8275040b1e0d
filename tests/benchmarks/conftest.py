"""A tiny head, prepared once."""

from collections.abc import Iterator

import pytest

from benchmarks.loss.inputs import prepare
from benchmarks.loss.prepared import Prepared

HEAD = "synthetic:900x24"


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """Files of 256, 300 and 600 tokens, in a cache directory that workers find too."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")  # a tiny head gains nothing from more
    patch.setenv("CYNOSURE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield prepare(HEAD, ["float32", "bfloat16"], [256, 300, 600], lambda line: None)
    patch.undo()
