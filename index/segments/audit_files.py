"""The recall of audited queries, stored beside the generation that they were answered from.

    index/generations/<number>.audit

Each search with `--audit` adds its own to what is there. Of two that end at the same moment one may
be missing then: an audit is a sample, and nothing rests on its size. An edit goes on with those of
the generation that it changes, since it keeps plans and lists.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from chiasm.index.audit import AuditedRecall, merged
from chiasm.index.segments.generations import read_if_there, read_manifest
from chiasm.index.segments.manifest import Manifest
from chiasm.index.segments.names import audit_name
from chiasm.pipeline.errors import CollectionError, SourceError, StorageError
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

LOG = logging.getLogger(__name__)

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


def carry_audits(folder: Folder, number: int, manifest: Manifest) -> None:
    """Store with an edit what audits found of the generation that it changed or, of a column that a
    rollback took from another build, of the one that it restored. That this cannot be done fails no
    edit, and is said."""
    found: dict[str, list[AuditedRecall]] = {}
    for source in (manifest.parent, manifest.restores):
        if source is None:
            continue
        try:
            before = read_manifest(folder, source)
            recalls = read_audit(folder, source, before.run)
        except (CollectionError, SourceError, StorageError) as error:
            LOG.warning("audits of generation %d are not kept: %s", source, error)
            continue
        same = {one.column for one in recalls if _same_basis(before, manifest, one.column)}
        for column in same - found.keys():
            found[column] = [one for one in recalls if one.column == column]
    if not found:
        return
    record = AuditRecord(manifest.run, merged(one for some in found.values() for one in some))
    try:
        folder.write_whole(audit_name(number), record.to_json(), manifest.run)
    except StorageError as error:
        LOG.warning("audits of generation %d are not kept: %s", number, error)


def _same_basis(before: Manifest, now: Manifest, column: str) -> bool:
    return before.basis(column) == now.basis(column)
