"""Faults of measuring: denominators, intervals, calibration, comparison, the store, the windows that are scored."""

from tests.faults.fault import Fault

BOOTSTRAP, CALIBRATION = "measure/statistics/bootstrap.py", "measure/statistics/calibration.py"
SCORES, STORE = "measure/results/scores.py", "measure/storage/store.py"

STATISTICS = [
    Fault("chars-are-bytes", SCORES, "totals.carried_nats / math.log(2), totals.n_chars",
          "totals.carried_nats / math.log(2), totals.n_bytes", "bits per character",
          "measure/test_score.py measure/test_accuracy.py"),
    Fault("nats-of-lost-text", SCORES, 'figure(totals.carried_nats / math.log(2), totals.n_bytes',
          'figure(totals.nats / math.log(2), totals.n_bytes', "bits per byte count tokens without bytes",
          "measure/test_accuracy.py text/test_lost_text.py measure"),
    Fault("words-upside-down", SCORES, "totals.tokens / totals.n_words", "totals.n_words / totals.tokens",
          "the interval of the perplexity per word", "measure/test_score.py measure/test_accuracy.py"),
    Fault("legacy-weights", "measure/results/figures.py", "np.where(whole, n_terms, n_terms - 1)", "n_terms",
          "the mean of means of strided-legacy", "measure/test_protocols.py"),
    Fault("class-bits", "measure/statistics/breakdown.py", "group._replace(nats=carried_nats).bits_per_byte",
          "group.bits_per_byte", "bits per byte of a class with lost text", "text/test_lost_text.py"),
    Fault("meter-counts-ignored", "measure/statistics/meter.py", "at = (rank > 0)", "at = (rank > -2)",
          "ignored positions in a meter", "measure/test_meter.py"),
    Fault("bytes-of-lost", "measure/statistics/groups.py", "n_bytes * carried", "n_bytes",
          "bytes of tokens that do not carry them", "measure/test_stats.py text/test_lost_text.py"),
    Fault("truncated-sums", "measure/statistics/sums.py", "np.rint(", "np.trunc(", "sums are rounded to zero",
          "measure/test_sums.py"),
    Fault("sums-without-carry", "measure/statistics/sums.py", "self.hi + self.lo // LOW", "self.hi",
          "sums of many small values", "measure/test_sums.py"),
    Fault("never-the-last", BOOTSTRAP, "generator.integers(n, size", "generator.integers(n - 1, size",
          "the last cluster is never drawn", "measure/test_bootstrap.py"),
    Fault("p-of-zero", BOOTSTRAP, "2 * (beyond + 1) / (len(self.t) + 1)", "2 * beyond / len(self.t)",
          "a p-value may be 0", "measure/test_bootstrap.py"),
    Fault("interval-mirrored", BOOTSTRAP, "self.value - far * self.se, self.value - near * self.se",
          "self.value + near * self.se, self.value + far * self.se", "the bootstrap-t interval is a percentile one",
          "measure/test_bootstrap.py"),
    Fault("short-blocks", BOOTSTRAP, "whole + (2 * rest >= length)", "whole + (rest > 0)",
          "what is left of a document is a block", "measure/test_bootstrap.py"),
    Fault("confidence-cell", CALIBRATION, 'side="right") - 1, 0', 'side="left"), 0', "the cell of a confidence",
          "measure/test_calibration.py"),
    Fault("bins-by-end", CALIBRATION, "np.cumsum(cells.tokens) - cells.tokens / 2", "np.cumsum(cells.tokens)",
          "bins of equal mass", "measure/test_calibration.py"),
    Fault("ece-unweighted", CALIBRATION, "plain += part.count / n * gap", "plain += gap / len(bins)",
          "the calibration error is a mean over bins", "measure/test_calibration.py"),
    Fault("temperature-slope", CALIBRATION, "[*rest[::-1], entropy - nll, nll]", "[*rest[::-1], nll - entropy, nll]",
          "the best temperature", "measure/test_calibration.py"),
]  # fmt: skip

COMPARISON = [
    Fault("half-scored-segment", "measure/comparison/align.py", "(tokens > 0) & (missed == 0)", "(tokens > 0)",
          "a stretch of which a token is not scored is compared", "measure/test_compare.py"),
    Fault("edges-late", "measure/comparison/align.py", 'side.begins(offsets)[rows], side="right") - 1',
          'side.begins(offsets)[rows], side="left") - 1', "which segment a token is in", "measure/test_compare.py"),
    Fault("gate-by-one-end", "measure/comparison/gate.py", "self.beyond(low) and self.beyond(high)",
          "self.beyond(low) or self.beyond(high)", "a gate fails where half the interval is beyond",
          "measure/test_gate.py"),
    Fault("a-minus-b", "measure/comparison/tally.py", "np.subtract(nats_b, nats_a", "np.subtract(nats_a, nats_b",
          "the sign of differences", "measure/test_compare.py"),
    Fault("share-of-b", "measure/comparison/comparison.py", "interval(b - a, a, seed", "interval(b - a, b, seed",
          "a relative change", "measure/test_compare.py"),
    Fault("flips", "measure/comparison/comparison.py", "Agreement(agreed, broken + mended, broken, mended)",
          "Agreement(agreed, broken + mended, mended, broken)", "right to wrong and wrong to right",
          "measure/test_compare.py"),
]  # fmt: skip

STORED_AND_SCORED = [
    Fault("seal-unread", "measure/storage/manifest.py", "manifest[SEAL] != seal(manifest)", "not manifest[SEAL]",
          "a manifest that was changed is believed", "measure/test_damage.py measure/test_store.py"),
    Fault("digest-unread", STORE, "if digest(data) != named:", "if not data:",
          "a damaged shard is read", "measure/test_store.py measure/test_damage.py"),
    Fault("damaged-is-whole", STORE, "if digest(data) != file.digest:", "if not data:",
          "a damaged shard is not scored again", "measure/test_store.py measure/test_damage.py"),
    Fault("last-shard-missing", STORE, 'number < self.manifest["units"]', 'number < self.manifest["units"] - 1',
          "the last shard may be missing", "measure/test_store.py measure/test_damage.py"),
    Fault("context-without-lead", "measure/scoring/scorer.py", "task.start + task.text.lead - task.window.see_start",
          "task.start - task.window.see_start", "how many tokens were seen before one",
          "measure/test_score.py measure/test_protocols.py"),
    Fault("rows-not-tried", "measure/scoring/batching.py", "torch.finfo(alone.dtype).eps ** 0.5",
          "torch.finfo(alone.dtype).eps ** 0.0", "rows that change each other go together", "measure/test_batching.py"),
    Fault("units-by-document", "measure/scoring/units.py", "stop = n_rows if last else",
          "stop = n_rows if not last else",
          "the rows that a window fills", "measure/test_score.py"),
    Fault("truth-one-late", "measure/prediction.py", "x[: len(before) + n_rows - 1]", "x[: len(before) + n_rows]",
          "the truth is seen before it is guessed", "measure/test_predict.py"),
    Fault("perplexity-of-sum", "measure/prediction.py", "perplexity(self.nll_nats / len(self.truth))",
          "perplexity(self.nll_nats)", "the perplexity of a truth of several tokens", "measure/test_predict.py"),
]  # fmt: skip

FAULTS = [*STATISTICS, *COMPARISON, *STORED_AND_SCORED]
