"""`cynosure.patch` on one model: refused and why, or every call compared."""

import copy
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cynosure
from tests.census.calls import Call, calls_of
from tests.census.compare import (
    BFLOAT16,
    FLOAT32,
    Outcome,
    Tolerance,
    as_exact,
    compared,
    copied,
    outcomes,
    seeded,
    text_of,
    without_kernels,
)

Calls = dict[str, Call]
Record = dict[str, Any]
Tamper = Callable[[Any, Calls], Calls]  # makes the patched model, or its calls, wrong on purpose


def of_patch(model: Any, inputs: dict[str, Any], names: tuple[str, ...] = (), tamper: Tamper | None = None) -> Record:
    """What patching this model comes to; `names`: of the calls, if not all of them and bfloat16 are wanted."""
    calls = calls_of(model, inputs)
    if names:
        calls = {name: call for name, call in calls.items() if name in names}
    wide = widened(model)
    own = outcomes(model, calls)
    own_text = None if names else logits_and_text(model, inputs)
    before = dict(vars(model))
    try:
        patch = cynosure.patch(model)
    except (ValueError, TypeError) as error:
        left = changed(model, before)
        if left:
            return {"status": "wrong", "reason": f"refused, and it leaves {left} behind"}
        return {"status": "refused", "reason": str(error)}
    except Exception as error:
        return {
            "status": "wrong",
            "reason": f"patch() crashes: {text_of(error)}",
            "trace": traceback.format_exc()[-1500:],
        }
    tampered = tamper(model, calls) if tamper is not None else calls
    ours = outcomes(model, tampered, patch)
    record = in_one_precision(own, ours, FLOAT32, lambda name: exactly(wide, calls[name], own[name], ours[name]))
    ours_text = None if names else logits_and_text(model, inputs)
    patch.undo()
    wrong = record.pop("wrong")
    if changed(model, before):
        wrong.append(f"undo leaves {changed(model, before)} behind")
    if own_text is not None and ours_text is not None:
        wrong += [f"{what} without labels differ" for what in different(own_text, ours_text)]
    if not names:
        record["bfloat16"] = in_half(model, calls)
        wrong += [f"in bfloat16: {record['bfloat16']}"] if record["bfloat16"] not in ("equal", "own error") else []
    return record | ({"status": "wrong", "reason": "; ".join(wrong)} if wrong else {"status": "equal"})


def widened(model: Any) -> Any:
    """A copy in float64; None of a model that cannot be copied."""
    try:
        return copy.deepcopy(model).double()
    except Exception:
        return None


def exactly(wide: Any, call: Call, own: Outcome, ours: Outcome) -> bool:
    """Whether a call that differs is as near to float64 as the model's own."""
    if wide is None or own.error or ours.error or ours.logits_made:
        return False
    inputs = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in call.inputs.items()}
    return as_exact(own, ours, outcomes(wide, {"exact": Call(inputs, call.train)})["exact"])


def in_one_precision(own: Record, ours: Record, tolerance: Tolerance, exact: Callable[[str], bool]) -> Record:
    """Verdicts of all calls, the worst differences, and what is wrong."""
    found = {name: compared(own[name], ours[name], tolerance) for name in own}
    for name, one in found.items():
        if one.verdict not in ("equal", "own error") and exact(name):
            found[name] = one._replace(verdict="equal")
    wrong = [f"{name}: {c.verdict}" for name, c in found.items() if c.verdict not in ("equal", "own error")]
    if all(c.verdict == "own error" for c in found.values()):
        wrong.append(f"its own forward fails: {next(iter(own.values())).error}")
    return {
        "calls": {name: c.verdict for name, c in found.items()},
        "loss": max(c.loss_difference for c in found.values()),
        "gradient": max(c.gradient_difference for c in found.values()),
        "wrong": wrong,
    }


def changed(model: Any, before: dict[str, Any]) -> list[str]:
    """Attributes of a model that are no longer what they were."""
    return sorted(n for n in {*vars(model), *before} if vars(model).get(n) is not before.get(n))


def logits_and_text(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    """The logits without labels and five greedy tokens; None where the model cannot."""
    rest = {name: x for name, x in inputs.items() if name != "labels"}
    found: dict[str, Tensor | None] = {"logits": None, "generated tokens": None}
    with torch.no_grad():
        try:
            found["logits"] = seeded(model, rest).logits
        except Exception:
            found["logits"] = None
        try:
            torch.manual_seed(0)
            found["generated tokens"] = model.generate(**copied(rest), max_new_tokens=5, do_sample=False)
        except Exception:
            found["generated tokens"] = None
    return found


def different(own: dict[str, Tensor | None], ours: dict[str, Tensor | None]) -> list[str]:
    """Which of these are not bit for bit equal, of those that the model has."""
    return [name for name, a in own.items() if a is not None and not same(a, ours[name])]


def same(a: Tensor, b: Tensor | None) -> bool:
    return type(a) is type(b) and torch.equal(a, b)  # type: ignore[arg-type]


def in_half(model: Any, calls: Calls) -> str:
    """Loss and gradients in bfloat16, as `from_pretrained` loads it: a verdict."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            half = type(model).from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
    except Exception:
        return "own error"  # it cannot be saved and loaded
    inputs = {n: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x
              for n, x in calls["plain"].inputs.items()}  # fmt: skip
    halves = {"plain": Call(inputs), "train": Call(inputs, train=True)}
    own = outcomes(half, halves)
    name = "train" if own["plain"].error else "plain"
    if own[name].error:
        return "own error"
    try:
        with cynosure.patch(half) as patch:
            ours = outcomes(half, {name: halves[name]}, patch)
    except Exception as error:
        return f"refused: {error}"
    return compared(without_kernels(own[name], half), without_kernels(ours[name], half), BFLOAT16).verdict
