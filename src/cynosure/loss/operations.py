"""The public operations, and the operators that they become in a graph."""

from cynosure.loss.compiler import TRACERS
from cynosure.loss.divergence.kl import linear_kl_div
from cynosure.loss.divergence.topk import linear_topk_kl_div
from cynosure.loss.functional import cross_entropy, linear_cross_entropy
from cynosure.loss.logprobs import TokenLogprobs, logits_token_logprobs, token_logprobs
from cynosure.loss.stats import TokenStats, logits_token_stats, token_stats
from cynosure.loss.tracing import trace

__all__ = [
    "TokenLogprobs",
    "TokenStats",
    "cross_entropy",
    "linear_cross_entropy",
    "linear_kl_div",
    "linear_topk_kl_div",
    "logits_token_logprobs",
    "logits_token_stats",
    "token_logprobs",
    "token_stats",
]

TRACERS[:] = [trace]
