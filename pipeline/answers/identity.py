"""What makes two runs over shards give the same answers: `answers.json`, written once, checked
whenever a run goes on in its folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import package_versions
from chiasm.pipeline.encoders import Answerer, GenerateSettings
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import RULES, ReadSettings
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

NAME = "answers.json"
SHARD_TASKS = ("caption", "ask", "translate", "sentiment")  # tasks with a picture
# Fields that two runs into one folder have in common; the others say where the first one ran.
COMPARED = ("task", "language", "question", "generate", "read", "decode", "fingerprint")


@dataclass(frozen=True)
class AnswerSettings:
    """What is asked of every sample.

    task: of SHARD_TASKS, UsageError for another. language: of the answers; None for that of each
    text. question: of `ask` alone; `translate` and `sentiment` take each caption of a sample.
    batch: changes no answer.
    """

    task: str
    language: str | None = None
    question: str | None = None
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)

    def __post_init__(self) -> None:
        if self.task not in SHARD_TASKS:
            expected = f"one of {', '.join(SHARD_TASKS)}"
            raise UsageError(f"task {self.task!r} over shards", expected=expected)


@dataclass(frozen=True)
class AnswersIdentity:
    """The content of `answers.json`. precision, device, versions: those of the first worker."""

    task: str
    language: str | None
    question: str | None
    generate: dict[str, Any]
    read: dict[str, Any]
    decode: dict[str, Any]
    model: str
    fingerprint: str
    precision: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = 1

    @classmethod
    def of(cls, settings: AnswerSettings, answerer: Answerer) -> AnswersIdentity:
        return cls(
            **_request(settings),
            model=answerer.name,
            fingerprint=answerer.fingerprint,
            precision=answerer.precision,
            device=answerer.device,
            versions=package_versions(),
        )

    def edition(self, shard: Shard) -> str:
        """Which answers about a shard these are: 8 hex digits over the fields COMPARED, the shard's
        size and version and the rules of reading."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in COMPARED}
        fields |= {"size": shard.size, "version": shard.version, "rules": RULES}
        return hashlib.blake2b(
            json.dumps(fields, sort_keys=True).encode(), digest_size=4
        ).hexdigest()

    def require_request(self, settings: AnswerSettings, where: str) -> None:
        """CollectionError, which names the field, where other things are asked of samples than
        those that the folder `where` has answers to."""
        self._require(_request(settings), where)

    def require(self, other: AnswersIdentity, where: str) -> None:
        """The same for another request or model."""
        self._require({name: getattr(other, name) for name in COMPARED}, where, other.model)

    def _require(self, fields: dict[str, Any], where: str, model: str = "") -> None:
        for name, value in fields.items():
            mine = getattr(self, name)
            if mine == value:
                continue
            if name == "fingerprint":
                expected = f"answers of model {self.model} ({self.fingerprint[:12]})"
                found = f"model {model} ({value[:12]})"
            else:
                expected, found = f"{name} {_as_text(mine)}, as before", _as_text(value)
            raise CollectionError(
                where, expected=expected, found=found, do="ask as before, or give another --to"
            )


def _request(settings: AnswerSettings) -> dict[str, Any]:
    # As they come back from JSON.
    fields = {"generate": settings.generate, "read": settings.read, "decode": settings.decode}
    plain = {name: json.loads(json.dumps(asdict(value))) for name, value in fields.items()}
    del plain["generate"]["candidates"]  # of pictures, which no task over shards draws
    # As it was stored before there was `exact`: what was not scaled was decoded in full by Pillow.
    # Answers by other pixels count as made: nobody's are made anew unasked.
    plain["decode"]["scaled"] = not plain["decode"].pop("exact")
    return {
        "task": settings.task, "language": settings.language, "question": settings.question,
    } | plain  # fmt: skip


def _as_text(value: Any) -> str:
    """A value for a message: of groups of settings as `name value` each."""
    if isinstance(value, dict):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return "none" if value is None else str(value)


def read_identity(folder: Folder) -> AnswersIdentity | None:
    """The identity of the answers in a folder, None where there are none yet; CollectionError for a
    damaged one."""
    if not folder.exists(NAME):
        return None
    where, what = display_name(folder.url_of(NAME)), "what the answers beside it are"
    return read_record(folder.read_bytes(NAME), where, AnswersIdentity, what=what)


def create_or_check(folder: Folder, identity: AnswersIdentity, run_id: str) -> None:
    """Write the identity where the folder has none, else compare ours with the one it has. Of two
    runs that start together one writes. Raises CollectionError."""
    where = display_name(folder.url)
    if not folder.exists(NAME):
        text = json.dumps(asdict(identity), ensure_ascii=False, indent=1)
        folder.write_new(NAME, text.encode("utf-8", "surrogatepass") + b"\n", run_id)
    existing = read_identity(folder)
    if existing is None:
        raise CollectionError(where, expected=NAME, found="none any more")
    existing.require(identity, where)
