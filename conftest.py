"""What holds for every test and doctest: no network, the models' own cache, and nothing left for the next one."""

import os
from importlib.util import find_spec

import pytest

pytest_plugins = ["pytester", "tests.isolation"]

# For its doctests pytest imports every module, and these need triton.
collect_ignore = [] if find_spec("triton") else ["src/cynosure/loss/triton"]

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Keep dequantized models with pytest's cache: the user's is neither read nor written, and a run does not wait.

    Every process of a run uses it, and the library's own lock lets one of them make what the others wait for.
    """
    assert config.cache is not None
    os.environ["CYNOSURE_CACHE"] = str(config.cache.mkdir("cynosure"))
