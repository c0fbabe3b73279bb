"""Recall as a contract: some of the queries that were answered lately are answered exactly.

A query is searched again, by what it was searched by and in the generation that is open now, and
compared with the scores of all rows. The result depends on the query and the generation alone, so
it is the answer that was given, unless the generation has changed since.

Where a promise is broken the open index may scan more lists from then on, step by step: each step
waits until queries that were audited after the last one show that it was not enough. So the time of
a query grows, which is said; MOST limits it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from chiasm.index.audit import AuditedRecall, Promise, merged
from chiasm.index.plan import Plan
from chiasm.index.query.filtered import search_filtered
from chiasm.index.query.recent_queries import RecentQueries, Search
from chiasm.index.query.scan import Allowed, ColumnIndex
from chiasm.index.query.truth import exact_top, recall_of, rows_of_column
from chiasm.index.segments import (
    Generation,
    SegmentGone,
    add_to_audit,
    build_command,
    read_shared,
)
from chiasm.pipeline.errors import SourceError, StorageError, UsageError
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.stored_records import read_record

LOG = logging.getLogger(__name__)

BATCH = 64  # queries that are searched together
STEP = 1.5  # by which lists are added where a promise is broken
# Times the lists of the plan. A query takes about as many times as long; where that is not enough
# the queries or rows are no longer those that the index was tuned for, and a build finds a better
# plan than more lists of this one.
MOST = 4


# By column and kind of query.
Recalls = dict[str, dict[str, AuditedRecall]]


class Audited(Protocol):
    """What is needed of an open index."""

    generation: Generation
    audits: Audits

    def view(self) -> Audited: ...
    def reopen(self, instead_of: Generation) -> bool: ...
    def column(self, name: str) -> ColumnIndex: ...
    def allowed(self, where: str | None) -> Allowed | None: ...
    def lists_to_scan(self, column: str, nprobe: int | None = None, kind: str = "") -> int: ...


class Audits:
    """The recent queries of an open index, the recall of those that were audited, and the lists
    that are scanned since. Safe to use from any thread. Both are of the plan that a column has: a
    build begins anew, an edit goes on."""

    def __init__(self, dim: int) -> None:
        self.recent = RecentQueries(dim)
        self._lock = threading.Lock()
        self._recalls: dict[str, tuple[object, tuple[AuditedRecall, ...]]] = {}  # and their basis
        self._lists: dict[tuple[str, str], tuple[Plan, int]] = {}

    def lists(self, column: str, kind: str, plan: Plan) -> int:
        """How many lists a query of this kind scans where its caller does not say."""
        raised = self._lists.get((column, kind)) if self._lists else None
        return raised[1] if raised is not None and raised[0] == plan else plan.nprobe

    def by_kind(self, generation: Generation) -> Recalls:
        """The same by column and kind. Of queries that scanned another number of lists than theirs
        scan now, the name of the kind has it."""
        found: Recalls = {}
        for one in self.recalls(generation):
            now = self.lists(one.column, one.kind, generation.manifest.columns[one.column])
            name = one.kind if one.nprobe == now else f"{one.kind} in {one.nprobe} lists"
            found.setdefault(one.column, {})[name] = one
        return found

    def recalls(self, generation: Generation) -> tuple[AuditedRecall, ...]:
        """The recall of all queries that were audited since the columns of a generation were
        built."""
        with self._lock:
            return tuple(
                recall
                for column, (basis, recalls) in sorted(self._recalls.items())
                if basis == generation.manifest.basis(column)
                for recall in recalls
            )

    def add(self, generation: Generation, found: Iterable[AuditedRecall]) -> None:
        """What was audited in a generation."""
        with self._lock:
            for recall in found:
                basis = generation.manifest.basis(recall.column)
                before, recalls = self._recalls.get(recall.column, (basis, ()))
                known = recalls if before == basis else ()
                self._recalls[recall.column] = basis, merged((*known, recall))

    def raise_lists(self, generation: Generation) -> None:
        """More lists for kinds of query whose promise is broken."""
        command = build_command(generation.folder)
        for recall in self.recalls(generation):
            plan = generation.manifest.columns[recall.column]
            lists = self.lists(recall.column, recall.kind, plan)
            if not recall.broken or recall.nprobe != lists:
                continue
            more = min(math.ceil(STEP * lists), MOST * plan.nprobe, plan.lists)
            if more <= lists:
                LOG.warning("%s; no more lists are scanned than %d: run %s", recall, lists, command)
                continue
            with self._lock:
                self._lists[recall.column, recall.kind] = plan, more
            longer = f"{more} lists are scanned instead of {lists}, which takes more time"
            LOG.warning("%s; from now on %s; %s tunes anew", recall, longer, command)


def check_share(share: float) -> None:
    """UsageError for what is no share of queries."""
    if not 0 < share <= 1:  # NaN as well
        raise UsageError("audit", expected="a share above 0, up to 1", found=f"{share:g}")


def audit(index: Audited, share: float, *, raise_probes: bool, save: bool) -> Recalls:
    """See `OpenIndex.audit`."""
    check_share(share)
    groups = index.audits.recent.take(share)
    while True:
        view = index.view()
        try:
            found = audit_queries(view, groups)
            break
        except SegmentGone:
            if not index.reopen(view.generation):
                raise
    audits, generation = index.audits, view.generation
    audits.add(generation, found)
    if raise_probes:
        audits.raise_lists(generation)
    if save and found:
        store_audit(generation, found)
    return audits.by_kind(generation)


def audit_queries(
    index: Audited, groups: Iterable[tuple[Search, np.ndarray]]
) -> list[AuditedRecall]:
    """The recall of queries, those of one search together (n, D). Those whose column or filter the
    generation does not have any more are passed over."""
    found: list[AuditedRecall] = []
    promises: dict[str, Promise] = {}
    by_rows: dict[tuple[str, str | None], list[tuple[Search, np.ndarray]]] = {}
    for search, xq in groups:
        if search.k > 0:
            by_rows.setdefault((search.column, search.where), []).append((search, xq))
    for (column, where), some in by_rows.items():
        if column not in index.generation.manifest.columns:
            continue
        try:
            allowed = index.allowed(where)
        except UsageError as error:
            LOG.info("%d queries are not audited: %s", sum(len(xq) for _, xq in some), error)
            continue
        if column not in promises:
            promises[column] = read_promise(index.generation, column)
        found += _audit(index, column, allowed, some, promises[column])
    return found


def _audit(
    index: Audited,
    column: str,
    allowed: Allowed | None,
    groups: list[tuple[Search, np.ndarray]],
    promise: Promise,
) -> list[AuditedRecall]:
    """The recall of queries of one column and filter, by one pass over its rows."""
    opened, at = index.column(column), promise.at
    if opened.plan.exact:
        return [
            AuditedRecall.of(
                column, search.kind, 0, at, None, np.ones(len(xq)), opened.plan.vectors
            )
            for search, xq in groups
        ]
    whole = np.concatenate([xq for _, xq in groups])
    best, _ = exact_top(rows_of_column(opened, allowed), whole, at)
    found: list[AuditedRecall] = []
    first = 0
    for search, xq in groups:
        nprobe = index.lists_to_scan(column, search.nprobe, search.kind)
        scores = [
            search_filtered(opened, xq[start : start + BATCH], search.k, nprobe, allowed)[0]
            for start in range(0, len(xq), BATCH)
        ]
        exact = best[first : first + len(xq)]
        first += len(xq)
        recalls = recall_of(np.concatenate(scores), exact, min(search.k, at))
        recalls = recalls[~np.isnan(recalls)]  # of a filter that no row passes
        promised = promise.of(search.kind) if nprobe >= opened.plan.nprobe else None
        if len(recalls):
            facts = column, search.kind, nprobe, at, promised, recalls, opened.plan.vectors
            found.append(AuditedRecall.of(*facts))
    return found


def read_promise(generation: Generation, column: str) -> Promise:
    """What the report of a column promises; nothing where it was built without measuring. Raises
    CollectionError for a damaged report, SegmentGone for one that was removed."""
    folder, shared = generation.folder, generation.manifest.reports.get(column)
    if shared is None:
        return Promise()
    content = read_shared(folder, shared.file, shared.checksum)
    where = display_name(folder.url_of(shared.file))
    do = f"run {build_command(folder)}"
    return read_record(content, where, Promise, what="a report of an index", do=do)


def store_audit(generation: Generation, found: list[AuditedRecall]) -> None:
    """Store what an audit found. That it cannot be stored fails no search, and is said."""
    try:
        problem = add_to_audit(generation.folder, generation.number, generation.manifest.run, found)
    except (SourceError, StorageError) as error:
        LOG.warning("the audit is not stored: %s", error)
    else:
        if problem:
            LOG.warning("%s; it was written anew", problem)
