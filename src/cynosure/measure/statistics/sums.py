"""Sums of floats that come out the same, bit for bit, however the values are split, ordered and merged."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

QUANTUM_BITS = 40  # values are whole multiples of 2**-40: an error of 4.5e-13 at most, none for a float32 above 1e-5
LIMIT = 2.0**22
SLICE = 2**18  # values at a time, so that what is made on the way stays in the cache
LOW = 2**32

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sums:
    """`n_groups` sums, each (hi * 2**32 + lo) * 2**-40 with 0 <= lo < 2**32; both int64 of shape (n_groups,).

    Every value is rounded to a multiple of 2**-40 once, then integers are added: `a + b` has no rounding at all, so the
    order of merging never matters. A sum may reach 2**55.

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
        """The sums of nothing."""
        return cls(np.zeros(n_groups, np.int64), np.zeros(n_groups, np.int64))

    @classmethod
    def of(cls, values: ArrayLike, groups: ArrayLike | None = None, n_groups: int = 1) -> "Sums":
        """The sums of values (N,) by their group (N,), integers in [0, n_groups); all in group 0 where none are given.

        ValueError for a value that is not finite or not below 2**22 in size, and for a group that does not exist.

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
                group = where[start : start + SLICE]  # float64 holds the sums of a slice exactly: they are below 2**50
                np.add(sums.hi, np.bincount(group, hi, n_groups).astype(np.int64), out=sums.hi)
                np.add(sums.lo, np.bincount(group, lo, n_groups).astype(np.int64), out=sums.lo)
        return sums._carried()

    @classmethod
    def columns(cls, matrix: ArrayLike) -> "Sums":
        """The sums over N of each of the T columns of a matrix (N, T); ValueError as of `of`.

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
        """The sums (n_groups,) as float64, rounded once where they are below 2**45 (there hi fits a float64)."""
        return np.ldexp(np.ldexp(self.hi.astype(np.float64), 32) + self.lo, -QUANTUM_BITS)

    @property
    def total(self) -> float:
        """The sum, where there is one group; ValueError where there are more."""
        if len(self.hi) != 1:
            raise ValueError(f"a total is of one group, these are the sums of {len(self.hi)}: take .values")
        return float(self.values[0])

    def _carried(self) -> "Sums":
        return Sums(self.hi + self.lo // LOW, self.lo % LOW)


def split_quanta(values: NDArray[Any]) -> tuple[Ints, Ints]:
    """Each value as hi * 2**32 + lo quanta, |hi| <= 2**30: 2**31 of them can be added up in int64."""
    if not np.all(np.abs(values) < LIMIT):  # also where one is NaN
        raise ValueError(f"only finite values below {LIMIT:.0f} can be added up exactly, got {_first_bad(values)}")
    quanta = np.rint(values.astype(np.float64) * 2.0**QUANTUM_BITS).astype(np.int64)
    return quanta >> 32, quanta & (LOW - 1)


def _first_bad(values: NDArray[Any]) -> str:
    flat = values.ravel()
    at = int(np.argmax(~(np.abs(flat) < LIMIT)))
    return f"{flat[at]}"


def _check_groups(groups: NDArray[Any], n_values: int, n_groups: int) -> NDArray[Any]:
    if len(groups) != n_values:
        raise ValueError(f"every value has a group, got {n_values} values and {len(groups)} groups")
    if len(groups) and not (groups.min() >= 0 and groups.max() < n_groups):
        raise ValueError(f"groups must be in [0, {n_groups}), got {groups.min()} to {groups.max()}")
    return groups
