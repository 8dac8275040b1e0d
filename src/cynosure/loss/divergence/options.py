"""The options of a divergence, checked once."""

from typing import Literal, NamedTuple, get_args

from cynosure.loss.options import RowOptions, as_number, as_positive

Direction = Literal["forward", "reverse", "jsd"]
Tail = Literal["bucket", "renormalize"]


class DivergenceOptions(NamedTuple):
    """What the divergence of a pair of rows depends on."""

    direction: Direction
    beta: float  # of jsd
    temperature: float
    student: RowOptions  # scale and softcap
    teacher: RowOptions


def check_direction(direction: str, known: tuple[str, ...] = get_args(Direction)) -> None:
    """Raise ValueError for an unknown direction."""
    if direction not in known:
        raise ValueError(f"direction must be one of {', '.join(map(repr, known))}, got {direction!r}")


def check_tail(tail: str) -> None:
    """Raise ValueError for an unknown treatment of the other classes."""
    if tail not in get_args(Tail):
        raise ValueError(f"tail must be 'bucket' or 'renormalize', got {tail!r}")


def check_beta(beta: float | None, direction: Direction) -> float:
    """Return the teacher's weight in the mixture of jsd, strictly between 0 and 1; other directions have none."""
    if beta is None:
        return 0.5
    if direction != "jsd":
        raise ValueError(f"beta needs direction='jsd', got direction={direction!r}: leave one out")
    beta = as_number("beta", beta, "strictly between 0 and 1", 0.0, 1.0)
    if beta in (0, 1):
        raise ValueError(
            f"beta must be strictly between 0 and 1, got {beta}: for KL(teacher || student) pass direction='forward', "
            "for KL(student || teacher) direction='reverse'"
        )
    return beta


def divergence_options(
    direction: Direction, beta: float | None, temperature: float, caps: tuple[float | None, float | None],
    scales: tuple[float, float],
) -> DivergenceOptions:  # fmt: skip
    """Return the options, checked, with the softcaps and the scales of student and teacher."""
    check_direction(direction)
    student, teacher = map(cap_options, ("student_", "teacher_"), caps, scales)
    beta, temperature = check_beta(beta, direction), as_positive("temperature", temperature)
    return DivergenceOptions(direction, beta, temperature, student, teacher)


def cap_options(of: str, softcap: float | None, scale: float) -> RowOptions:
    """Return the scale and the softcap of the model that `of` names, checked."""
    softcap = None if softcap is None else as_positive(f"{of}softcap", softcap)
    return RowOptions(softcap=softcap, scale=as_number(f"{of}scale", scale, "finite"))
