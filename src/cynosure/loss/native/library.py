"""Load the compiled library through ctypes: it needs no torch or Python ABI, and runs without the GIL."""

import ctypes
from ctypes import c_double, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cynosure.loss.native.build import HERE, LIBRARY, MISSING

INSTRUCTIONS = ("portable", "avx2", "avx512")  # in the order of row.h
STORED = {"float32": 0, "float64": 1, "bfloat16": 2}
AGAIN = "install a C++ compiler (g++ or clang++), then: python -m cynosure.loss.native.build"


class Logits(ctypes.Structure):
    """`Logits` of rows.h."""

    _fields_ = [
        ("data", c_void_p), ("stored", c_int64), ("n_rows", c_int64), ("vocab_size", c_int64), ("stride", c_int64),
        ("scale", c_double), ("softcap", c_double), ("instructions", c_int64), ("n_threads", c_int64),
    ]  # fmt: skip


class LossRows(ctypes.Structure):
    """`LossRows` of rows.h."""

    _fields_ = [
        ("logits", Logits), ("first", c_int64), ("classes", c_void_p), ("probability", c_void_p),
        ("n_classes", c_int64), ("probability_stride", c_int64), ("k", c_void_p), ("class_weight", c_void_p),
        ("upstream", c_void_p), ("entropy", c_void_p), ("keep", c_double), ("share", c_double), ("z_loss", c_double),
        ("loss", c_void_p), ("top", c_void_p), ("exp", c_void_p), ("dot", c_void_p), ("mass", c_void_p),
        ("surprise", c_void_p),
    ]  # fmt: skip


class StatsRows(ctypes.Structure):
    """`StatsRows` of rows.h."""

    _fields_ = [
        ("logits", Logits), ("first", c_int64), ("target", c_void_p), ("target_logit", c_void_p), ("beta", c_void_p),
        ("n_beta", c_int64), ("equal_steps", c_int64), ("target_z", c_void_p), ("top", c_void_p),
        ("second", c_void_p), ("exp", c_void_p), ("square", c_void_p), ("surprise", c_void_p), ("tempered", c_void_p),
        ("above", c_void_p), ("argmax", c_void_p), ("topk", c_int64), ("top_z", c_void_p), ("top_ids", c_void_p),
    ]  # fmt: skip


class MatmulArguments(ctypes.Structure):
    """`Matmul` of gemm.h."""

    _fields_ = [
        ("a", c_void_p), ("a_row", c_int64), ("a_column", c_int64), ("b", c_void_p), ("b_row", c_int64),
        ("b_column", c_int64), ("m", c_int64), ("n", c_int64), ("k", c_int64), ("sum", c_void_p), ("narrow", c_void_p),
        ("low", c_void_p), ("stride", c_int64), ("add", c_int64), ("keep_low", c_int64), ("n_threads", c_int64),
    ]  # fmt: skip


class ColumnSumsArguments(ctypes.Structure):
    """`ColumnSums` of columns.h."""

    _fields_ = [
        ("dlogits", Logits), ("weight", c_void_p), ("along", c_void_p), ("squares", c_void_p), ("weighed", c_void_p),
        ("projected", c_void_p),
    ]  # fmt: skip


class TakeColumns(ctypes.Structure):
    """`TakeColumns` of columns.h."""

    _fields_ = [
        ("dlogits", Logits), ("ids", c_void_p), ("factor", c_void_p), ("n_ids", c_int64), ("taken", c_void_p),
    ]  # fmt: skip


class RowSquares(ctypes.Structure):
    """`RowSquares` of columns.h."""

    _fields_ = [("rows", Logits), ("squares", c_void_p)]


class WeightRows(ctypes.Structure):
    """`WeightRows` of columns.h."""

    _fields_ = [
        ("dweight", c_void_p), ("low", c_void_p), ("touched", c_void_p), ("n_rows", c_int64), ("hidden_size", c_int64),
        ("instructions", c_int64), ("n_threads", c_int64),
    ]  # fmt: skip


