"""`cynosure info`: versions, devices and backends, with the reason if one is not available."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cynosure.cli import common

EXAMPLES = ("cynosure info", "cynosure info --format json")
LARGE = 1e12  # floating-point operations of a matmul large enough for its provider to matter
PACKAGES = ("cynosure", "torch", "transformers", "tokenizers", "safetensors", "gguf", "datasets", "accelerate", "numpy")


def info(format: common.Format = "table", quiet: common.Quiet = False, debug: common.Debug = False) -> None:
    """Show versions, devices and available backends.

    Also shows packaged models and the cache directory. Gives the reason for everything that is not available.
    """
    facts = gather()
    if format == "json":
        common.print_json(facts)
    else:
        show(facts)


def gather() -> dict[str, Any]:
    """Return everything that `info` shows, as plain values."""
    import torch

    from cynosure.loss import choose_gemm
    from cynosure.loss.backends.registry import backends
    from cynosure.loss.matmul.rivals import RIVALS
    from cynosure.models import PACKAGED, find_device
    from cynosure.system.machine import cache_directory, cpu_name

    accelerator = find_device("auto")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cache = cache_directory()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: installed(name) for name in PACKAGES},
        "cpu": {
            "name": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "device": str(accelerator),
        "accelerators": names or ([str(accelerator)] if accelerator.type != "cpu" else []),
        "backends": [status._asdict() for status in backends()],
        "products": {
            str(dtype).removeprefix("torch."): choose_gemm(LARGE, dtype, torch.device("cpu"))._asdict()
            for dtype in RIVALS
        },
        "models": {name: packaged_status(name) for name in PACKAGED},
        "cache": {"folder": str(cache), "bytes": folder_bytes(cache)},
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def packaged_status(name: str) -> str:
    """Return the path of a packaged model, or how to install it."""
    from cynosure.models import packaged_parts

    try:
        parts = packaged_parts(name)
    except FileNotFoundError as error:
        return str(error)
    return f"{parts[0]}" + (f" and {len(parts) - 1} more parts" if len(parts) > 1 else "")


def folder_bytes(folder: Any) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def show(facts: dict[str, Any]) -> None:
    from cynosure.cli.screen import Table, stdout

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    cpu, cache = facts["cpu"], facts["cache"]
    table.add_row("python", f"{facts['python']} on {facts['system']}")
    for name, installed_version in facts["packages"].items():
        table.add_row(name, installed_version or "not installed")
    table.add_row("cpu", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads, {cpu['capability']}")
    table.add_row("accelerators", ", ".join(facts["accelerators"]) or "none that torch can use")
    table.add_row("device auto", facts["device"])
    for backend in facts["backends"]:
        state = "available" if backend["available"] else "not available"
        table.add_row(f"backend {backend['name']}", f"{state}: {backend['reason']}")
    for dtype, gemm in facts["products"].items():
        table.add_row(f"matmuls in {dtype}", f"{gemm['provider']}: {gemm['reason']}")
    for name, state in facts["models"].items():
        table.add_row(f"model {name}", state)
    table.add_row("cache", f"{cache['folder']}, {cache['bytes'] / 1e6:,.0f} MB")
    stdout().print(table)
