"""The loss, its gradients and per-token figures, without the N x V logits. Read `reference.py` first."""

from cynosure.loss.functional import cross_entropy as cross_entropy
from cynosure.loss.functional import linear_cross_entropy as linear_cross_entropy
from cynosure.loss.functional import logits_token_logprobs as logits_token_logprobs
from cynosure.loss.functional import token_logprobs as token_logprobs
from cynosure.loss.modules import CrossEntropyLoss as CrossEntropyLoss
from cynosure.loss.modules import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from cynosure.loss.plan import Plan as Plan
from cynosure.loss.plan import explain as explain
from cynosure.loss.stats import TokenStats as TokenStats
from cynosure.loss.stats import logits_token_stats as logits_token_stats
from cynosure.loss.stats import token_stats as token_stats
from cynosure.loss.totals import TokenSums as TokenSums
from cynosure.loss.totals import perplexity as perplexity
