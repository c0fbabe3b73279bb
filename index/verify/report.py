"""`chiasm check`: all of a collection that can be verified, each difference one line.

    check_shards    ledgers against Parquet footers, rows + dropped = samples, keys, dims, unit norm
    check_index     CURRENT, checksums of segments, catalog and vectors against the Parquet files
    check_members   on request: members read again by range, digests compared, encoded again

Only the last needs the encoder, hence torch. Nothing is changed and nothing is repaired.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from chiasm.index.verify.index import check_index
from chiasm.pipeline.collection import Collection
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.verify import Finding, check_members, check_shards


@dataclass(frozen=True)
class Report:
    """findings: what is wrong, empty where nothing is. checked: how many shards, rows, vectors,
    segments, and pictures or members were read."""

    findings: list[Finding]
    checked: dict[str, int]

    @property
    def ok(self) -> bool:
        return not self.findings

    def advice(self) -> str:
        """What to do about all findings, in one line; "" where there are none."""
        fixes = {finding.fix for finding in self.findings}
        if len(fixes) == 1:
            return fixes.pop()
        return "do what each line says" if any(fixes) else ""


def check(
    path: str | Path,
    *,
    reencode: int = 0,
    encoding: EncoderSettings | None = None,
    encoder: str | None = None,
) -> Report:
    """Verify a collection; `reencode` rows with a member are read and encoded again. encoding: how
    the encoder runs, such as its device; its precision is the collection's. encoder: as
    `open_collection` takes it.

    Raises CollectionError where there is no collection.
    """
    collection = Collection.open(str(path), encoder)
    checked: Counter[str] = Counter()
    findings = list(check_shards(collection, checked))
    findings += check_index(collection, checked)
    if reencode:
        findings += check_members(collection, reencode, checked, encoding or EncoderSettings())
    return Report(findings, dict(checked))
