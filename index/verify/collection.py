"""`chiasm check`: every promise of a collection that can be checked, each breach one line.

    check_shards     ledgers against Parquet footers, rows + dropped = samples, keys, dims, unit
    length check_index      CURRENT, checksums of segments, the catalog and the vectors against
    Parquet check_pictures   on request: pictures read again by range, compared by digest, encoded
    again

Only the last needs the encoder, hence torch. Nothing is changed and nothing is mended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from chiasm.index.verify.index import check_index
from chiasm.pipeline.collection import Collection
from chiasm.pipeline.verify import Finding, check_pictures, check_shards


@dataclass(frozen=True)
class Report:
    """findings: what is wrong, empty where nothing is. checked: how much was looked at: shards,
    rows, vectors, segments, pictures."""

    findings: list[Finding]
    checked: dict[str, int]

    @property
    def ok(self) -> bool:
        return not self.findings


def check(path: str, *, reencode: int = 0) -> Report:
    """Check a collection; `reencode` rows with a picture are read and encoded again.

    Raises CollectionError where there is no collection to check.
    """
    collection = Collection.open(path)
    checked: Counter[str] = Counter()
    findings = list(check_shards(collection, checked))
    findings += check_index(collection, checked)
    if reencode:
        findings += check_pictures(collection, reencode, checked)
    return Report(findings, dict(checked))
