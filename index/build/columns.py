"""The columns of a build: their plans chosen before the segments are written, and fitted after."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.fit import fit_column
from chiasm.index.build.memory import release_memory
from chiasm.index.build.report import Tried
from chiasm.index.build.samples import CollectionView
from chiasm.index.build.tune import TunedColumn, tune_column
from chiasm.index.plan import IndexSettings
from chiasm.index.query import ColumnIndex
from chiasm.index.segments import Generation, Manifest, SegmentGone, Trained, open_segments
from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.storage import display_name

LOG = logging.getLogger(__name__)


class TunedColumns:
    """By column what was chosen for it, in `tuned`. Loads the encoder where texts are encoded."""

    def __init__(self, covered: CoveredShards, settings: IndexSettings) -> None:
        self.covered, self.settings = covered, settings
        self.tuned: dict[str, TunedColumn] = {}

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder named in the collection; EncoderError where that cannot be loaded, or is
        another one of that name."""
        identity = self.covered.identity
        try:
            encoder = load_encoder(identity.encoder, EncoderSettings())
        except UsageError as error:  # of a family that this process does not know
            raise EncoderError(
                error.what, expected=error.expected, found=error.found, do=error.do
            ) from error
        if encoder.fingerprint != identity.fingerprint:
            raise EncoderError(
                display_name(self.covered.folder.url),
                expected=f"encoder {identity.encoder} ({identity.fingerprint[:12]})",
                found=f"another of that name ({encoder.fingerprint[:12]})",
                do="restore its weights, or build with --set index.tune=false",
            )
        return encoder

    def choose(
        self, column: str, rows: int, taken: tuple[Trained, Tried] | None = None
    ) -> TunedColumn:
        """The structure of a column with so many vectors; ChiasmError as by `tune_column`. taken:
        what a build of the same files and settings had learned and measured when it was killed."""
        queries = self.settings.queries
        view = CollectionView(self.covered, column, rows, lambda: self.encoder, queries)
        if taken is None:
            self.tuned[column] = tune_column(view, self.settings)
            if self.tuned[column].candidates:  # indexes were searched
                release_memory()
        else:
            trained, tried = taken
            sets = view.query_sets() if self.settings.tune else None
            self.tuned[column] = TunedColumn(
                *(trained.plan, trained, sets),
                *(tried.candidates, tried.small_vectors, tried.seconds),
            )
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
            build_seconds = spent + tuned.seconds.get("train", 0.0)
            try:
                self.tuned[column] = fit_column(tuned, index, self.settings, build_seconds, folder)
            except SegmentGone as error:  # a shard without copies was embedded anew meanwhile
                LOG.warning("column %s is not measured: %s", column, error)
