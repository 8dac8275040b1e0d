"""Compare the gradients of a loss with those of the reference loss."""

from typing import Any

import torch
from torch import Tensor, nn

from cynosure.auditing.findings import Report
from cynosure.auditing.loss import Compared
from cynosure.auditing.subject import Subject
from cynosure.auditing.truth import coarsest, d_logits, own_logits


def check_gradients(subject: Subject, compared: Compared, report: Report) -> None:
    """Check the gradients of the head's weight and of the last trained parameter of the backbone.

    Half of the digits must agree, to a factor of four: a gradient is a sum over tokens of terms of both signs.
    """
    parameters = examined(subject.inner)
    if not parameters:
        report.made("gradients", "not made: no parameter in memory requires a gradient")
        return
    with torch.enable_grad():
        loss = subject.loss(compared.batch.with_labels(compared.batch.labels))
        actual = gradients([loss], [None], parameters) if loss.requires_grad else [None] * len(parameters)
        own = own_logits(subject, compared.batch)
        outputs, upstream = [own.logits], [d_logits(own.logits.detach(), compared.batch.truth)]
        if compared.auxiliary and own.auxiliary is not None:
            outputs, upstream = [*outputs, own.auxiliary], [*upstream, torch.ones_like(own.auxiliary)]
        right = gradients(outputs, upstream, parameters)
    tolerance = 4 * torch.finfo(coarsest(own)).eps ** 0.5
    for name, ours, theirs in zip(parameters, actual, right, strict=True):
        if theirs is not None and theirs.norm() > 0 and not compare(name, ours, theirs, tolerance, report):
            return


def examined(model: Any) -> dict[str, nn.Parameter]:
    """Return the head's weight and the last other trained parameter, which needs no backward through all layers."""
    trained = {name: parameter for name, parameter in model.named_parameters() if is_examinable(parameter)}
    layer = model.get_output_embeddings()
    head = getattr(layer, "weight", None)
    weight = {name: parameter for name, parameter in trained.items() if parameter is head}
    of_head = set(layer.parameters()) if layer is not None else set()
    backbone = [name for name, parameter in trained.items() if parameter not in of_head]
    return weight | {name: trained[name] for name in backbone[-1:]}


def is_examinable(parameter: nn.Parameter) -> bool:
    """Whether a gradient reaches a parameter. It does not if offloaded: each forward then uses another tensor."""
    return parameter.requires_grad and not parameter.is_meta


def gradients(outputs: list[Tensor], upstream: list[Any], parameters: dict[str, nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(outputs, list(parameters.values()), upstream, allow_unused=True))


def compare(name: str, ours: Tensor | None, theirs: Tensor, tolerance: float, report: Report) -> bool:
    """Report whether the gradient of a parameter is right, by the norm of its difference; return the verdict."""
    b = theirs.double()
    a = torch.zeros_like(b) if ours is None else ours.double()
    difference = float((a - b).norm() / b.norm())
    norms = f"norm {float(a.norm()):.3e}, in the reference {float(b.norm()):.3e}"
    result = f"{norms}; relative difference {difference:.1e}, rounding allows {tolerance:.1e}"
    report.made(f"gradient of {name}", result)
    if difference <= tolerance:
        return True
    ratio = float((a * b).sum() / (b * b).sum())
    if not float(a.norm()):
        report.find("gradient-missing", f"{name} gets none, the reference loss gives it norm {float(b.norm()):.3e}")
    elif float((a - ratio * b).norm()) <= tolerance * abs(ratio) * float(b.norm()):
        report.find("gradient-scaled", f"{name}: {ratio:.4g} times the reference; {result}")
    else:
        report.find("gradient-differs", f"{name}: {result}")
    return False
