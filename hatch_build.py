"""The build's own step: the C++ kernel is compiled where a compiler is at hand, and the package is whole without it."""

import runpy
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "src/cynosure/loss/native"


class NativeKernel(BuildHookInterface):  # type: ignore[type-arg]
    """Compile before the files of a wheel, or of an editable install, are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build = runpy.run_path(str(Path(self.root, NATIVE, "build.py")))["build"]
        if missing := build():
            print(f"cynosure: without the C++ kernel, the torch one will be used: {missing}", file=sys.stderr)
            return
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
