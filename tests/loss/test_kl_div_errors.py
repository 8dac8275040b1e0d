"""Bad arguments of the divergences: one clear sentence each, which names the argument."""

import pytest
import torch

from cynosure.loss import linear_kl_div, linear_topk_kl_div
from tests.loss.divergences import make_models, make_topk

pytestmark = pytest.mark.cpu_only
NAN = torch.nan


@pytest.mark.parametrize(("options", "message"), [
    ({"direction": "backward"}, "direction must be one of 'forward', 'reverse', 'jsd', got 'backward'"),
    ({"beta": 0.5}, "beta needs direction='jsd', got direction='forward': leave one out"),
    ({"direction": "jsd", "beta": 1.0}, "strictly between 0 and 1, got 1.0: .* direction='reverse'"),
    ({"direction": "jsd", "beta": -0.5}, "beta must be strictly between 0 and 1, got -0.5"),
    ({"temperature": 0}, "temperature must be positive and finite, got 0.0"),
    ({"student_softcap": -1.0}, "student_softcap must be positive and finite, got -1.0"),
    ({"teacher_scale": torch.inf}, "teacher_scale must be finite, got inf"),
    ({"reduction": "batchmean"}, "reduction must be 'mean', 'sum' or 'none', got 'batchmean'"),
    ({"vocab_size": 0}, "vocab_size must be at least 1, or None, got 0"),
    ({"vocab_size": 8}, "vocab_size=8, but student_weight has only 7 rows"),
    ({"shift": 6}, "shift must be at most the sequence length 5, got 6"),
    ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
    ({"token_weight": torch.ones(5)}, r"token_weight must have shape \(3, 5\), got \(5,\)"),
    ({"normalizer": 3.0, "reduction": "sum"}, "normalizer needs reduction='mean'"),
])  # fmt: skip
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_models().call(linear_kl_div, **options)


@pytest.mark.parametrize(("tensors", "error", "message"), [
    ({"teacher_weight": torch.randn(8, 4).double()}, ValueError,
     "student_weight has 7 rows and teacher_weight 8: if they are padded heads of one vocabulary, pass .* vocab_size"),
    ({"teacher_hidden": torch.randn(5, 4).double()}, ValueError,
     r"student_hidden and teacher_hidden must have the same leading shape, got \(3, 5, 5\) and \(5, 4\)"),
    ({"teacher_weight": torch.randn(7, 4)}, TypeError, "teacher_weight is torch.float32, but teacher_hidden is"),
    ({"student_weight": torch.randn(7, 4).double()}, ValueError, "student_hidden must have shape .* student_weight"),
    ({"student_hidden": torch.ones(3, 5, 5).long()}, TypeError, "student_hidden must be a floating-point tensor"),
    ({"student_bias": torch.ones(6).double()}, ValueError, r"student_bias must have shape \(7,\)"),
    ({"teacher_hidden": torch.randn(3, 5, 4, device="meta"), "teacher_weight": torch.randn(7, 4, device="meta")},
     ValueError, "teacher_hidden is on meta, but student_hidden is on cpu"),
])  # fmt: skip
def test_tensors(tensors, error, message):
    with pytest.raises(error, match=message):
        make_models().with_tensors(**tensors).call(linear_kl_div)


@pytest.mark.parametrize(("options", "message"), [
    ({"direction": "jsd"}, "direction must be one of 'forward', 'reverse', got 'jsd'"),
    ({"tail": "drop"}, "tail must be 'bucket' or 'renormalize', got 'drop'"),
    ({"temperature": -1}, "temperature must be positive and finite, got -1.0"),
    ({"ids": torch.zeros(3, 5, dtype=torch.long)}, r"ids must have shape \(3, 5, K\), the leading shape of"),
    ({"ids": torch.zeros(3, 5, 2, dtype=torch.long)}, r"logprobs must have the shape of ids, \(3, 5, 2\), got"),
    ({"ids": torch.zeros(3, 5, 10, dtype=torch.long)}, "K from 1 to 9, the vocabulary, got"),
])  # fmt: skip
def test_options_of_topk(options, message):
    with pytest.raises(ValueError, match=message):
        make_topk().call(linear_topk_kl_div, **options)


def test_dtypes_of_topk():
    topk = make_topk()
    with pytest.raises(TypeError, match="ids must be class indices"):
        topk.call(linear_topk_kl_div, ids=topk.options["ids"].float())
    with pytest.raises(TypeError, match="logprobs must be a floating-point tensor"):
        topk.with_tensors(logprobs=topk.options["ids"]).call(linear_topk_kl_div)


@pytest.mark.parametrize(("value", "message"), [
    (NAN, r"logprobs\[1, 2, 0\] is nan, but log-probabilities are at most 0$"),
    (0.5, r"logprobs\[1, 2, 0\] is 0.5, .* at most 0: pass logprobs.log\(\) of probabilities"),
    (7.0, r"logprobs\[1, 2, 0\] is 7, .* at most 0: pass log_softmax\(-1\) of logits"),
    (0.0, r"logprobs\[1, 2\] has probabilities that add up to 1.\d+, but those of distinct classes add"),
])  # fmt: skip
def test_values_of_logprobs(value, message):
    topk = make_topk(token_weight=True)
    topk.options["token_weight"][1, 2] = 1.0
    topk.tensors["logprobs"][1, 2, 0] = value
    with pytest.raises(ValueError, match=message):
        topk.call(linear_topk_kl_div)
    topk.options["token_weight"][1, 2] = 0.0  # what is ignored is not read
    assert topk.call(linear_topk_kl_div).isfinite()


def test_values_of_ids():
    topk = make_topk()
    ids = topk.options["ids"].clone()
    ids[2, 4, 1] = 9
    with pytest.raises(IndexError, match=r"ids\[2, 4, 1\] is 9, but it must be in \[0, 9\), the vocabulary"):
        topk.call(linear_topk_kl_div, ids=ids)
    ids[2, 4, 1] = ids[2, 4, 0]
    with pytest.raises(ValueError, match=r"ids\[2, 4\] has the class \d twice, but the ids of a position must be dist"):
        topk.call(linear_topk_kl_div, ids=ids)
