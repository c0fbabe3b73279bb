"""`chiasm filter`: shards scored by a model that matches, then written without what falls short.

Two passes. The first writes each shard's scores to the target, a shard at a time; of all of them
only counts by value stay in memory, from which a share becomes a threshold. The second writes the
shards. Both work in this process, or on a pool of Ray actors. Kill it anywhere and run the same
command again: files have their names only when whole, and what was scored is not scored again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from chiasm.jobs.config import Settings
from chiasm.jobs.shard_workers import Report, is_on_ray, require_other_folder, shard_workers
from chiasm.pipeline.caption_filter import (
    Filtered,
    FilterSettings,
    LogitCounts,
    read_scores,
    require_some_left,
    store_scores,
    write_filtered,
)
from chiasm.pipeline.collection import Run, require_no_answers
from chiasm.pipeline.encoders import (
    Matcher,
    load_matcher,
    require_modality,
    with_absolute_folder,
)
from chiasm.pipeline.records import IMAGE, TEXT, Shard
from chiasm.pipeline.storage import Folder, display_name, require_writable

LOG = logging.getLogger(__name__)
USES = ("read", "decode", "batch", "workers", "filter")  # groups of settings, beside the encoder's


@dataclass(frozen=True)
class FilterRequest:
    """What to filter into what. address: of a running Ray; None with one worker: this process."""

    shards: Sequence[Shard]
    to: str
    encoder: str
    settings: Settings
    address: str | None = None

    @property
    def on_ray(self) -> bool:
        return is_on_ray(self.settings.workers, self.address)


@dataclass(frozen=True)
class FilterSummary:
    """The threshold that was used, and what became of the samples."""

    threshold: float
    counts: Filtered


class ShardFilter:
    """Scores and writes shards; the model is loaded when it is first needed."""

    def __init__(self, request: FilterRequest, run_id: str) -> None:
        self.request, self.run_id = request, run_id
        self.folder = Folder(request.to)

    @functools.cached_property
    def model(self) -> Matcher:
        matcher = load_matcher(self.request.encoder, self.request.settings.encoder)
        for modality in (IMAGE, TEXT):
            require_modality(
                matcher, modality, do="filter with a matcher that takes pictures and texts"
            )
        return matcher

    def load(self) -> str:
        """The model's name; raises what loading it raises."""
        return self.model.name

    def score(self, shard: Shard) -> tuple[Shard, bool, LogitCounts]:
        """Score one shard into the target, unless its scores are there; -> the shard, whether it
        was scored now, and counts of its log odds."""
        settings = self.request.settings
        made = store_scores(
            shard,
            self.model,
            settings.read,
            self.folder,
            self.run_id,
            batch=settings.batch,
            decode=settings.decode,
        )
        counts = LogitCounts()
        counts.add(read_scores(shard, self.folder))
        return shard, made, counts

    def write(self, shard: Shard, settings: FilterSettings) -> tuple[Shard, Filtered]:
        """Write one shard without the captions that fell short."""
        scores = read_scores(shard, self.folder)
        return shard, write_filtered(shard, scores, settings, self.folder, self.run_id)


def filter_shards(request: FilterRequest, report: Report = lambda line: None) -> FilterSummary:
    """Filter shards into a folder. report: called with a line after each shard.

    Raises UsageError for a target that is the shards' own folder, a collection or read only,
    ChiasmError where more captions would go than `filter.max_noisy` allows; then no shard is
    written, and the scores stay."""
    require_writable(request.to)
    require_other_folder(request.shards, request.to)
    require_no_answers(Folder(request.to))
    # Workers on Ray run in a folder of their own, where a relative path means another place.
    encoder = with_absolute_folder(request.encoder)
    request = replace(request, to=Folder(request.to).url, encoder=encoder)
    options = request.settings.filter
    record = {"matcher": request.encoder, "address": request.address}
    record |= request.settings.of("encoder", *USES)
    run = Run(Folder(request.to), "filter", record)
    work = ShardFilter(request, run.id)
    workers = shard_workers(  # before anything is written
        work, (request, run.id), len(request.shards), request.settings.workers, request.address
    )
    with run:
        run.sweep([""], unclaimed=[shard.id for shard in request.shards])
        with workers as apply:
            counts = LogitCounts()
            total = len(request.shards)
            scored = apply("score", [(shard,) for shard in request.shards])
            for number, (shard, made, one) in enumerate(scored, 1):
                counts.update(one)
                what = "scored" if made else "found the scores of"
                LOG.info("%s %s: %d captions", what, display_name(shard.url), one.captions)
                report(f"scored {number} of {total} shards")
            threshold = options.threshold
            if options.drop is not None:
                threshold = counts.quantile(options.drop)
            elif not options.flag:
                require_some_left(counts, threshold, options.max_noisy, request.encoder)
            settings = FilterSettings(threshold, options.flag, request.settings.read)
            written = Filtered()
            for shard, one in apply("write", [(shard, settings) for shard in request.shards]):
                written += one
                LOG.info("wrote %s: %d captions fell short", display_name(shard.url), one.noisy)
        run.finish("done", asdict(written))
    return FilterSummary(threshold, written)
