"""The columns of a build: their plans chosen before the segments are written, and fitted after."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace

from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.fit import fit_column
from chiasm.index.build.memory import release_memory
from chiasm.index.build.report import Tried
from chiasm.index.build.samples import CollectionView
from chiasm.index.build.tune import TunedColumn, tune_column
from chiasm.index.plan import MIN_PER_LIST, IndexSettings, default_plan, lists_for
from chiasm.index.query import ColumnIndex
from chiasm.index.segments import Generation, Manifest, SegmentGone, Trained, open_segments
from chiasm.pipeline.encoders import Encoder
from chiasm.pipeline.errors import CollectionError, EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings

LOG = logging.getLogger(__name__)


class TunedColumns:
    """By column what was chosen for it, in `tuned`. Loads the encoder where texts are encoded; one
    that was named at once, and raises what that raises: a wrong one is not passed over."""

    def __init__(self, covered: CoveredShards, settings: IndexSettings) -> None:
        self.covered, self.settings = covered, settings
        self.tuned: dict[str, TunedColumn] = {}
        if covered.collection.encoder is not None:
            self.encoder = covered.collection.load_encoder(EncoderSettings())

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The collection's encoder; EncoderError where that cannot be loaded, is of a family that
        this process does not know, or is another one of that name."""
        try:
            return self.covered.collection.load_encoder(EncoderSettings())
        except (UsageError, CollectionError) as error:
            raise EncoderError(
                error.what, expected=error.expected, found=error.found, do=error.do
            ) from error

    def require_possible(self, counts: Mapping[str, int]) -> None:
        """UsageError for settings that no column with so many vectors can have, before any is
        tuned. Where some can, it is said of the others, which are built without them."""
        problems = {
            column: problem
            for column, rows in counts.items()
            if (problem := _problem(column, rows, self.covered.identity.dim, self.settings))
        }
        if problems and (len(problems) == len(counts) or self.settings.vectors == "none"):
            raise next(iter(problems.values()))
        for problem in problems.values():
            LOG.warning("%s: left out there, found %s", problem.what, problem.found)

    def choose(
        self, column: str, rows: int, taken: tuple[Trained, Tried] | None = None
    ) -> TunedColumn:
        """The structure of a column with so many vectors; ChiasmError as by `tune_column`. taken:
        what a build of the same files and settings had learned and measured when it was killed."""
        settings = self.settings
        view = CollectionView(self.covered, column, rows, lambda: self.encoder, settings.queries)
        wanted = settings.kind or settings.dims or settings.vectors == "none"
        if column in self.covered.identity.tokens and not wanted:
            # Searches propose rows by other vectors: no recall of these has to be kept.
            settings = replace(settings, kind="exact")
        if taken is None:
            self.tuned[column] = tune_column(view, settings)
            if self.tuned[column].tried.candidates:  # indexes were searched
                release_memory()
            if self.tuned[column].plan.exact and self.settings.dims:
                raise _no_lists(
                    f"index.dims={self.settings.dims} of column {column}",
                    f"an exact one of {rows:,} rows, since no other promises the recall",
                    "give up --dims, or a part of --recall",
                )
        else:
            trained, tried = taken
            sets = view.query_sets() if self.settings.tune else None
            self.tuned[column] = TunedColumn(trained.plan, trained, sets, tried)
        return self.tuned[column]

    def fit(self, manifest: Manifest, seconds: Mapping[str, float]) -> None:
        """Fit the columns to the segments of a manifest that is not published yet. seconds: of the
        stages of the build so far, by name."""
        if all(tuned.sets is None for tuned in self.tuned.values()):
            return
        folder = self.covered.folder
        generation = Generation(0, manifest, open_segments(folder, manifest), folder)
        spent = seconds.get("fill", 0.0) / max(1, len(self.tuned))
        for column, tuned in self.tuned.items():
            trained = generation.trained(column)
            index = ColumnIndex(generation.segments, column, tuned.plan, trained)
            build_seconds = spent + tuned.tried.seconds.get("train", 0.0)
            try:
                self.tuned[column] = fit_column(tuned, index, self.settings, build_seconds, folder)
            except SegmentGone as error:  # a shard without copies was embedded anew meanwhile
                LOG.warning("column %s is not measured: %s", column, error)


def _problem(column: str, rows: int, dim: int, settings: IndexSettings) -> UsageError | None:
    """What a column with so many vectors cannot have of the settings."""
    exact = f"an exact one of {rows:,} rows"
    # With the default a column of fewer rows is well searched: all its rows are the best ones.
    if settings.at > max(rows, IndexSettings.at):
        what, expected = f"index.at={settings.at} of column {column}", f"{rows} or less"
        return UsageError(what, expected=expected, found=f"{rows:,} rows", do="take a smaller --at")
    if not default_plan(rows, dim, settings).exact:
        return None
    if few := lists_for(rows) < 1:
        exact = f"{exact}, too few for lists, which need {MIN_PER_LIST}"
    if settings.kind not in ("", "exact"):
        what = f"index.kind={settings.kind} of column {column}"
        return _no_lists(what, exact, "leave --index out")
    if settings.vectors == "none":
        what = f"index.vectors=none of column {column}"
        do = "take int8" if few else "take int8, or --index ivf"
        return _no_lists(what, f"{exact}, which scans their vectors", do)
    if settings.dims and not settings.kind:
        what = f"index.dims={settings.dims} of column {column}"
        do = "leave --dims out" if few else "leave --dims out, or take --index ivf or projected"
        return _no_lists(what, f"{exact}, which has no codes", do)
    return None


def _no_lists(what: str, found: str, do: str) -> UsageError:
    return UsageError(what, expected="an index with lists", found=found, do=do)
