"""Compile the C++ row kernel: when the package is built, and with `python build.py` after the sources have changed.

`python build.py FOLDER FLAG...` compiles it into another folder with more flags, for example those of a sanitizer.

This needs only Python and a C++17 compiler with GCC's vector types (g++ or clang++). The passes are compiled once per
instruction set, and the one to use is chosen at run time. So the library works on any processor of its architecture.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = "rows.so"
MISSING = "missing.txt"  # says why the library is missing
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-pthread",
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
INSTRUCTIONS = {
    "portable": [],
    "avx2": AVX2,
    "avx512": AVX512,
}


class CannotBuild(Exception):
    """The kernel cannot be compiled here; the message says why."""


def find_compiler() -> list[str]:
    """Return $CXX, or the first C++ compiler on the path."""
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise CannotBuild("no C++ compiler (c++, g++, clang++) was found when cynosure was installed")


def run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBuild(f"the compiler {command[0]} could not be run: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
        raise CannotBuild(f"{command[0]} failed: {lines[0].strip()}")


def compile_library(folder: Path, more_flags: Sequence[str] = ()) -> Path:
    """Compile into `folder`, atomically. Raises CannotBuild."""
    compiler = [*find_compiler(), *FLAGS, *more_flags]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = {name: flags for name, flags in INSTRUCTIONS.items() if x86 or not flags}
    with tempfile.TemporaryDirectory() as scratch:
        objects = []  # those for any processor first: shared functions are linked from them
        for name in ("rows", "statistics", "columns", "divergence"):
            objects.append(str(Path(scratch, f"{name}.o")))
            run([*compiler, "-c", str(HERE / f"{name}.cpp"), "-o", objects[-1]])
        for passes in ("passes", "column_passes", "divergence_passes"):
            for name, flags in sets.items():
                objects.append(str(Path(scratch, f"{passes}-{name}.o")))
                source = str(HERE / f"{passes}.cpp")
                run([*compiler, *flags, f"-DPASSES={passes}_{name}", "-c", source, "-o", objects[-1]])
        if x86:
            objects.append(str(Path(scratch, "gemm.o")))
            run([*compiler, *AVX512, "-mavx512bf16", "-c", str(HERE / "gemm.cpp"), "-o", objects[-1]])
        partial = folder / f"{LIBRARY}.{os.getpid()}.partial"
        run([*compiler, "-shared", *objects, "-o", str(partial)])
    return partial.replace(folder / LIBRARY)


def build(folder: Path = HERE, more_flags: Sequence[str] = ()) -> str | None:
    """Compile the library into `folder`. If that fails, write the reason there and return it."""
    missing = folder / MISSING
    try:
        compile_library(folder, more_flags)
    except CannotBuild as error:
        (folder / LIBRARY).unlink(missing_ok=True)
        missing.write_text(f"{error}\n", encoding="utf-8")
        return str(error)
    missing.unlink(missing_ok=True)
    return None


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if sys.argv[1:] else HERE, sys.argv[2:]))
