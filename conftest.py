"""Setup of all tests and doctests: no network, a separate cache, and isolation from each other."""

import os
from importlib.util import find_spec

import pytest

pytest_plugins = ["pytester", "tests.isolation"]

# For its doctests pytest imports every module, and these need triton.
collect_ignore = [] if find_spec("triton") else ["src/cynosure/loss/triton"]

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Keep dequantized models in pytest's cache: tests neither read nor write the user's cache.

    All processes of a run share it; the library's lock lets one of them create what the others wait for.
    """
    assert config.cache is not None
    os.environ["CYNOSURE_CACHE"] = str(config.cache.mkdir("cynosure"))
