"""A shard -> what a model says of its samples, as one Parquet file.

    read_samples -> batches (decode threads) -> requests -> answer_batch -> AnswersWriter -> commit

Every sample has a row: one with the answer, one for each of its captions where the task is about
captions, or one that says why there is none. A shard is done if and only if its file is there, with
the edition that this run would make. In memory is one batch, whatever the shard's size.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chiasm.pipeline.answers.files import AnswersFooter, AnswersWriter
from chiasm.pipeline.answers.identity import AnswerSettings, AnswersIdentity
from chiasm.pipeline.batches import batches
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import (
    TASKS,
    Answerer,
    Fault,
    Input,
    Reply,
    Request,
    answer_batch,
    language_of,
    probe_answerer,
)
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.records import DAMAGES, IMAGE, TEXT, Decoded, Dropped, Shard
from chiasm.pipeline.shards import ChangedError, every_caption, read_samples
from chiasm.pipeline.storage import Folder, display_name

LOG = logging.getLogger(__name__)
STAGE = "answer"  # of a row without an answer that the model gave none for
MOST_REFUSED = 256  # requests of a shard without an answer, before a model is at fault itself


def answer_shard(
    shard: Shard, answerer: Answerer, folder: Folder, settings: AnswerSettings, run_id: str
) -> AnswersFooter:
    """Ask about one shard and return what its file says of itself.

    A shard that was replaced after it was listed is taken as it is now. Raises SourceError where it
    cannot be read, or changes while it is, StorageError where the target cannot be written,
    EncoderError for a model that answers nothing; in each case nothing has its final name."""
    try:
        return _answer(shard, answerer, folder, settings, run_id)
    except ChangedError as error:
        if error.now is None:
            raise
        LOG.info("%s", error, extra={"shard": shard.id})
        return _answer(error.now, answerer, folder, settings, run_id)


def _answer(
    shard: Shard, answerer: Answerer, folder: Folder, settings: AnswerSettings, run_id: str
) -> AnswersFooter:
    with AnswersWriter(folder, shard, run_id) as out:
        counts = _Counts(out)
        samples = read_samples(shard, settings.read)
        for batch in batches(
            samples, _Pictures(answerer), settings.decode, settings.batch, tally=counts
        ):
            counts.keep(len(batch))
            rows = [row for row in batch.rows if _has_all(row, settings, counts)]
            requests = _requests(rows, settings, counts)
            for start in range(0, len(requests), settings.batch.size):
                block = requests[start : start + settings.batch.size]
                _answer_block(block, answerer, settings, counts)
            _require_some_answers(counts, answerer, settings, shard)
        _require_some_answers(counts, answerer, settings, shard, at_end=True)
        footer = counts.footer(shard, settings, AnswersIdentity.of(settings, answerer))
        out.commit(footer)
    LOG.info(
        "answered %s: %d answers, %d rows without one",
        display_name(shard.url), footer.answers, footer.unanswered,
        extra={"shard": shard.id, "rows": footer.answers, "dropped": footer.unanswered},
    )  # fmt: skip
    return footer


class _Pictures:
    """What decoding asks of an answerer: pictures alone, since texts are asked as they are."""

    def __init__(self, answerer: Answerer) -> None:
        self.name = answerer.name
        self.modalities: Mapping[str, Input] = {IMAGE: answerer.modalities[IMAGE]}
        self.preprocess, self.cost = answerer.preprocess, answerer.cost


class _Counts(Tally):
    """A tally whose dropped samples become rows at once. Used by the thread that writes."""

    def __init__(self, out: AnswersWriter) -> None:
        super().__init__()
        self.out = out
        self.answers = self.refused = self.lacking = self.uncaptioned = 0
        self.reasons: Counter[str] = Counter()
        self.damage: str | None = None
        self.last: Fault | None = None
        self.out_of_memory = 0

    def drop(self, dropped: Dropped) -> None:
        super().drop(dropped)
        if dropped.stage == "read" and dropped.reason in DAMAGES:
            where = f" in sample {dropped.key}" if dropped.key else ""
            self.damage = f"{dropped.reason}{where}: {dropped.detail}"
        self._unanswered(
            dropped.key, stage=dropped.stage, reason=dropped.reason, detail=dropped.detail
        )

    def lack(self, key: str, reason: str, text: str | None = None) -> None:
        """A sample, or a caption of it, without what the task is about."""
        self.lacking += 1
        self._unanswered(key, text=text, reason=reason)

    def refuse_request(self, row: Decoded, request: Request, fault: Fault) -> None:
        """A request that the model has no answer to."""
        self.refused += 1
        self.out_of_memory += fault.reason == "out_of_memory"
        self.last = fault
        self._unanswered(
            row.key, text=request.text, stage=STAGE, reason=fault.reason, detail=fault.detail
        )

    def answer(self, row: Decoded, request: Request, reply: Reply) -> None:
        self.answers += 1
        self.uncaptioned += not row.captions
        self.out.write(
            row.key,
            text=request.text,
            answer=reply.text,
            confidence=reply.confidence,
            truncated=reply.truncated,
        )

    def footer(
        self, shard: Shard, settings: AnswerSettings, identity: AnswersIdentity
    ) -> AnswersFooter:
        return AnswersFooter(
            source=shard,
            edition=identity.edition(shard),
            task=settings.task,
            language=settings.language,
            question=settings.question,
            model=identity.model,
            fingerprint=identity.fingerprint,
            samples=self.samples,
            answers=self.answers,
            reasons=dict(sorted(self.reasons.items())),
            lacking=self.lacking,
            uncaptioned=self.uncaptioned,
            damage=self.damage,
        )

    def _unanswered(self, key: str, **fields: Any) -> None:
        self.reasons[fields["reason"]] += 1
        self.out.write(key, **fields)


def _has_all(row: Decoded, settings: AnswerSettings, counts: _Counts) -> bool:
    """Whether a sample has what the task is about; what it lacks is a row."""
    if IMAGE not in row.inputs:
        counts.lack(row.key, row.missing.get(IMAGE, "no_picture"))
        return False
    if _is_about_captions(settings) and not row.captions:
        counts.lack(row.key, row.missing.get(TEXT, "no_caption"))
        return False
    return True


def _is_about_captions(settings: AnswerSettings) -> bool:
    return TEXT in TASKS[settings.task] and settings.question is None


def _requests(
    rows: Sequence[Decoded], settings: AnswerSettings, counts: _Counts
) -> list[tuple[Decoded, Request]]:
    """The requests of a batch; those of one picture share it. A caption that is in the language of
    the translation already is a row."""
    requests: list[tuple[Decoded, Request]] = []
    for row in rows:
        texts: Sequence[str | None] = [settings.question]
        if _is_about_captions(settings):
            texts = every_caption(row, settings.read.caption_field)
        for text in texts:
            if settings.task == "translate" and language_of(text) == settings.language:
                counts.lack(row.key, "same_language", text)
                continue
            language = settings.language or language_of(text)
            requests.append((row, Request(settings.task, language, row.inputs[IMAGE], text)))
    return requests


def _answer_block(
    block: Sequence[tuple[Decoded, Request]],
    answerer: Answerer,
    settings: AnswerSettings,
    counts: _Counts,
) -> None:
    # A text in a language that the model does not answer in is that text's fault, not the run's.
    languages = answerer.tasks[settings.task]
    spoken = [request for _, request in block if request.language in languages]
    replies = iter(answer_batch(answerer, spoken, settings.generate))
    for row, request in block:
        reply: Reply | Fault
        if request.language in languages:
            reply = next(replies)
        else:
            spoken_in = ", ".join(languages)
            reply = Fault("refused", f"the model answers in {spoken_in}, not {request.language}")
        if isinstance(reply, Fault):
            counts.refuse_request(row, request, reply)
        else:
            counts.answer(row, request, reply)


def _require_some_answers(
    counts: _Counts,
    answerer: Answerer,
    settings: AnswerSettings,
    shard: Shard,
    *,
    at_end: bool = False,
) -> None:
    """EncoderError where a model has given no answer so far, and fails a trial too, has no memory
    for any request, or refused MOST_REFUSED of them: it is at fault, not the samples."""
    if counts.answers or counts.last is None or not (at_end or counts.refused >= MOST_REFUSED):
        return
    probe_answerer(answerer, settings.task, settings.language or answerer.tasks[settings.task][0])
    if counts.refused >= MOST_REFUSED or counts.out_of_memory == counts.refused > 1:
        memory = counts.out_of_memory == counts.refused
        raise EncoderError(
            f"model {answerer.name}",
            expected=f"answers about some samples of {display_name(shard.url)}",
            found=f"none to {counts.refused} requests, the last one: {counts.last}",
            do="free memory, or take a smaller model or another --device"
            if memory
            else "take another model, or leave this shard out",
        )
