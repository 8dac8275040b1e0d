"""Format measurements for tables."""

MIB = 2**20
NONE = "–"  # noqa: RUF001


def ratio(seconds: float | None, other: float | None) -> str:
    return f"{seconds / other:.2f}" if seconds and other else NONE


def mib(n_bytes: int | None) -> str:
    return NONE if n_bytes is None else f"{n_bytes / MIB:,.0f}"


def spread(values: list[float], digits: int = 2) -> str:
    """Return the range of several values; an empty string for one."""
    return f"{min(values):,.{digits}f}-{max(values):,.{digits}f}" if len(values) > 1 else ""


def error(row_errors: dict[str, float] | None, name: str) -> str:
    return f"{row_errors[name]:.1e}" if row_errors and name in row_errors else NONE
