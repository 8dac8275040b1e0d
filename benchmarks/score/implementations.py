"""The implementations of scoring: each is one function from a loaded model to a step that gives nats.

All score under `rolling`: every token once, windows that meet without overlap.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.implementation import LIMIT, OURS, Implementation, by_name

if TYPE_CHECKING:  # the parent process looks names up here and must not pay for torch
    from torch import Tensor

    from cynosure.models import LanguageModel


class Work(NamedTuple):
    """A loaded model, a text, and how many tokens the model sees at once."""

    model: "LanguageModel"
    text: str
    window: int


Step = Callable[[], float]  # one run over the text: nats in all


def build_cynosure(work: Work, compile: bool = False) -> Step:
    from cynosure.measure import score
    from cynosure.models import split
    from cynosure.text import Document

    model = split(work.model, compile=compile)
    options: dict[str, Any] = {"protocol": "rolling", "window": work.window, "keep": False}
    return lambda: score(model, [Document("text", work.text)], **options).nats


def build_compiled(work: Work) -> Step:
    return build_cynosure(work, compile=True)


def build_lm_eval(work: Work) -> Step:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, words = work.model.model, work.model.tokenizer
    # Without its own BOS, which it would score after another where the tokenizer adds one: the same tokens as everyone.
    peer = HFLM(pretrained=model, tokenizer=words, max_length=work.window, batch_size=1, add_bos_token=False)

    def step() -> float:
        request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(work.text,), idx=0)
        return -float(peer.loglikelihood_rolling([request], disable_tqdm=True)[0])

    return step


def build_transformers(work: Work) -> Step:
    """The model's own loss, window by window."""
    import torch

    @torch.no_grad()
    def step() -> float:
        total = 0.0
        for ids, target in windows(work):
            loss = work.model.model(input_ids=ids, labels=target, shift_labels=target, use_cache=False).loss
            total += loss.item() * int((target >= 0).sum())
        return total

    return step


def build_limit(work: Work) -> Step:
    """Every product of a layer with its weights, of every window, by the faster of torch's two libraries."""
    import time

    import torch
    from torch.nn import functional as F

    from cynosure.models.cpu import linear

    products: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad(), Recorder(products):
        for ids, _ in windows(work):
            work.model.model(input_ids=ids, use_cache=False)

    @torch.no_grad()
    def seconds(product: "Callable[..., Tensor]") -> float:
        start = time.perf_counter()
        for x, weight in products:
            product(x, weight)
        return time.perf_counter() - start

    own = min((F.linear, linear), key=seconds)

    def step() -> float:
        seconds(own)
        return 0.0

    return step


def Recorder(products: "list[tuple[Tensor, Tensor]]") -> Any:
    """A mode that notes the weights of every F.linear, and an input of the same shape; one for all calls of a shape."""
    import torch
    from torch.nn import functional as F
    from torch.overrides import TorchFunctionMode

    inputs: dict[Any, Tensor] = {}

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.linear:
                x, weight = args[:2]
                products.append((inputs.setdefault((x.shape, x.dtype), torch.randn_like(x)), weight))
            return func(*args, **(kwargs or {}))

    return Mode()


def windows(work: Work) -> "Iterator[tuple[Tensor, Tensor]]":
    """(1, n) token ids that a window sees, and what comes after each, -100 where that is not scored."""
    import torch

    from cynosure.text import PROTOCOLS, prefix_token, tokenize

    x = torch.tensor([prefix_token(work.model.tokenizer), *tokenize(work.model.tokenizer, work.text).ids.tolist()])
    for window in PROTOCOLS["rolling"].cut(len(x), work.window, work.window):
        target = x[window.see_start + 1 : window.see_stop + 1].clone()
        target[: len(target) - window.n_scored] = -100
        yield x[window.see_start : window.see_stop][None], target[None]


COMPILED = "cynosure-compile"
LM_EVAL = "lm-eval"

IMPLEMENTATIONS = by_name(
    Implementation(OURS, 'cynosure.score(model, text, protocol="rolling")', build_cynosure),
    Implementation(COMPILED, "the same with compile=True", build_compiled),
    Implementation(LM_EVAL, "lm_eval HFLM(batch_size=1, add_bos_token=False).loglikelihood_rolling", build_lm_eval),
    Implementation("transformers", "model(ids, labels=...).loss, window by window", build_transformers),
    Implementation(LIMIT, "the matmuls of layers with their weights alone", build_limit, checked=False),
)
