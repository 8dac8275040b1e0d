"""Gates: conditions that fail a comparison, but only where its interval proves them."""

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
    """Fails where B - A, or its share of A, lies beyond a threshold on the side of the sign.

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
        """Read `METRIC (>|<) NUMBER[%]`. ValueError, which says what is allowed, for anything else."""
        text = " ".join(text.split())
        match = GATE.fullmatch(text)
        if match is None or match["metric"] not in METRICS:
            raise ValueError(f"{text!r} is no gate: {ALLOWED}")
        relative = bool(match["percent"])
        if match["metric"] == "token_perplexity" and not relative:
            raise ValueError(f"{text!r}: of a perplexity only the ratio has an interval, so give a percentage")
        threshold = float(match["number"]) / (100 if relative else 1)
        return cls(text, match["metric"], match["sign"], threshold, relative)

    def judge(self, comparison: Comparison) -> "Verdict":
        """Failed where the whole 95% interval lies beyond the threshold, not proven where the figure alone does.

        ValueError where the runs do not have the metric.
        """
        change = comparison.changes.get(self.metric)
        if change is None:
            raise ValueError(f"{self.text!r}: the tokens of A and B differ, and only bits_per_byte compares them")
        if change.a is None or change.b is None:
            return self.judge_impossible(change)
        found = change.relative if self.relative else change.difference
        if found.value is None:
            return Verdict(self, "not proven", f"{self.metric} is 0 in A, of which nothing is a share")
        interval = f" ({SURE} {self.shown(found.low)} to {self.shown(found.high)})"
        figure = f"{self.metric} changes by {self.shown(found.value)}{'' if found.low is None else interval}"
        limit = f"{'above' if self.sign == '>' else 'below'} {self.shown(self.threshold)}"
        if not self.beyond(found.value):
            return Verdict(self, "passed", f"{figure}, which is not {limit}")
        if found.low is None or found.high is None:
            return Verdict(self, "not proven", f"{figure}, {limit}, but there is too little text for an interval")
        if not (self.beyond(found.low) and self.beyond(found.high)):
            return Verdict(self, "not proven", f"{figure}: {limit}, but not all of the interval is")
        return Verdict(self, "failed", f"{figure}: all of the interval is {limit}")

    def judge_impossible(self, change: Change) -> "Verdict":
        """Of losses of which at least one is infinite."""
        if change.a is None and change.b is None:
            return Verdict(self, "not proven", f"{self.metric} is infinite in both A and B")
        side, sign = ("B", ">") if change.b is None else ("A", "<")
        status: Status = "failed" if self.sign == sign else "passed"
        return Verdict(self, status, f"{self.metric} is infinite in {side} alone: it gives no chance to a token")

    def beyond(self, value: float) -> bool:
        return value > self.threshold if self.sign == ">" else value < self.threshold

    def shown(self, value: float | None) -> str:
        if value is None:
            return "unknown"
        return f"{100 * value:+.4g}%" if self.relative else f"{value:+.4g}"


Status = Literal["passed", "not proven", "failed"]


class Verdict(NamedTuple):
    """What became of a gate, and why in a sentence."""

    gate: Gate
    status: Status
    message: str

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    def to_json(self) -> dict[str, str]:
        return {"gate": self.gate.text, "status": self.status, "message": self.message}


def junit(verdicts: Sequence[Verdict]) -> bytes:
    """The verdicts as JUnit XML, one test case a gate.

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
    found: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return found
