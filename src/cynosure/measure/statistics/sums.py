"""Sum floats so that the result is the same, bit for bit, however the values are split, ordered and merged."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

QUANTUM_BITS = 40  # values are rounded to multiples of 2**-40: an error of at most 4.5e-13, none for float32 above 1e-5
LIMIT = 2.0**22
SLICE = 2**18  # values at a time, so that intermediate arrays stay in the cache
LOW = 2**32

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sums:
    """`n_groups` sums, each (hi * 2**32 + lo) * 2**-40 with 0 <= lo < 2**32; both int64 of shape (n_groups,).

    Every value is rounded once, to a multiple of 2**-40, and then integers are added. So `a + b` does not round, and
    the order of merging does not matter. A sum may reach 2**55.

    >>> parts = [Sums.of(np.array([0.1, 0.2])), Sums.of(np.array([0.3]))]
    >>> parts[0] + parts[1] == parts[1] + parts[0] == Sums.of(np.array([0.3, 0.1, 0.2]))
    True
    >>> round((parts[0] + parts[1]).total, 9)
    0.6
    """

    hi: Ints
    lo: Ints

    @classmethod
    def zeros(cls, n_groups: int = 1) -> "Sums":
        """Return sums of no values."""
        return cls(np.zeros(n_groups, np.int64), np.zeros(n_groups, np.int64))

    @classmethod
    def of(cls, values: ArrayLike, groups: ArrayLike | None = None, n_groups: int = 1) -> "Sums":
        """Sum values (N,) by group (N,), an integer in [0, n_groups); without groups all are in group 0.

        Raises ValueError if a value is not finite or its size is not below 2**22, or if a group does not exist.

        >>> Sums.of(np.array([1.0, 2.0, 4.0]), np.array([1, 0, 1]), n_groups=2).values
        array([2., 5.])
        """
        values, sums = np.asarray(values), cls.zeros(n_groups)
        where = None if groups is None else _check_groups(np.asarray(groups), len(values), n_groups)
        for start in range(0, len(values), SLICE):
            hi, lo = split_quanta(values[start : start + SLICE])
            if where is None:
                sums.hi[0] += hi.sum()
                sums.lo[0] += lo.sum()
            else:
                group = where[start : start + SLICE]  # sums of a slice are below 2**50, so float64 holds them exactly
                np.add(sums.hi, np.bincount(group, hi, n_groups).astype(np.int64), out=sums.hi)
                np.add(sums.lo, np.bincount(group, lo, n_groups).astype(np.int64), out=sums.lo)
        return sums._carried()

    @classmethod
    def columns(cls, matrix: ArrayLike) -> "Sums":
        """Sum each of the T columns of a matrix (N, T). Raises ValueError as `of` does.

        >>> Sums.columns(np.array([[1.0, 10.0], [2.0, 20.0]])).values
        array([ 3., 30.])
        """
        matrix = np.asarray(matrix)
        sums, n_rows = cls.zeros(matrix.shape[1]), max(1, SLICE // max(1, matrix.shape[1]))
        for start in range(0, len(matrix), n_rows):
            hi, lo = split_quanta(matrix[start : start + n_rows])
            np.add(sums.hi, hi.sum(0), out=sums.hi)
            np.add(sums.lo, lo.sum(0), out=sums.lo)
        return sums._carried()

    def __add__(self, other: "Sums") -> "Sums":
        if self.hi.shape != other.hi.shape:
            raise ValueError(f"sums of {len(self.hi)} groups cannot be added to sums of {len(other.hi)}")
        return Sums(self.hi + other.hi, self.lo + other.lo)._carried()

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sums):
            return NotImplemented
        return np.array_equal(self.hi, other.hi) and np.array_equal(self.lo, other.lo)

    __hash__ = None  # type: ignore[assignment]  # arrays inside

    @property
    def values(self) -> NDArray[np.float64]:
        """The sums (n_groups,) as float64, rounded once if they are below 2**45 (then hi fits a float64)."""
        return np.ldexp(np.ldexp(self.hi.astype(np.float64), 32) + self.lo, -QUANTUM_BITS)

    @property
    def total(self) -> float:
        """The sum of the only group. Raises ValueError if there are more groups."""
        if len(self.hi) != 1:
            raise ValueError(f"a total needs a single group, these are sums of {len(self.hi)}: use .values")
        return float(self.values[0])

    def _carried(self) -> "Sums":
        return Sums(self.hi + self.lo // LOW, self.lo % LOW)


def split_quanta(values: NDArray[Any]) -> tuple[Ints, Ints]:
    """Return each value as hi * 2**32 + lo quanta, |hi| <= 2**30, so that int64 can sum 2**31 of them."""
    if not np.all(np.abs(values) < LIMIT):  # false also for NaN
        raise ValueError(f"only finite values below {LIMIT:.0f} can be added up exactly, got {_first_bad(values)}")
    quanta = np.rint(values.astype(np.float64) * 2.0**QUANTUM_BITS).astype(np.int64)
    return quanta >> 32, quanta & (LOW - 1)


def _first_bad(values: NDArray[Any]) -> str:
    flat = values.ravel()
    at = int(np.argmax(~(np.abs(flat) < LIMIT)))
    return f"{flat[at]}"


def _check_groups(groups: NDArray[Any], n_values: int, n_groups: int) -> NDArray[Any]:
    if len(groups) != n_values:
        raise ValueError(f"every value needs a group, got {n_values} values and {len(groups)} groups")
    if len(groups) and not (groups.min() >= 0 and groups.max() < n_groups):
        raise ValueError(f"groups must be in [0, {n_groups}), got {groups.min()} to {groups.max()}")
    return groups
