"""How time and memory of the loss grow: `python bench/growth.py` (forward and backward, one axis at a time).

Fits seconds = a * size^b over the upper half of the sizes; small ones are overhead. Linear growth is b = 1.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HIDDEN = 64
TOKENS = (64, 256, 1024, 4096, 16384, 65536)  # at a vocabulary of 8,192
VOCABULARIES = (8192, 32768, 131072, 524288, 1048576)  # at 256 tokens


def measure(heads: str, tokens: str, dtype: str) -> list[dict]:
    """The cases of a bench of ours alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        command = [sys.executable, "-m", "cynosure", "bench", "loss", "--contestants", "cynosure", "--runs", "5"]
        command += ["--heads", heads, "--tokens", tokens, "--dtypes", dtype, "--json", str(path), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text(encoding="utf-8"))["cases"]


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """b of the least-squares line through the logarithms of the upper half."""
    half = len(sizes) // 2
    x, y = (torch.tensor(values[half:], dtype=torch.float64).log() for values in (sizes, seconds))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def show(axis: str, cases: list[dict], dtype: str) -> None:
    sizes = [case["n_tokens" if axis == "N" else "vocab_size"] for case in cases]
    rows = [case["rows"][0] for case in cases]
    print(f"{dtype}, D = {HIDDEN}, {'V = 8,192' if axis == 'N' else 'N = 256'}")
    for size, case, row in zip(sizes, cases, rows, strict=True):
        extra = max(0, row["peak_extra_bytes"] - case["accumulator_bytes"]) / 2**20
        print(f"  {axis} = {size:9,}  {row['seconds_median']:8.4f} s  {extra:6.1f} MiB")
    print(f"  time ~ {axis}^{exponent(sizes, [row['seconds_median'] for row in rows]):.2f}")


if __name__ == "__main__":
    for dtype in ("float32", "bfloat16"):
        show("N", measure(f"synthetic:8192x{HIDDEN}", ",".join(map(str, TOKENS)), dtype), dtype)
        heads = ",".join(f"synthetic:{size}x{HIDDEN}" for size in VOCABULARIES)
        show("V", measure(heads, "256", dtype), dtype)
