"""`chiasm caption SHARDS --to FOLDER` and its kin: what a model says of every sample of shards.

In come shards and a task, out come one Parquet file a shard and, for captions, the shard with these
added. All of it in this process, or on a pool of Ray actors. Kill it anywhere and run the same
command again: files have their names only when whole, and a shard that is done is not asked about
again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace

from chiasm.jobs.config import Settings
from chiasm.jobs.shard_workers import Apply, Report, is_on_ray, require_other_folder, shard_workers
from chiasm.pipeline.answers import (
    FOLDERS,
    AnswerSettings,
    AnswersFooter,
    AnswersIdentity,
    AnswersSummary,
    add_captions,
    answer_shard,
    create_or_check,
    find_answers,
    has_captions,
    read_identity,
)
from chiasm.pipeline.collection import Run
from chiasm.pipeline.encoders import (
    Answerer,
    load_answerer,
    probe_answerer,
    require_task,
    with_absolute_folder,
)
from chiasm.pipeline.errors import SourceError, UsageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder, display_name, require_writable

LOG = logging.getLogger(__name__)
USES = ("read", "decode", "batch", "workers", "max_loss")  # groups, beside the encoder's


@dataclass(frozen=True)
class AnswerRequest:
    """What is asked of which shards. write_shards: the shards are written too, with the captions
    added; of the task `caption` alone. address: of a running Ray; None with one worker: this
    process."""

    shards: Sequence[Shard]
    to: str
    model: str
    answers: AnswerSettings
    settings: Settings
    write_shards: bool = False
    address: str | None = None

    @property
    def on_ray(self) -> bool:
        return is_on_ray(self.settings.workers, self.address)


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: the footer of its answers; or why it could not be read or copied.
    found: all of it was there already."""

    shard: Shard
    footer: AnswersFooter | None = None
    failure: str = ""
    found: bool = False

    def count(self, summary: AnswersSummary) -> None:
        if self.footer is None:
            summary.fail(self.shard, self.failure)
        else:
            summary.add(self.footer, skipped=self.found)


class ShardAnswers:
    """Asks about shards; the model is loaded when it is first needed."""

    def __init__(self, request: AnswerRequest, run_id: str) -> None:
        self.request, self.run_id = request, run_id
        self.folder = Folder(request.to)

    @functools.cached_property
    def model(self) -> Answerer:
        settings = self.request.answers
        answerer = load_answerer(self.request.model, self.request.settings.encoder)
        require_task(answerer, settings.task, settings.language)
        existing = read_identity(self.folder)
        if existing is not None:
            existing.require(AnswersIdentity.of(settings, answerer), display_name(self.folder.url))
        probe_answerer(
            answerer, settings.task, settings.language or answerer.tasks[settings.task][0]
        )
        return answerer

    @functools.cached_property
    def identity(self) -> AnswersIdentity:
        """What the answers are, written to the folder where it was not."""
        identity = AnswersIdentity.of(self.request.answers, self.model)
        create_or_check(self.folder, identity, self.run_id)
        return identity

    def load(self) -> str:
        """The model's name; raises what loading it raises, and what it lacks."""
        return self.model.name

    def answer(self, shard: Shard) -> Outcome:
        """Ask about a shard and write it with its captions, each unless that is there already. A
        shard that cannot be read costs no other its answers."""
        edition = self.identity.edition(shard)  # before the first answers: what they are
        found = True
        try:
            footer = find_answers(self.folder, shard.id)
            if footer is None or footer.edition != edition:
                found = False
                settings = self.request.answers
                footer = answer_shard(shard, self.model, self.folder, settings, self.run_id)
            if self.request.write_shards and not has_captions(self.folder, footer):
                found = False
                add_captions(footer, self.request.answers.read, self.folder, self.run_id)
        except SourceError as error:
            LOG.warning("not answered: %s", error, extra={"shard": shard.id})
            return Outcome(shard, failure=str(error))
        return Outcome(shard, footer, found=found)


def answer_shards(request: AnswerRequest, report: Report = lambda line: None) -> AnswersSummary:
    """Ask about shards. report: called with a line after each shard.

    Raises UsageError for a target that is the shards' own folder, a collection or read only, and
    for a task or language that the model lacks, CollectionError for a folder that has answers of
    another model or to another question, EncoderError for a model that cannot be loaded or
    answers nothing."""
    if request.write_shards and request.answers.task != "caption":
        raise UsageError("--shards", expected="chiasm caption", found=request.answers.task)
    require_writable(request.to)
    folder = Folder(request.to)
    for target in (folder.url, folder.url_of("shards")):
        require_other_folder(request.shards, target)
    # Workers on Ray run in a folder of their own, where a relative path means another place.
    request = replace(request, to=folder.url, model=with_absolute_folder(request.model))
    existing = read_identity(folder)
    if existing is not None:
        existing.require_request(request.answers, display_name(folder.url))
        encoder = replace(request.settings.encoder, precision=existing.precision)
        request = replace(request, settings=replace(request.settings, encoder=encoder))
    summary = AnswersSummary()
    left = _skip_finished(request, folder, existing, summary)
    record = {
        "model": request.model,
        "address": request.address,
        "answers": asdict(request.answers),
        **request.settings.of("encoder", *USES),
    }
    run = Run(folder, request.answers.task, record)
    work, count = ShardAnswers(request, run.id), request.settings.workers
    workers: AbstractContextManager[Apply] = nullcontext(lambda method, arguments: iter(()))
    if left:  # before anything is written
        workers = shard_workers(work, (request, run.id), len(left), count, request.address)
    with run:
        run.sweep(FOLDERS, unclaimed=[shard.id for shard in request.shards])
        try:
            with workers as apply:
                outcomes = apply("answer", [(shard,) for shard in left])
                for number, outcome in enumerate(outcomes, summary.skipped + 1):
                    outcome.count(summary)
                    report(f"answered {number} of {len(request.shards)} shards")
        except BaseException:
            if read_identity(folder) is None:
                run.withdraw()  # no worker was ever ready: nothing was written
            raise
        finally:
            run.sweep(FOLDERS, own=True)
        run.finish("failed" if summary.failed else "done", summary.as_json())
    return summary


def _skip_finished(
    request: AnswerRequest,
    folder: Folder,
    existing: AnswersIdentity | None,
    summary: AnswersSummary,
) -> list[Shard]:
    """The shards that are left, after those were counted that are done: that needs no model."""
    if existing is None or existing.model != request.model:
        return list(request.shards)

    def finished(shard: Shard) -> AnswersFooter | None:
        footer = find_answers(folder, shard.id)
        if footer is None or footer.edition != existing.edition(shard):
            return None
        return footer if not request.write_shards or has_captions(folder, footer) else None

    left = []
    found = folder.map_concurrent(finished, request.shards)
    for shard, footer in zip(request.shards, found, strict=True):
        if footer is None:
            left.append(shard)
        else:
            summary.add(footer, skipped=True)
    return left
