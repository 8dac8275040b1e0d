"""Published losses of post-training, as short formulas on log-probabilities: preferences, policies, distillation.

Every function but `gkd_loss`, which takes hidden states, takes log p of the tokens that a text has.
`cynosure.token_logprobs` computes it without the logits.
Log-probabilities of other models (the reference, the teacher, the old policy) and advantages are constants: no gradient
reaches them. Masked positions may hold anything, also NaN: they reach neither loss nor gradient.
"""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