class AddRows(ctypes.Structure):
    """`AddRows` of columns.h."""

    _fields_ = [("to", WeightRows), ("ids", c_void_p), ("part", c_void_p), ("n_ids", c_int64)]


class FinishRows(ctypes.Structure):
    """`FinishRows` of columns.h."""

    _fields_ = [("to", WeightRows), ("along", c_void_p), ("axis", c_void_p)]


class DivergenceRows(ctypes.Structure):
    """`DivergenceRows` of divergence.h."""

    _fields_ = [
        ("student", Logits), ("teacher", Logits), ("direction", c_int64), ("beta", c_double), ("temperature", c_double),
        ("upstream", c_void_p), ("write_student", c_int64), ("write_teacher", c_int64), ("divergence", c_void_p),
    ]  # fmt: skip


VERSION = 2  # of rows.h
OF_CALLS = (
    LossRows, StatsRows, MatmulArguments, ColumnSumsArguments, TakeColumns, RowSquares, AddRows, FinishRows,
    DivergenceRows,
)  # fmt: skip
LAYOUT = VERSION
for structure in OF_CALLS:
    LAYOUT = (LAYOUT * 1009 + ctypes.sizeof(structure)) % 1_000_000_007
ON_ROWS = (
    "cynosure_loss_rows", "cynosure_stats_rows", "cynosure_column_sums", "cynosure_take_columns",
    "cynosure_row_squares", "cynosure_add_rows", "cynosure_finish_rows", "cynosure_divergence_rows",
)  # fmt: skip


class Library(NamedTuple):
    """The functions of the library, or the reason why it is missing."""

    functions: ctypes.CDLL | None
    instructions: tuple[str, ...]  # those of this processor, best first
    has_bfloat16: bool
    reason: str


def call(name: str, arguments: ctypes.Structure) -> None:
    """Call a function of the library, which returns the bytes it failed to allocate. Raises MemoryError for them."""
    functions = library().functions
    assert functions is not None, library().reason
    if missing := getattr(functions, name)(ctypes.byref(arguments)):
        raise MemoryError(
            f"out of memory: {name} in {LIBRARY} cannot allocate {missing:,} bytes of scratch memory. "
            "Free memory, or use fewer threads (torch.set_num_threads) or a smaller chunk_tokens."
        )


@cache
def library() -> Library:
    """Return the library beside this file, loaded once."""
    return load(HERE)


def load(folder: Path) -> Library:
    """Load the library in `folder`; any problem is returned as a reason, not raised as an error."""
    path = folder / LIBRARY
    if not path.exists():
        missing = folder / MISSING
        why = missing.read_text(encoding="utf-8").strip() if missing.exists() else "it was not compiled"
        return Library(None, (), False, f"{why}; {AGAIN}")
    try:
        functions = ctypes.CDLL(str(path))
        layout = functions.cynosure_layout
        layout.restype = functions.cynosure_instructions.restype = c_int64
        if layout() != LAYOUT:
            return Library(None, (), False, f"{path} was compiled from other sources; {AGAIN}")
        bits = functions.cynosure_instructions()
    except (OSError, AttributeError) as error:
        return Library(None, (), False, f"{path} cannot be loaded: {error}; {AGAIN}")
    for name in ON_ROWS:
        functions[name].argtypes, functions[name].restype = [c_void_p], c_int64
    functions.cynosure_exp.argtypes = [c_void_p, c_void_p, c_int64, c_int64]
    functions.cynosure_exp.restype = None
    instructions = tuple(name for i, name in enumerate(INSTRUCTIONS) if bits >> i & 1)
    if has_bfloat16 := bool(bits >> len(INSTRUCTIONS) & 1):
        functions.cynosure_product.argtypes, functions.cynosure_product.restype = [c_void_p], c_int64
    return Library(functions, instructions[::-1], has_bfloat16, "")
