"""Import the public names of a package on first use (PEP 562), so that importing the package is fast."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cynosure.system.extras import missing


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a package, whose `__init__.pyi` imports its public names.

    Type checkers and editors read the same stub, so every name is listed once. A name that the stub imports from the
    package itself is a module of it. `package` and `file` are the `__name__` and `__file__` of the package.

    >>> import cynosure.loss
    >>> cynosure.loss.perplexity(0.0)
    1.0
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: str(node.module) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            is_module = homes[name] == package
            value = import_module(f"{package}.{name}") if is_module else getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            if (message := missing(f"{package}.{name}", error.name)) is None:
                raise
            raise ModuleNotFoundError(message, name=error.name) from error
        setattr(sys.modules[package], name, value)  # later uses skip this function
        return value

    def __dir__() -> list[str]:
        return sorted(homes)

    return __getattr__, __dir__, list(homes)
