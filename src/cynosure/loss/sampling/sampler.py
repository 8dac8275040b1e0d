"""The gradients of one call from samples of the columns of d(logits): unbiased, within a tolerance of the exact ones.

r rows of a chunk, D hidden size, V vocabulary, K kept columns

    dhidden  (r, D) = sum_v d_v w_v / q_v                over kept v
    dweight_v   (D) = p_v u + (dweight_v - p_v u) / q_v  of kept v, and p_v u of the others

with d_v (r,) a column of d(logits), w_v a row of the weight, q_v the probability with which v is kept, u (D,) the
direction of the mean hidden state, and p_v = dweight_v . u, which takes a dot product instead of a row of a matmul.
`docs/explanation/sampled-backward.md` derives both, their variances and the best q.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.backends.registry import Backend, ColumnSums
from cynosure.loss.linear import HeadWeights, OwnHead
from cynosure.loss.matmul.choice import choose_gemm
from cynosure.loss.options import accumulation_dtype
from cynosure.loss.sampling.choice import Budget, Kept, draw, probabilities
from cynosure.loss.sampling.options import Sampling
from cynosure.loss.sampling.record import SampledBackward, tell
from cynosure.loss.sampling.row_sums import RowSums, add_matmul, row_sums
from cynosure.loss.sampling.scales import Ratio, Scale

BLOCK = 2048  # kept columns that are multiplied at a time: their rows of the weight and of dW stay in a CPU's cache
PILOT = 8.0  # times the tolerance: of a first sample, from which only the scales of the gradients are learned
SPARED = 32  # rows of logits, each of V numbers: about what sums over columns and the rows of kept columns take
ROUGHEST = 0.25  # tolerance of that sample, unless the call's is larger


class ChunkColumns(NamedTuple):
    """What a chunk is sampled from."""

    dlogits: Tensor  # (r, V)
    hidden: Tensor  # (r, D)
    columns: ColumnSums
    dhidden_variances: Tensor  # (V,) of the columns, with q = 1/2; empty if dhidden is not wanted


class Sampler:
    """Adds up dhidden and dweight of one call, chunk by chunk, or only one of them.

    Without `dweight` there is none, and with `values` None no dhidden.
    """

    def __init__(
        self, sampling: Sampling, backend: Backend, values: Tensor | None, dweight: Tensor | None, mean: Tensor
    ) -> None:
        self.tolerance, self.backend, self.values = sampling.tolerance, backend, values
        self.generator = torch.Generator().manual_seed(sampling.seed)
        norm = mean.norm()
        self.axis = mean / norm if 0 < norm < torch.inf else torch.zeros_like(mean)
        self.weight_squares = None if values is None else backend.row_squares(values)
        self.sums: RowSums | None = None if dweight is None else row_sums(dweight)
        n_columns = 0 if dweight is None else len(dweight)
        self.projected, self.along = mean.new_zeros(2, n_columns)  # p, and what finish adds of it
        self.hidden_scale, self.weight_scale = Scale(), Scale()
        self.n_tokens, self.n_kept = 0, 0.0

    def add(
        self, dlogits: Tensor, hidden: Tensor, always: Tensor | None, head: HeadWeights | OwnHead, out: Tensor
    ) -> None:
        """Add the part of d(logits) (r, V) and hidden (r, D) to dweight, and write their dhidden to `out` (r, D).

        The columns `always` (ids) are kept in any case. `out` is not read if dhidden is not wanted.
        """
        chunk = self.chunk(dlogits, hidden)
        q = self.choose(chunk, always)
        self.n_tokens += len(dlogits)
        if q is None:
            self.n_kept += len(dlogits)
            self.add_whole(chunk, head, out)
            return
        kept = draw(q, self.generator)
        self.n_kept += len(dlogits) * len(kept.ids) / len(q)
        dhidden, squares = self.multiply(chunk, kept, self.sums)
        self.learn(chunk, q, kept, dhidden, squares, counts=True)
        if self.values is not None:
            out.copy_(dhidden)
        if self.sums is not None:
            p = chunk.columns.projected
            self.projected += p
            self.along += p.index_put((kept.ids,), p[kept.ids] * (1 - 1 / kept.probability))

    def chunk(self, dlogits: Tensor, hidden: Tensor) -> ChunkColumns:
        """Sum over the columns of a chunk."""
        weights = along = None
        if self.sums is not None:
            wide = hidden.to(self.axis.dtype)
            along = wide @ self.axis
            weights = (wide.square().sum(1) - along.square()).clamp_(min=0)
        columns = self.backend.column_sums(dlogits, weights, along)
        none = columns.squares[:0]
        return ChunkColumns(
            dlogits, hidden, columns, none if self.weight_squares is None else columns.squares * self.weight_squares
        )

    def choose(self, chunk: ChunkColumns, always: Tensor | None) -> Tensor | None:
        """Return the probabilities (V,) of the columns; None if half of them or more are needed."""
        if not self.hidden_scale.squares.n_seen and not self.weight_scale.squares.n_seen:
            q = self.few(chunk, always, max(self.tolerance, min(PILOT * self.tolerance, ROUGHEST)))
            if q is None:
                return None
            kept = draw(q, self.generator)
            dhidden, squares = self.multiply(chunk, kept, None)
            self.learn(chunk, q, kept, dhidden, squares, counts=False)
            self.foresee(chunk, kept, squares, self.few(chunk, always, self.tolerance))
        return self.few(chunk, always, self.tolerance)

    def few(self, chunk: ChunkColumns, always: Tensor | None, tolerance: float) -> Tensor | None:
        """Return the probabilities (V,) for this tolerance, unless half of the columns or more are needed."""
        budgets = []
        if self.values is not None:
            scale, variances = self.hidden_scale, chunk.dhidden_variances
            own = scale.squares.value * float(variances.sum())
            budgets.append(Budget(variances, scale.budget(tolerance, scale.square + own, own)))
        if self.sums is not None:
            scale, columns = self.weight_scale, chunk.columns
            across = scale.squares.value * float(columns.weighed.sum())
            own = across + float(columns.projected.square().sum())
            square = scale.square + across + float((self.projected + columns.projected).square().sum())
            budgets.append(Budget(columns.weighed * scale.variances.value, scale.budget(tolerance, square, own)))
        q = probabilities(budgets, always)
        return q if float(q.sum()) < len(q) / 2 else None

    def multiply(self, chunk: ChunkColumns, kept: Kept, sums: RowSums | None) -> tuple[Tensor, Tensor]:
        """Return dhidden (r, D), and the squared norms (K,) of the rows of dweight without p_v u.

        The rows of dweight are added to `sums`.
        """
        r, hidden_size = chunk.hidden.shape
        dhidden = self.axis.new_zeros((r, hidden_size) if self.values is not None else (0, 0))
        squares = []
        flops = 2.0 * r * len(kept.ids) * hidden_size
        provider = choose_gemm(flops, chunk.hidden.dtype, chunk.hidden.device).provider
        for start in range(0, len(kept.ids), BLOCK):
            ids, q = kept.ids[start : start + BLOCK], kept.probability[start : start + BLOCK]
            d = self.backend.take_columns(chunk.dlogits, ids, 1 / q)
            if self.values is not None:
                add_matmul(d, self.values[ids], dhidden, start > 0, provider)
            if self.sums is not None:
                part = self.axis.new_empty(len(ids), hidden_size)
                add_matmul(d.t(), chunk.hidden, part, False, provider)
                squares.append(self.backend.row_squares(part) - (chunk.columns.projected[ids] / q).square())
                if sums is not None:
                    sums.add_rows(ids, part)
        return dhidden, torch.cat(squares).clamp_(min=0) if squares else dhidden.new_empty(0)

    def learn(self, chunk: ChunkColumns, q: Tensor, kept: Kept, dhidden: Tensor, squares: Tensor, counts: bool) -> None:
        """Compare a sample with what was guessed of it; if it counts, add it to the scales."""
        odds, n_kept = 1 / q - 1, len(kept.ids)
        if self.values is not None:
            variance = float((odds * chunk.dhidden_variances).sum())
            square = max(0.0, float(dhidden.square().sum()) - variance)
            self.hidden_scale.squares.add(square, float(chunk.dhidden_variances.sum()), n_kept)
            if counts:
                self.hidden_scale.add(square, variance)
        if self.sums is not None:
            weighed, p = chunk.columns.weighed, kept.probability
            square, variance = float((p * squares).sum()), float(((1 - p) * squares).sum())
            self.weight_scale.squares.add(square, float(weighed.sum()), n_kept)
            self.weight_scale.variances.add(variance, float((odds * weighed).sum()), int((p < 1).sum()))
            if counts:
                self.weight_scale.add(square, variance)

    def foresee(self, chunk: ChunkColumns, kept: Kept, squares: Tensor, q: Tensor | None) -> None:
        """Learn how large the variance of dweight will be with the probabilities q (V,), from another sample of it.

        The guess is wrong to another degree in each column, and a smaller tolerance leaves other columns to chance.
        """
        if self.sums is not None and q is not None:
            odds = 1 / q - 1
            found = float((odds[kept.ids] * kept.probability * squares).sum())
            self.weight_scale.variances = Ratio()
            self.weight_scale.variances.add(found, float((odds * chunk.columns.weighed).sum()), len(kept.ids))

    def add_whole(self, chunk: ChunkColumns, head: HeadWeights | OwnHead, out: Tensor) -> None:
        """Add a chunk with all its columns."""
        if self.values is not None:
            head.dhidden(chunk.dlogits, chunk.hidden, out)
            self.hidden_scale.add(float(out.to(self.axis.dtype).square().sum()), 0.0)
        if self.sums is not None:
            self.sums.add_product(chunk.dlogits.t(), chunk.hidden)
            self.projected += chunk.columns.projected
            self.weight_scale.add(self.weight_scale.squares.value * float(chunk.columns.weighed.sum()), 0.0)

    def finish(self) -> None:
        """Complete dweight, and tell what was kept."""
        if self.sums is not None:
            self.sums.finish(self.along, self.axis)
            self.weight_scale.add(float(self.projected.square().sum()), 0.0)
        errors = self.hidden_scale.error, self.weight_scale.error
        tell(SampledBackward(self.n_tokens, self.n_kept / self.n_tokens, *errors))


def spared_rows(dtype: torch.dtype) -> int:
    """Return how many rows fewer a chunk holds, so that sampling takes no more memory than the exact backward.

    In half precision it takes less anyway, since no float32 dW is added up.
    """
    return SPARED if dtype == accumulation_dtype(dtype) else 0


def mean_hidden(hidden: Tensor, rows: Tensor | None) -> Tensor:
    """Return the mean (D,) of the counted rows of hidden (N, D), in the accumulation dtype."""
    dtype = accumulation_dtype(hidden.dtype)
    if rows is None:
        return hidden.mean(0, dtype=dtype)
    total = hidden.new_zeros(hidden.shape[1], dtype=dtype)
    for part in torch.split(rows, BLOCK):
        total += hidden[part].sum(0, dtype=dtype)
    return total / max(1, len(rows))
