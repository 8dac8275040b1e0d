"""How often a 95% interval holds the truth: many texts are drawn whose mean loss is known, each gets its interval.

Where it cannot hold it often enough, the method has to say so. `python -m tests.measure.coverage --runs 4000` makes
`benchmarks/results/coverage.json`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.statistics.bootstrap import BASE_TOKENS, ENOUGH_DOCUMENTS, Interval, Method, choose, interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MEAN = 3.0  # nats / token of the population: the truth
LOW, HIGH = 0.92, 0.98  # where the coverage of 95% intervals belongs
MOSTLY = 0.9  # elsewhere so many of the texts must be said to have intervals that are too narrow
EFFECT = 0.3  # standard deviation of a document's factor
BATCH = 200  # texts drawn at a time


class Sample(NamedTuple):
    """A text: (nats, tokens) of each document and, where documents are few, of each base block and whose it is."""

    documents: Floats
    base: Floats | None = None
    document: Ints | None = None


Draw = Callable[[np.random.Generator], Iterator[Sample]]  # texts without end


@dataclass(frozen=True)
class Case:
    """Coverage over `runs` texts."""

    name: str
    runs: int
    covered: float
    above: float  # the interval lies above the truth
    below: float
    said: float  # share of the texts where the method says that its intervals are too narrow
    clusters: float  # median
    width: float  # of the interval, median, relative to the truth

    @property
    def honest(self) -> bool:
        """Coverage is right, or it is said that it is not."""
        return LOW <= self.covered <= HIGH or self.said >= MOSTLY


def unequal_documents(n_documents: int, spread: float = 1.0, slope: float = 0.0) -> Draw:
    """Documents of lognormal length, 300 exp(z) tokens, their losses gamma (shape 1/2) around the document's mean.

    That varies by a gamma factor and as exp(slope z), scaled so that the population's ratio is MEAN.
    """
    scale = MEAN * math.exp(
        -slope * (slope + 2) * spread**2 / 2
    )  # of a normal z, mean exp(a z) = exp(a^2 spread^2 / 2)

    def draw(generator: np.random.Generator) -> Iterator[Sample]:
        while True:
            z = spread * generator.standard_normal(n_documents)
            tokens = np.ceil(300 * np.exp(z))
            mean = scale * np.exp(slope * z) * EFFECT**2 * generator.gamma(1 / EFFECT**2, size=n_documents)
            if n_documents >= ENOUGH_DOCUMENTS:  # a sum of gammas is gamma
                yield Sample(np.stack([2 * mean * generator.gamma(tokens / 2), tokens], axis=1))
                continue
            losses = [2 * m * generator.gamma(0.5, size=int(n)) for m, n in zip(mean, tokens, strict=True)]
            yield of_tokens(losses)

    return draw


def dependent_tokens(n_tokens: int, correlation: float, skewed: bool = False) -> Draw:
    """One document with z a Gaussian AR(1) of unit variance: losses MEAN + z, or, skewed, MEAN exp(z - 1/2)."""

    def draw(generator: np.random.Generator) -> Iterator[Sample]:
        while True:
            z = generator.standard_normal((n_tokens, BATCH))
            z[1:] *= math.sqrt(1 - correlation**2)
            for i in range(1, n_tokens):
                z[i] += correlation * z[i - 1]
            for losses in (MEAN * np.exp(z - 0.5) if skewed else MEAN + z).T:
                yield of_tokens([losses])

    return draw


def of_tokens(losses: list[Floats]) -> Sample:
    """The sums of documents, given the losses of their tokens."""
    documents = np.array([[loss.sum(), len(loss)] for loss in losses])
    base = [np.add.reduceat(loss, np.arange(0, len(loss), BASE_TOKENS)) for loss in losses]
    tokens = [np.minimum(BASE_TOKENS, len(loss) - np.arange(0, len(loss), BASE_TOKENS)) for loss in losses]
    owner = np.repeat(np.arange(len(losses)), [len(part) for part in base])
    return Sample(documents, np.stack([np.concatenate(base), np.concatenate(tokens)], axis=1), owner)


CASES: dict[str, Draw] = {
    "30 documents, unequal": unequal_documents(30),
    "200 documents, unequal": unequal_documents(200),
    "20,000 tokens, AR(1) 0.5": dependent_tokens(20_000, 0.5),
    "20,000 tokens, AR(1) 0.9": dependent_tokens(20_000, 0.9),
    "20,000 tokens, AR(1) 0.9, skewed": dependent_tokens(20_000, 0.9, skewed=True),
    "30 documents, very unequal, the longer the easier": unequal_documents(30, spread=2.0, slope=-0.2),
    "5 documents": unequal_documents(5),
    "300 tokens, AR(1) 0.9": dependent_tokens(300, 0.9),
}


def simulate(runs: int) -> list[Case]:
    """Every case over `runs` texts, seeded: the same texts and intervals each time."""
    cases = []
    for i, (name, draw) in enumerate(CASES.items()):
        texts = draw(np.random.default_rng(i))
        cases.append(case(name, [estimate(next(texts), seed=run) for run in range(runs)]))
    return cases


def estimate(sample: Sample, seed: int) -> tuple[Method, Interval]:
    method, clusters = choose(*sample, seed=seed)
    return method, interval(clusters[:, 0], clusters[:, 1], seed=seed)


def case(name: str, found: list[tuple[Method, Interval]]) -> Case:
    """What became of the intervals of one case; where there is none, it is taken to hold everything."""
    low = np.array([-math.inf if i.low is None else i.low for _, i in found])
    high = np.array([math.inf if i.high is None else i.high for _, i in found])
    said = np.array([method.optimistic is not None for method, _ in found])
    covered = (low <= MEAN) & (high >= MEAN)
    return Case(
        name=name,
        runs=len(found),
        covered=float(covered.mean()),
        above=float((low > MEAN).mean()),
        below=float((high < MEAN).mean()),
        said=float(said.mean()),
        clusters=float(np.median([method.n_clusters for method, _ in found])),
        width=float(np.median(high - low)) / MEAN,
    )


def to_json(cases: list[Case]) -> dict[str, Any]:
    """What was measured, and the coverage that is asked for."""
    return {"asked": [LOW, HIGH], "cases": [{**asdict(case), "honest": case.honest} for case in cases]}


def main() -> None:
    """Print what was measured as JSON. Exit status 1 where a case is not honest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="Simulated texts of each kind.")
    cases = simulate(parser.parse_args().runs)
    print(json.dumps(to_json(cases), indent=1, allow_nan=False))
    sys.exit(0 if all(case.honest for case in cases) else 1)


if __name__ == "__main__":
    main()
