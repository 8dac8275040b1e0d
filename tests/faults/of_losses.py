"""Faults of the losses of post-training."""

from tests.faults.fault import Fault

PREFERENCE, POLICY, KL = "losses/preference.py", "losses/policy.py", "losses/kl.py"
TOKENS, COMPLEMENT, INPUTS = "losses/tokens.py", "losses/complement.py", "losses/inputs.py"

FAULTS = [
    Fault("ipo-without-half", PREFERENCE, "1 / (2 * beta)", "1 / beta", "the target of IPO",
          "losses/test_formulas.py"),
    Fault("robust-adds", PREFERENCE, "else -smoothing / (1 - 2 * smoothing)", "else smoothing",
          "robust DPO is conservative DPO", "losses/test_formulas.py"),
    Fault("simpo-margin-sign", PREFERENCE, "- gamma, smoothing", "+ gamma, smoothing", "the margin of SimPO",
          "losses/test_formulas.py"),
    Fault("odds-of-one", PREFERENCE, "- (log1mexp(chosen) - log1mexp(rejected))", "- log1mexp(chosen)",
          "the odds ratio of ORPO", "losses/test_formulas.py"),
    Fault("kto-baseline-negative", PREFERENCE, ".detach().clamp(min=0)", ".detach()", "the baseline of KTO",
          "losses/test_formulas.py"),
    Fault("clip-both-sides", POLICY, "log_ratio.clamp(max=high)", "log_ratio.clamp(low, high)",
          "the ratio of a good text is clipped from below", "losses/test_formulas.py"),
    Fault("ratio-over-padding", POLICY, "counted.sum(-1).clamp(min=1))[:, None]", "logprobs.shape[1])[:, None]",
          "the ratio of a text is a mean over padding", "losses/test_formulas.py"),
    Fault("rloo-mean", POLICY, "logprobs.sum(-1) - old_logprobs.detach().sum(-1)",
          "logprobs.mean(-1) - old_logprobs.detach().mean(-1)", "the ratio of RLOO", "losses/test_formulas.py"),
    Fault("gkd-swapped", "losses/distillation.py", '"forward" if beta == 0 else "reverse"',
          '"reverse" if beta == 0 else "forward"', "the directions of GKD are swapped", "losses/test_distillation.py"),
    Fault("kl-swapped", KL, "torch.expm1(-ratio) + ratio", "torch.expm1(ratio) - ratio",
          "k3 estimates another divergence", "losses/test_distillation.py"),
    Fault("kl-teaches-nothing", KL, "ratio.detach() * (1 + logprobs - logprobs.detach())", "ratio",
          "the gradient of k1 has mean 0", "losses/test_distillation.py"),
    Fault("complement-unlimited", COMPLEMENT, "-torch.finfo(logprobs.dtype).eps", "0.0",
          "a p that rounds to 1 has an infinite loss", "losses/test_extremes.py"),
    Fault("complement-flat", COMPLEMENT, "logprobs - logprobs.detach() + most", "torch.full_like(logprobs, most)",
          "the most certain token has no gradient", "losses/test_extremes.py"),
    Fault("focal-weight-constant", TOKENS, "(gamma * log1mexp(logprobs)).exp()",
          "(gamma * log1mexp(logprobs.detach())).exp()", "the weight of the focal loss has no gradient",
          "losses/test_formulas.py"),
    Fault("masked-times-zero", INPUTS, "torch.where(counted, x, 0.0)", "x * counted",
          "NaN in a masked position reaches the loss", "losses/test_formulas.py"),
    Fault("group-biased", "losses/advantages.py", "others.clamp(min=1))", "(others + 1))",
          "the standard deviation of a group", "losses/test_advantages.py"),
]  # fmt: skip
