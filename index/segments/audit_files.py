"""The recall of audited queries, stored beside the generation that they were answered from.

    index/generations/<number>.audit

Each search with `--audit` adds its own to what is there. Of two that end at the same moment one may
be missing then: an audit is a sample, and nothing rests on its size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from chiasm.index.audit import AuditedRecall, merged
from chiasm.index.segments.generations import read_if_there
from chiasm.index.segments.names import audit_name
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

REPLACE = "remove it, or let the next search with --audit write it anew"


@dataclass(frozen=True)
class AuditRecord:
    """run: the build or edit that made the generation."""

    run: str
    recalls: tuple[AuditedRecall, ...]
    schema: int = 1

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode() + b"\n"


def read_audit(folder: Folder, number: int, run: str) -> tuple[AuditedRecall, ...]:
    """What is stored of a generation, which a run has made; CollectionError where it is damaged."""
    name = audit_name(number)
    content = read_if_there(folder, name)
    if content is None:
        return ()
    where = display_name(folder.url_of(name))
    record = read_record(content, where, AuditRecord, what="a record of audits", do=REPLACE)
    return record.recalls if record.run == run else ()


def add_to_audit(folder: Folder, number: int, run: str, found: Iterable[AuditedRecall]) -> str:
    """Store more of a generation. Returns what was wrong with the record that was there, which is
    written anew then; "" where nothing was. Raises StorageError where it cannot be written."""
    problem, known = "", ()
    try:
        known = read_audit(folder, number, run)
    except CollectionError as error:
        problem = str(CollectionError(error.what, expected=error.expected, found=error.found))
    record = AuditRecord(run, merged((*known, *found)))
    folder.write_whole(audit_name(number), record.to_json())
    return problem
