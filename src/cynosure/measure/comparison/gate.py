"""Gates: conditions that fail a comparison if its interval proves them."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple
from xml.etree import ElementTree

from cynosure.measure.comparison.comparison import METRICS, Change, Comparison
from cynosure.system.escapes import visible

GATE = re.compile(r"(?P<metric>\w+) ?(?P<sign>[<>]) ?(?P<number>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?) ?(?P<percent>%?)")
ALLOWED = (
    "a gate is METRIC > NUMBER or METRIC < NUMBER on B - A, with % for a share of A, as 'bits_per_byte > +0.5%', "
    f"and METRIC one of {', '.join(METRICS)}"
)
SURE = "95%"


class Gate(NamedTuple):
    """A condition that fails if B - A, or its share of A, is beyond a threshold.

    >>> Gate.parse("bits_per_byte > +0.5%")
    Gate(text='bits_per_byte > +0.5%', metric='bits_per_byte', sign='>', threshold=0.005, relative=True)
    """

    text: str
    metric: str
    sign: str
    threshold: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Parse `METRIC (>|<) NUMBER[%]`.

        Args:
            text: the gate, for example `bits_per_byte > +0.5%`.

        Returns:
            The gate.

        Raises:
            ValueError: the text is not a gate. The message says what is allowed.
        """
        text = " ".join(text.split())
        match = GATE.fullmatch(text)
        if match is None or match["metric"] not in METRICS:
            raise ValueError(f"{text!r} is not a gate: {ALLOWED}")
        relative = bool(match["percent"])
        if match["metric"] == "token_perplexity" and not relative:
            raise ValueError(f"{text!r}: only the ratio of perplexities has an interval, so give a percentage")
        threshold = float(match["number"]) / (100 if relative else 1)
        return cls(text, match["metric"], match["sign"], threshold, relative)

    def judge(self, comparison: Comparison) -> "Verdict":
        """Judge a comparison.

        Args:
            comparison: the comparison.

        Returns:
            "failed" if the whole 95% interval is beyond the threshold, "not proven" if only the value is, else
            "passed".

        Raises:
            ValueError: the comparison does not have the metric.
        """
        change = comparison.changes.get(self.metric)
        if change is None:
            raise ValueError(f"{self.text!r}: the tokens of A and B differ, and only bits_per_byte compares them")
        if change.a is None or change.b is None:
            return self.judge_impossible(change)
        value, low, high = change.relative if self.relative else change.difference
        if value is None:
            return Verdict(self, "not proven", f"{self.metric} is 0 in A, so there is no change relative to A")
        interval = "" if low is None else f" ({SURE} {self.shown(low)} to {self.shown(high)})"
        changes = f"{self.metric} changes by {self.shown(value)}{interval}"
        limit = f"{'above' if self.sign == '>' else 'below'} {self.shown(self.threshold)}"
        if not self.beyond(value):
            return Verdict(self, "passed", f"{changes}, which is not {limit}")
        if low is None or high is None:
            return Verdict(self, "not proven", f"{changes}, {limit}, but there is too little text for an interval")
        if not (self.beyond(low) and self.beyond(high)):
            return Verdict(self, "not proven", f"{changes}: {limit}, but not all of the interval is")
        return Verdict(self, "failed", f"{changes}: all of the interval is {limit}")

    def judge_impossible(self, change: Change) -> "Verdict":
        """Judge a comparison in which at least one loss is infinite."""
        if change.a is None and change.b is None:
            return Verdict(self, "not proven", f"{self.metric} is infinite in both A and B")
        side, sign = ("B", ">") if change.b is None else ("A", "<")
        status: Status = "failed" if self.sign == sign else "passed"
        return Verdict(self, status, f"{self.metric} is infinite in {side} only: it gives a token probability 0")

    def beyond(self, value: float) -> bool:
        return value > self.threshold if self.sign == ">" else value < self.threshold

    def shown(self, value: float | None) -> str:
        if value is None:
            return "unknown"
        return f"{100 * value:+.4g}%" if self.relative else f"{value:+.4g}"


Status = Literal["passed", "not proven", "failed"]


class Verdict(NamedTuple):
    """The outcome of a gate."""

    gate: Gate
    status: Status
    message: str  # the reason, in a sentence

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    def to_json(self) -> dict[str, str]:
        return {"gate": self.gate.text, "status": self.status, "message": self.message}


def junit(verdicts: Sequence[Verdict]) -> bytes:
    """Write verdicts as JUnit XML, one test case per gate.

    Args:
        verdicts: the verdicts.

    Returns:
        The XML in UTF-8.

    Example:
        >>> gate = Gate.parse("bits_per_byte > 1%")
        >>> print(junit([Verdict(gate, "failed", "it changes by +2%")]).decode())
        <?xml version='1.0' encoding='utf-8'?>
        <testsuites>
          <testsuite name="cynosure compare" tests="1" failures="1" errors="0" skipped="0">
            <testcase classname="cynosure.compare" name="bits_per_byte &gt; 1%">
              <failure type="gate" message="it changes by +2%" />
            </testcase>
          </testsuite>
        </testsuites>
    """
    failures = sum(verdict.failed for verdict in verdicts)
    counts = {"tests": len(verdicts), "failures": failures, "errors": 0, "skipped": 0}
    root = ElementTree.Element("testsuites")
    attributes = {name: str(count) for name, count in counts.items()}
    suite = ElementTree.SubElement(root, "testsuite", {"name": "cynosure compare", **attributes})
    for verdict in verdicts:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "cynosure.compare", "name": visible(verdict.gate.text)}
        )
        if verdict.failed:
            ElementTree.SubElement(case, "failure", {"type": "gate", "message": visible(verdict.message)})
        else:
            ElementTree.SubElement(case, "system-out").text = visible(f"{verdict.status}: {verdict.message}")
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml
