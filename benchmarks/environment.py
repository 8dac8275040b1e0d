"""Describe the environment that measurements depend on, besides the measured code."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cynosure
from cynosure.system.machine import cpu_name, cpu_vendor, memory_bytes

PACKAGES = (
    *("cynosure", "torch", "triton", "cut-cross-entropy", "jax", "jaxlib", "optax", "numpy", "transformers"),
    *("accelerate", "trl", "liger-kernel", "quack-kernels", "lm_eval"),
)


def environment() -> dict[str, Any]:
    """Return CPU, threads, BLAS, versions and commit, as the workers see them."""
    import torch

    return {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        "blas": blas(torch.__config__.show()),
        "class": machine_class(cpu_vendor(), torch.backends.cpu.get_cpu_capability(), torch.__config__.show()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def blas(configuration: str) -> str:
    """Return the libraries behind torch's matmuls, read from `torch.__config__.show()`.

    >>> blas("  - Intel(R) MKL-DNN v3.12.0 (Git Hash 80af)\\n  - Build settings: BLAS_INFO=mkl, USE_CUDA=0")
    'mkl, oneDNN 3.12.0'
    """
    library = re.search(r"BLAS_INFO=(\w+)", configuration)
    onednn = re.search(r"MKL-DNN v([\d.]+)", configuration)
    return ", ".join([library[1] if library else "unknown", *([f"oneDNN {onednn[1]}"] if onednn else [])])


def machine_class(vendor: str, capability: str, configuration: str) -> str:
    """Return which machines have comparable float32 results: they depend on the matmuls in torch.

    >>> machine_class("AuthenticAMD", "AVX512", "BLAS_INFO=mkl")
    'Compare float32 with other AMD machines: here the MKL in torch leaves AVX-512 unused.'
    >>> machine_class("GenuineIntel", "AVX512", "BLAS_INFO=mkl")
    'Compare float32 with other machines where the MKL in torch runs AVX-512.'
    """
    if "BLAS_INFO=mkl" not in configuration:
        return "Compare float32 with other machines where torch has this BLAS."
    if vendor == "AuthenticAMD":
        return "Compare float32 with other AMD machines: here the MKL in torch leaves AVX-512 unused."
    runs = "AVX-512" if capability.startswith("AVX512") else "no AVX-512"
    return f"Compare float32 with other machines where the MKL in torch runs {runs}."


def versions() -> dict[str, str | None]:
    installed: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed


def commit() -> str | None:
    """Return this clone's commit, with `-dirty` if its code has changed; None if cynosure is installed elsewhere."""
    clone = Path(__file__).parents[1]
    if not Path(cynosure.__file__).is_relative_to(clone):
        return None
    try:
        head = git(clone, "rev-parse", "HEAD")
        return f"{head}-dirty" if git(clone, "status", "--porcelain", "--", "src", "benchmarks/*.py") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
