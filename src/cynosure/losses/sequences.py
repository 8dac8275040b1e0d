"""From log-probabilities of tokens to those of sequences."""

from torch import Tensor

from cynosure.losses.inputs import check_rows, of_tokens


def sequence_logprobs(logprobs: Tensor, mask: Tensor, average: bool = False) -> Tensor:
    """Add up the log-probabilities of each sequence's tokens: the input of the preference losses.

    `log p(y) = sum of log p(y_t)` over the tokens that count; `average` divides by their number.

    Args:
        logprobs: (B, T) log-probabilities of tokens, for example of `cynosure.token_logprobs`.
        mask: (B, T) bool, or 0 and 1: the tokens that count. Prompt and padding do not.
        average: divide by the number of tokens, as SimPO, ORPO and IPO need it.

    Returns:
        (B,); 0.0 for a sequence without a token that counts. float32, or float64 for float64 log-probabilities.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
        >>> mask = torch.tensor([[1, 1], [1, 0]])
        >>> sequence_logprobs(logprobs, mask)
        tensor([-3., -3.])
        >>> sequence_logprobs(logprobs, mask, average=True)
        tensor([-1.5000, -3.0000])
    """
    counted, logprobs = of_tokens(mask, logprobs=logprobs)
    check_rows("logprobs", logprobs)
    total = logprobs.sum(-1)
    return total / counted.sum(-1).clamp(min=1) if average else total
