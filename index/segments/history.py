"""The generations of an index, as their manifests tell: for `chiasm index status`."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiasm.index.audit import AuditedRecall
from chiasm.index.segments.audit_files import read_audit
from chiasm.index.segments.generations import Generation, current_number, numbers, read_manifest
from chiasm.index.segments.manifest import Drift, Manifest, StoredCalibration
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder


@dataclass(frozen=True)
class PastGeneration:
    """command: what made it. parent: the generation that an edit changed; restores: the one that a
    rollback made live again. deleted: rows that searches leave out. calibrated: by column. audited:
    the recall of queries that were answered from it. problem: why it cannot be read, "" where it
    can; audit_problem: the same of its audits."""

    number: int
    live: bool
    command: str = ""
    created: float = 0.0
    rows: int = 0
    deleted: int = 0
    segments: int = 0
    parent: int | None = None
    restores: int | None = None
    drift: dict[str, Drift] = field(default_factory=dict)
    calibrated: dict[str, StoredCalibration] = field(default_factory=dict)
    audited: tuple[AuditedRecall, ...] = ()
    problem: str = ""
    audit_problem: str = ""


def read_history(folder: Folder) -> list[PastGeneration]:
    """The generations that are kept, oldest first. Their segments are not opened."""
    try:
        live = current_number(folder)
    except CollectionError:
        live = None  # `chiasm status` says so
    found = numbers(folder)
    return list(folder.map_concurrent(lambda number: _read(folder, number, number == live), found))


def _read(folder: Folder, number: int, live: bool) -> PastGeneration:
    try:
        manifest = read_manifest(folder, number)
    except CollectionError as error:
        return PastGeneration(number, live, problem=str(error))
    audited, audit_problem = audits_of(folder, number, manifest)
    return PastGeneration(
        number=number,
        live=live,
        command=manifest.command,
        created=manifest.created,
        rows=manifest.rows,
        deleted=manifest.deleted,
        segments=len(manifest.segments),
        parent=manifest.parent,
        restores=manifest.restores,
        drift=manifest.drift,
        calibrated=manifest.calibrations,
        audited=audited,
        audit_problem=audit_problem,
    )


def audits_of(
    folder: Folder, number: int, manifest: Manifest
) -> tuple[tuple[AuditedRecall, ...], str]:
    """What audits of a generation found, and why that cannot be read, "" where it can."""
    try:
        return read_audit(folder, number, manifest.run), ""
    except CollectionError as error:
        return (), str(error)


def exact_columns(generation: Generation) -> dict[str, int]:
    """How many vectors the columns have that are exact though nothing was measured: by their number
    alone, or as somebody wanted them. Deleted rows count."""
    manifest = generation.manifest
    return {
        column: sum(segment.record.vectors[column] for segment in generation.segments)
        for column, plan in manifest.columns.items()
        if plan.exact and column not in manifest.reports
    }
