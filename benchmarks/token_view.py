"""How large a report with 100,000 tokens is, how soon it is painted, and how smoothly its text scrolls, in Chromium.

    python -m benchmarks.token_view FOLDER

scores 100,000 tokens of the addresses into FOLDER, with a small random model that has SmolLM2's tokenizer, and measures
the page. It needs playwright and a Chromium on the PATH.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.texts import every_address

TOKENS = 100_000
LIMITS = {"megabytes": 15, "first paint, s": 2, "longest frame, s": 0.1}
STEP = 400  # pixels a frame: the whole view in half a minute
PAINT = """() => new Promise((done) => {
    const told = (list) => list.getEntriesByName("first-contentful-paint").forEach((entry) => done(entry.startTime))
    new PerformanceObserver(told).observe({type: "paint", buffered: true})
})"""
SCROLL = """(step) => new Promise((done) => {
    const box = document.getElementById("token-text")
    let [last, longest, frames, work] = [0, 0, 0, 0]
    new PerformanceObserver((list) => list.getEntries().forEach((entry) => { work = Math.max(work, entry.duration) }))
        .observe({type: "long-animation-frame"})
    const next = (now) => {
        if (last) longest = Math.max(longest, now - last)
        last = now
        frames++
        box.scrollTop += step
        if (box.scrollTop + box.clientHeight < box.scrollHeight - 1) requestAnimationFrame(next)
        else setTimeout(() => done([frames, longest, work]), 500)
    }
    requestAnimationFrame(next)
})"""


def texts(tokenizer: Any) -> list[str]:
    """Return as many whole addresses as have at most 100,000 tokens."""
    chosen, n_tokens = [], 0
    for address in every_address():
        n_tokens += len(tokenizer(address, verbose=False)["input_ids"])
        if n_tokens <= TOKENS:
            chosen.append(address)
    return chosen


def score_into(folder: Path) -> None:
    """Score the addresses with a small random model, which takes a minute."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import cynosure
    from cynosure.models import load

    tokenizer = load("smollm2").tokenizer
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=512)
    model: Any = LlamaForCausalLM(config)
    cynosure.score(cynosure.LanguageModel(model.eval(), tokenizer, "random"), texts(tokenizer), out=folder)


def measure(path: Path) -> dict[str, float]:
    """Open a report in Chromium and scroll through its whole token view."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.resolve().as_uri())
        paint = page.evaluate(PAINT)
        page.wait_for_selector("#token-text .t")
        shown = page.evaluate("performance.now()")
        n_tokens = page.locator("#token-text .t").count()
        frames, longest, work = page.evaluate(SCROLL, STEP)
        browser.close()
    return {
        "megabytes": path.stat().st_size / 1e6,
        "first paint, s": paint / 1000,
        "text is there, s": shown / 1000,
        "tokens in the document": n_tokens,
        "frames": frames,
        "longest frame, s": longest / 1000,
        "longest animation frame that Chromium reports, s": work / 1000,
    }


def main() -> int:
    """Print what was measured as JSON; return 1 if it is beyond a limit."""
    from cynosure.reporting import report

    folder = Path(sys.argv[1])
    if not (folder / "manifest.json").exists():
        score_into(folder)
    values = measure(report(folder))
    print(json.dumps(values, indent=1))
    return int(any(values[name] > most for name, most in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
