"""The options of `cynosure train` for the fields of `TrainSettings`, generated from these fields."""

import re
from collections.abc import Callable
from dataclasses import Field, fields
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, cast, get_type_hints

import typer

from cynosure.cli.common import SHORT, as_options
from cynosure.training import TOKENS, TOLERANCE, Option, TrainSettings

COUNT = re.compile(r"(\d+(?:\.\d+)?)([kKmMbBgG]?)")
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def count(text: str) -> int:
    """Parse a number of tokens with an optional suffix k, M, B or G.

    >>> count("20M"), count("1.5k"), count("4096")
    (20000000, 1500, 4096)
    """
    match = COUNT.fullmatch(text.replace(",", "").replace("_", ""))
    if not match:
        raise typer.BadParameter(f"{text!r} is not a number of tokens: expected e.g. 4096, 500k, 20M or 1.5B")
    return round(float(match[1]) * FACTORS[match[2].lower()])


def tolerance(text: str) -> float | str:
    """Parse a tolerance: a number, or the word dtype.

    >>> tolerance("0.01"), tolerance("dtype")
    (0.01, 'dtype')
    """
    try:
        return text if text == "dtype" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a tolerance: expected a number from 0 to 1, or dtype") from None


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the `**settings` of a command by one option for each field of `TrainSettings`.

    An option that was not given is None, because an explicit default differs from an open field.
    """
    types = get_type_hints(TrainSettings)
    options = [parameter(field, types[field.name]) for field in fields(TrainSettings)]
    own = [each for each in signature(command).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    place = 1 + max(i for i, each in enumerate(own) if each.name in ("texts", "out", "valid"))
    parameters = [*own[:place], *options, *own[place:]]
    cast("Any", command).__signature__ = signature(command).replace(parameters=parameters)
    return command


def parameter(field: "Field[Any]", kind: Any) -> Parameter:
    """Return the option of a setting, as typer expects it."""
    setting: Option = field.metadata["option"]
    flag = "--" + SHORT.get(field.name, field.name).replace("_", "-")
    more: dict[str, Any] = {"help": as_options(setting.help + default(field)), "show_default": False}
    if setting.metavar:
        more["metavar"] = setting.metavar
    if setting.unit == TOKENS:
        more |= {"parser": count, "metavar": TOKENS.upper()}
    if setting.unit == TOLERANCE:
        kind, more = str, more | {"parser": tolerance, "metavar": "X|dtype"}
    if setting.choices:
        kind = Literal.__getitem__(setting.choices)
    annotation = Annotated[kind | None, typer.Option(flag, **more)]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def default(field: "Field[Any]") -> str:
    """Return the default of a setting for the help text; empty for None and for flags."""
    value = field.metadata["option"].shown or field.default
    if value is None or value is False:
        return ""
    return f" [default: {value:g}]" if isinstance(value, float) else f" [default: {value}]"
