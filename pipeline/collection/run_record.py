"""The content of `runs/<run id>.json`: what a run says of itself."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from chiasm.pipeline.collection.processes import ProcessId
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import RUN_ID
from chiasm.pipeline.stored_records import read_record

SCHEMA = 1
RUNNING, KILLED = "running", "killed"
_RECORD = re.compile(rf"runs/({RUN_ID})\.json")
ENDED = ("done", "failed", "stopped", KILLED)
RELOCATE = "relocate"  # the command of a run that moves shards: it may write any, and claims none


@dataclass(frozen=True)
class RunRecord:
    """One run. started, heartbeat: seconds since the epoch by its own clock, for display alone.
    beats: how often the record was renewed. boot_id, pid_namespace, start_ticks, time_namespace:
    see `ProcessId`; empty in records of earlier versions."""

    id: str
    command: str
    host: str
    pid: int
    started: FiniteFloat
    heartbeat: FiniteFloat
    state: str = RUNNING  # running, done, failed, stopped; killed, as another run found it
    claimed: Annotated[tuple[str, ...], Field(alias="holds")] = ()  # shard ids
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    boot_id: str = ""
    pid_namespace: str = ""
    start_ticks: int = 0
    beats: int = 0
    time_namespace: str = ""

    @property
    def process(self) -> ProcessId:
        return ProcessId(
            self.pid, self.boot_id, self.pid_namespace, self.start_ticks, self.time_namespace
        )

    @property
    def is_ended(self) -> bool:
        """Whether it says that it has ended, in a state that this version knows."""
        return self.state in ENDED

    def to_json(self) -> bytes:
        """The file's content."""
        fields: dict[str, Any] = {"schema": SCHEMA}
        for key, value in vars(self).items():  # as they are: it is written every few seconds
            fields["holds" if key == "claimed" else key] = value
        text = json.dumps(fields, ensure_ascii=False, indent=1)
        return text.encode("utf-8", "surrogatepass") + b"\n"

    @classmethod
    def from_json(cls, data: bytes, name: str) -> RunRecord:
        """The record in the file `runs/<run id>.json`, which `name` is; CollectionError where it is
        damaged or was written by a newer version."""
        record = read_record(data, name, cls, what="the record of a run", schema=SCHEMA)
        if name != record_name(record.id):
            raise CollectionError(name, expected="the record of that run", found=f"{record.id!r}")
        return record


def record_name(run_id: str) -> str:
    return f"runs/{run_id}.json"


def mark_name(run_id: str) -> str:
    """A file that is there once another run has found this one dead. The record says so too, but
    its run may be writing it at that moment."""
    return f"runs/{run_id}.killed"


def run_of_record(name: str) -> str | None:
    """The id of the run whose record the file `name` is; None for a file that is none."""
    found = _RECORD.fullmatch(name)
    return None if found is None else found[1]


def marked_killed(data: bytes) -> bytes:
    """A record's content with the state `killed` and everything else as it was, fields of other
    versions included."""
    fields = json.loads(data.decode("utf-8", "surrogatepass"))
    text = json.dumps(fields | {"state": KILLED}, ensure_ascii=False, indent=1)
    return text.encode("utf-8", "surrogatepass") + b"\n"
