"""The gradients of a loss against those of the truth."""

from typing import Any

import torch
from torch import Tensor, nn

from cynosure.auditing.findings import Report
from cynosure.auditing.loss import Compared
from cynosure.auditing.subject import Subject
from cynosure.auditing.truth import coarsest, d_logits, own_logits


def check_gradients(subject: Subject, compared: Compared, report: Report) -> None:
    """Of the head's weight, and of the last parameter of the body that is trained.

    Half of the digits must agree, to a factor of four: a gradient is a sum over tokens of terms of both signs.
    """
    parameters = examined(subject.inner)
    if not parameters:
        report.made("gradients", "not made: no parameter that is in memory requires a gradient")
        return
    with torch.enable_grad():
        loss = subject.loss(compared.batch.with_labels(compared.batch.labels))
        found = gradients([loss], [None], parameters) if loss.requires_grad else [None] * len(parameters)
        own = own_logits(subject, compared.batch)
        outputs, upstream = [own.logits], [d_logits(own.logits.detach(), compared.batch.truth)]
        if compared.auxiliary and own.auxiliary is not None:
            outputs, upstream = [*outputs, own.auxiliary], [*upstream, torch.ones_like(own.auxiliary)]
        right = gradients(outputs, upstream, parameters)
    tolerance = 4 * torch.finfo(coarsest(own)).eps ** 0.5
    for name, ours, theirs in zip(parameters, found, right, strict=True):
        if theirs is not None and theirs.norm() > 0 and not compare(name, ours, theirs, tolerance, report):
            return


def examined(model: Any) -> dict[str, nn.Parameter]:
    """The head's weight and the last trained parameter beside it, which costs no backward through all layers."""
    trained = {name: parameter for name, parameter in model.named_parameters() if is_examinable(parameter)}
    layer = model.get_output_embeddings()
    head = getattr(layer, "weight", None)
    found = {name: parameter for name, parameter in trained.items() if parameter is head}
    of_head = set(layer.parameters()) if layer is not None else set()
    body = [name for name, parameter in trained.items() if parameter not in of_head]
    return found | {name: trained[name] for name in body[-1:]}


def is_examinable(parameter: nn.Parameter) -> bool:
    """Whether a gradient reaches it: an offloaded weight is another tensor in each forward."""
    return parameter.requires_grad and not parameter.is_meta


def gradients(outputs: list[Tensor], upstream: list[Any], parameters: dict[str, nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(outputs, list(parameters.values()), upstream, allow_unused=True))


def compare(name: str, ours: Tensor | None, theirs: Tensor, tolerance: float, report: Report) -> bool:
    """Whether a parameter's gradient is the right one; relative difference of norms."""
    b = theirs.double()
    a = torch.zeros_like(b) if ours is None else ours.double()
    apart = float((a - b).norm() / b.norm())
    norms = f"norm {float(a.norm()):.3e}, in truth {float(b.norm()):.3e}"
    figures = f"{norms}; {apart:.1e} apart, rounding allows {tolerance:.1e}"
    report.made(f"gradient of {name}", figures)
    if apart <= tolerance:
        return True
    ratio = float((a * b).sum() / (b * b).sum())
    if not float(a.norm()):
        report.find("gradient-missing", f"{name} gets none, the true loss gives it one of norm {float(b.norm()):.3e}")
    elif float((a - ratio * b).norm()) <= tolerance * abs(ratio) * float(b.norm()):
        report.find("gradient-scaled", f"{name}: {ratio:.4g} times the true one; {figures}")
    else:
        report.find("gradient-differs", f"{name}: {figures}")
    return False
