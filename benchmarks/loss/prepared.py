"""Where a head's prepared files lie: all that the parent knows of it."""

import re
from dataclasses import dataclass
from pathlib import Path

SYNTHETIC = re.compile(r"synthetic:[1-9]\d*x[1-9]\d*")


@dataclass(frozen=True)
class Prepared:
    """Files in the user's cache directory, each written whole.

    NAME-KEY-vLAYOUT/weight-DTYPE.pt                       (V, D)
    NAME-KEY-vLAYOUT/rows-N.pt                             hidden (N, D) float32, target (N,)
    NAME-KEY-vLAYOUT/rows-N/truth-DTYPE-n-torchVERSION.pt  of the first n rows: float64, and the eager op's errors;
                                                           `truth` of the loss, `logprobs` and `kl` of other benchmarks
    """

    name: str
    title: str
    vocab_size: int
    hidden_size: int
    folder: Path
    n_rows: int
    torch_version: str

    def weight_file(self, dtype: str) -> Path:
        return self.folder / f"weight-{dtype}.pt"

    @property
    def rows_file(self) -> Path:
        return self.folder / f"rows-{self.n_rows}.pt"

    def truth_file(self, dtype: str, n_tokens: int, kind: str = "truth") -> Path:
        return self.folder / f"rows-{self.n_rows}" / f"{kind}-{dtype}-{n_tokens}-torch{self.torch_version}.pt"
