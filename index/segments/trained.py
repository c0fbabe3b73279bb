"""What the segments of a column share: projection, centroids of the lists, ranges of the codes.

It is learned once and stored once, so that a query is projected and its lists are ranked once,
however many segments there are. `Trained` is plain arrays; `empty_index` makes the FAISS index that
encodes and scans; FAISS never sees the centroids.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Plan
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.stored_records import read_record

# On disk float16 is enough for what only ranks and assigns; what is used is what was stored.
_STORED = {
    "centroids": "<f2",
    "list_bias": "<f4",
    "ranges": "<f4",
    "project_rows": "<f4",
    "project_queries": "<f4",
}


@dataclass(frozen=True, eq=False)
class Trained:
    """plan: of the column. project_rows, project_queries: (D, d) float32, so that the inner product
    of a projected query and a projected row estimates that of the two; None without a projection.
    centroids: (L, s) float32, in the space of the lists. list_bias: (L,) float32, added to
    a list's score when lists are ranked. ranges: (2, d) float32, of the 8-bit codes: the least
    value of a dimension and the width of its range; None for other codes.
    """

    plan: Plan
    centroids: np.ndarray
    list_bias: np.ndarray
    ranges: np.ndarray | None = None
    project_rows: np.ndarray | None = None
    project_queries: np.ndarray | None = None

    def rows(self, xb: np.ndarray) -> np.ndarray:
        """Vectors (N, D) in the space of the codes: (N, d) float32."""
        return self._first(xb) if self.project_rows is None else xb @ self.project_rows

    def queries(self, xq: np.ndarray) -> np.ndarray:
        """Queries (Q, D) in the space of the codes: (Q, d) float32."""
        return self._first(xq) if self.project_queries is None else xq @ self.project_queries

    def _first(self, x: np.ndarray) -> np.ndarray:
        """The numbers that codes are of, where there is no projection."""
        return np.ascontiguousarray(x[:, : self.plan.dims]) if self.plan.is_prefix else x

    def assign(self, xb: np.ndarray, coded: np.ndarray) -> np.ndarray:
        """The list of each row, the nearest centroid's: (N,) int64. xb, coded: the rows, and the
        same in the space of the codes."""
        x = coded if self.plan.space == "projected" else xb
        return self._assigner.search(np.ascontiguousarray(x, dtype=np.float32), 1)[1][:, 0]

    def distances(self, xb: np.ndarray) -> np.ndarray:
        """Of rows (N, D) to the centroids of their lists, in the space of the lists: (N,)
        float32."""
        x = coded = np.ascontiguousarray(self.rows(xb))
        if self.plan.space == "full":
            x = xb
        return np.linalg.norm(x - self.centroids[self.assign(xb, coded)], axis=1)

    def rank(
        self, xq: np.ndarray, projected: np.ndarray, nprobe: int, ordered: bool = True
    ) -> np.ndarray:
        """The best lists of each query: (Q, nprobe) int64. xq, projected: the queries, and the same
        in the space of the codes. ordered: best first, else by number."""
        scores = self.list_scores(xq, projected)
        lists = best_columns(scores, nprobe)
        if not ordered:
            return lists
        order = np.argsort(-columns_of(scores, lists), axis=1, kind="stable")
        return np.ascontiguousarray(columns_of(lists, order))

    def list_scores(self, xq: np.ndarray, projected: np.ndarray) -> np.ndarray:
        """By which lists are ranked: (Q, L) float32."""
        x = projected if self.plan.space == "projected" else xq
        scores = x @ self.centroids.T
        scores += self.list_bias
        return scores

    @cached_property
    def _assigner(self) -> Any:
        faiss = load_faiss()
        index = faiss.IndexFlatL2(self.centroids.shape[1])
        index.add(np.ascontiguousarray(self.centroids, dtype=np.float32))
        return index

    def empty_index(self) -> Any:
        """A trained FAISS index without rows, for `add_core` and `search_preassigned`."""
        faiss = load_faiss()
        plan = self.plan
        if plan.codes == "SQ8":
            quantizer = faiss.IndexFlatIP(plan.dims)
            index = faiss.IndexIVFScalarQuantizer(
                quantizer,
                plan.dims,
                plan.lists,
                faiss.ScalarQuantizer.QT_8bit,
                faiss.METRIC_INNER_PRODUCT,
                False,
            )
            assert self.ranges is not None
            faiss.copy_array_to_vector(np.ascontiguousarray(self.ranges.ravel()), index.sq.trained)
        else:
            # Its codes are of the difference to the centroid, which hence is in their space.
            quantizer = faiss.IndexFlatIP(plan.dims)
            quantizer.add(np.ascontiguousarray(self.centroids))
            bits = int(plan.codes.removeprefix("RaBitQ"))
            index = faiss.IndexIVFRaBitQ(
                quantizer, plan.dims, plan.lists, faiss.METRIC_INNER_PRODUCT, True, bits
            )
        index.own_fields = False
        index.referenced_objects = [quantizer]  # the C++ object only points to it
        index.is_trained = True
        return index

    def to_bytes(self) -> bytes:
        """The arrays as a safetensors file."""
        from safetensors.numpy import save

        arrays = {
            name: np.ascontiguousarray(value.astype(dtype))
            for name, dtype in _STORED.items()
            if (value := getattr(self, name)) is not None
        }
        return save(arrays, {"plan": json.dumps(asdict(self.plan))})

    @staticmethod
    def plan_of(data: bytes, where: str) -> Plan:
        """The plan in a safetensors file; CollectionError where there is none."""
        try:
            length = int.from_bytes(data[:8], "little")
            plan = json.loads(data[8 : 8 + length])["__metadata__"]["plan"].encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CollectionError(where, expected="a plan", found=str(error)) from error
        return read_record(plan, where, Plan, what="a plan")

    @classmethod
    def from_bytes(cls, data: bytes, plan: Plan, dim: int, where: str, do: str) -> Trained:
        """Raises CollectionError for arrays that are not those of the plan. dim: of the vectors."""
        from safetensors.numpy import load

        def refuse(found: str) -> CollectionError:
            return CollectionError(where, expected=f"arrays of {plan}", found=found, do=do)

        try:
            arrays = {name: value.astype(np.float32) for name, value in load(data).items()}
        except Exception as error:  # safetensors raises its own, whose type it does not export
            raise refuse(str(error)) from error
        side = plan.dims if plan.space == "projected" else dim
        expected = {"centroids": (plan.lists, side), "list_bias": (plan.lists,)}
        if plan.codes == "SQ8":
            expected["ranges"] = (2, plan.dims)
        if plan.family == "projected":
            expected |= dict.fromkeys(("project_rows", "project_queries"), (dim, plan.dims))
        found = {name: value.shape for name, value in arrays.items()}
        if found != expected:
            raise refuse(", ".join(f"{name} {shape}" for name, shape in sorted(found.items())))
        return cls(plan, **arrays)


def best_columns(scores: np.ndarray, count: int) -> np.ndarray:
    """The columns of the `count` greatest scores of each row, rising: (Q, count) int64.

    By their least value: numpy partitions values several times as fast as their places.
    """
    width = scores.shape[1]
    if count >= width:
        return np.tile(np.arange(width), (len(scores), 1))
    least = np.partition(scores, width - count, axis=1)[:, width - count, None]
    (found,) = (scores >= least).ravel().nonzero()
    if len(found) == len(scores) * count:
        columns = found.reshape(len(scores), count)
        columns -= np.arange(0, scores.size, width)[:, None]
        return columns
    return np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)  # equal ones


def columns_of(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """values (Q, n) at columns (Q, m) of their rows: (Q, m). As numpy's take_along_axis, which
    takes five times as long of few values."""
    return values[np.arange(len(values))[:, None], columns]


def code_ranges(coded: np.ndarray) -> np.ndarray:
    """The ranges of 8-bit codes for a sample (n, d): (2, d) float32, least values and widths."""
    low, high = coded.min(axis=0), coded.max(axis=0)
    return np.stack([low, np.maximum(high - low, np.finfo(np.float32).tiny)]).astype(np.float32)
