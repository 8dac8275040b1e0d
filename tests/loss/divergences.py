"""Random pairs of models for the divergences, and one way to run an operation on them."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.loss.cases import Result, upstream_like

DIRECTIONS = ("forward", "reverse", "jsd")


@dataclass(frozen=True)
class Inputs:
    tensors: dict[str, Any]  # floating point: leaves, but for those that are frozen
    options: dict[str, Any]
    frozen: tuple[str, ...] = ()

    def to(self, dtype, *names):
        """The named tensors, or all but the weights of tokens, in another dtype."""
        names = names or tuple(name for name in self.tensors if name not in ("token_weight", "logprobs"))
        return replace(self, tensors={k: v.to(dtype) if k in names else v for k, v in self.tensors.items()})

    def double(self):
        return replace(self, tensors={k: v.double() for k, v in self.tensors.items()})

    def using(self, **options):
        return replace(self, options={**self.options, **options})

    def with_tensors(self, **tensors):
        return replace(self, tensors={**self.tensors, **tensors})

    def freeze(self, *names):
        return replace(self, frozen=names)

    def call(self, op, **more):
        return op(**self.tensors, **{**self.options, **more})


def make_models(lead=(3, 5), d=5, e=4, v=7, std=1.5, padding=0, bias=False, token_weight=False, seed=0, **options):
    """Two models of other hidden sizes; `padding` more rows in the teacher's head. Some token weights are 0."""
    torch.manual_seed(seed)
    f64 = torch.float64
    tensors = {
        "student_hidden": torch.randn(*lead, d, dtype=f64),
        "student_weight": torch.randn(v, d, dtype=f64) * std / d**0.5,
        "teacher_hidden": torch.randn(*lead, e, dtype=f64),
        "teacher_weight": torch.randn(v + padding, e, dtype=f64) * std / e**0.5,
    }
    if bias:
        tensors |= {"student_bias": torch.randn(v, dtype=f64), "teacher_bias": torch.randn(v + padding, dtype=f64)}
    if token_weight:
        weights = torch.rand(lead, dtype=f64) + 0.5
        options["token_weight"] = torch.where(torch.rand(lead) < 0.3, 0.0, weights)
    return Inputs(tensors, options)


def make_topk(lead=(3, 5), d=5, v=9, k=3, std=1.5, bias=False, token_weight=False, seed=0, **options):
    """A student and the k likeliest classes of a random teacher."""
    models = make_models(lead, d, 4, v, std, bias=bias, token_weight=token_weight, seed=seed, **options)
    teacher = (models.tensors["teacher_hidden"] @ models.tensors["teacher_weight"].t()).log_softmax(-1).topk(k, -1)
    tensors = {name: x for name, x in models.tensors.items() if name.startswith("student_")}
    return Inputs({**tensors, "logprobs": teacher.values}, {**models.options, "ids": teacher.indices})


def evaluate(op, inputs, upstream=None, **more):
    """The divergence and the gradient of every leaf, which are fresh copies, under one arbitrary upstream gradient."""
    leaves = {k: x.detach().clone().requires_grad_(k not in inputs.frozen) for k, x in inputs.tensors.items()}
    loss = inputs.with_tensors(**leaves).call(op, **more)
    trained = {k: x for k, x in leaves.items() if x.requires_grad}
    upstream = upstream_like(loss) if upstream is None else upstream.to(loss)
    grads = torch.autograd.grad(loss, list(trained.values()), upstream)
    return Result(loss.detach(), dict(zip(trained, grads, strict=True)))
