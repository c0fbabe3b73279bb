"""The calibrations that are stored with a build, so that a search does not make them.

Made of the segments that were written, before the generation is published. A column has none where
too few captions can ask, and no column has one where the encoder cannot be loaded: then a search
that wants one makes it, or says why it cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from chiasm.index.query import OpenIndex, TooFewCaptions, calibrate_index
from chiasm.index.segments import (
    FileSum,
    Generation,
    Manifest,
    SegmentGone,
    StoredCalibration,
    calibration_file,
    open_segments,
)
from chiasm.pipeline.collection import Collection
from chiasm.pipeline.encoders import Encoder
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings

LOG = logging.getLogger(__name__)


def store_calibrations(
    collection: Collection, manifest: Manifest, run_id: str, encoder: Callable[[], Encoder]
) -> dict[str, StoredCalibration]:
    """By column, the files that were written. manifest: not published yet. encoder: loads the
    collection's; not called where there are too few captions."""
    folder = collection.folder
    generation = Generation(0, manifest, open_segments(folder, manifest), folder)
    index = _Unpublished(collection, generation, encoder)
    stored: dict[str, StoredCalibration] = {}
    for column in manifest.columns:
        if column in collection.identity.tokens:
            continue  # ranked by MaxSim, of which no p-value is told
        try:
            calibration = calibrate_index(index, column)
        except TooFewCaptions as error:
            LOG.info("%s", error)
            continue
        except SegmentGone as error:  # a shard without copies was embedded anew meanwhile
            LOG.warning("column %s is not calibrated: %s", column, error)
            continue
        except EncoderError as error:
            LOG.warning("%s; no false-alarm rates are stored with this index", error)
            break
        name, content = calibration_file(run_id, column), calibration.to_json()
        folder.write_whole(name, content, run_id)
        stored[column] = StoredCalibration(name, FileSum.of(content), calibration.rows)
    return stored


class _Unpublished(OpenIndex):
    """A generation that is not live yet, with the encoder of the build."""

    def __init__(
        self, collection: Collection, generation: Generation, load: Callable[[], Encoder]
    ) -> None:
        super().__init__(collection, generation, EncoderSettings())
        self._load = load

    @property
    def encoder(self) -> Encoder:
        return self._load()
