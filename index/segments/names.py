"""The names that chiasm writes below `index/`. Nothing else there is read by a listing or removed.

index/CURRENT
index/generations/<number>.json       six digits or more
index/generations/<number>.replaced   present once another generation is live, see sweep.py
index/generations/<number>.audit      recall of audited queries, see audit_files.py
index/segments/<run id>-<number>/     files of `is_segment_file`
index/trained/<run id>/<column>.safetensors
index/trained/<run id>/<column>.json           the report of what was measured
index/trained/<run id>/<column>.calibration.json
index/deleted/<run id>/<segment>.bits
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from chiasm.pipeline.storage import RUN_ID, is_temporary, target_of_temporary

CURRENT = "index/CURRENT"
GENERATIONS = "index/generations"
SEGMENTS = "index/segments"
TRAINED = "index/trained"
DELETED = "index/deleted"
CATALOG = "rows.arrow"
KEYWORDS = "keywords.arrow"
RECORD = "segment.json"
SOURCE = "source"  # the kind of file that says where a column's vectors are
TOKENS, ENDS = "tokens", "ends"  # the kinds that have a column's tokens, see token_files.py

_COLUMN = "[a-z][a-z0-9_]*"
_SEGMENT = re.compile(f"({RUN_ID})-[0-9]{{3,9}}")
_TRAINED = re.compile(RUN_ID)
_TRAINED_FILE = re.compile(
    f"{TRAINED}/{RUN_ID}/{_COLUMN}\\.(safetensors|json|calibration\\.json|faiss)"
)
_DELETED_FILE = re.compile(f"{DELETED}/{RUN_ID}/{_SEGMENT.pattern}\\.bits")
# `faiss` is of segments that an earlier version wrote.
_VECTORS = ("f16", "i8")
_DIVIDED = (*_VECTORS, TOKENS)  # that have checksums of blocks beside them
_KINDS = ("lists", "sizes", *_DIVIDED, ENDS, SOURCE, "faiss")
_WHOLE = (CATALOG, KEYWORDS, RECORD)
_FILE = re.compile(
    f"{'|'.join(map(re.escape, _WHOLE))}|{_COLUMN}\\.({'|'.join(_KINDS)})|"
    f"({re.escape(CATALOG)}|{_COLUMN}\\.({'|'.join(_DIVIDED)}))\\.blocks"
)
_GENERATION = re.compile("([0-9]{6,18})\\.(json|replaced|audit)")


def blocks_file(name: str) -> str:
    """The file of a segment that has the checksums of blocks of its file `name`."""
    return f"{name}.blocks"


def segment_file(segment_id: str, name: str) -> str:
    return f"{SEGMENTS}/{segment_id}/{name}"


def run_of_folder(name: str) -> str | None:
    """The run that wrote a folder of segments, trained indexes or deletions; None for a folder that
    is none of ours."""
    parent, _, base = name.rpartition("/")
    if parent == SEGMENTS and (found := _SEGMENT.fullmatch(base)):
        return found[1]
    return base if parent in (TRAINED, DELETED) and _TRAINED.fullmatch(base) else None


def is_segment_id(text: str) -> bool:
    return _SEGMENT.fullmatch(text) is not None


def is_trained_file(name: str) -> bool:
    """Whether `name` is the file of a trained index, below `index/trained/`."""
    return _TRAINED_FILE.fullmatch(name) is not None


def trained_file(run: str, column: str) -> str:
    return f"{TRAINED}/{run}/{column}.safetensors"


def report_file(run: str, column: str) -> str:
    return f"{TRAINED}/{run}/{column}.json"


def calibration_file(run: str, column: str) -> str:
    return f"{TRAINED}/{run}/{column}.calibration.json"


def deleted_file(run: str, segment_id: str) -> str:
    return f"{DELETED}/{run}/{segment_id}.bits"


def is_deleted_file(name: str) -> bool:
    return _DELETED_FILE.fullmatch(name) is not None


def is_final_file(base: str) -> bool:
    """Whether a whole segment may hold a file of this name."""
    return _FILE.fullmatch(base) is not None


def is_segment_file(base: str, columns: Iterable[str]) -> bool:
    """Whether a segment, or a folder of trained indexes or deletions, of these columns may hold a
    file of this name."""
    final = target_of_temporary(base) if is_temporary(base) else base
    if final.endswith((f"{CATALOG}.blocks", *(f".{kind}.blocks" for kind in _DIVIDED))):
        final = final.removesuffix(".blocks")
    final = final.replace(".calibration.json", ".json")
    stem, _, kind = final.rpartition(".")
    if kind == "bits":
        return is_segment_id(stem)
    return final in _WHOLE or (kind in (*_KINDS, "safetensors", "json") and stem in columns)


def manifest_name(number: int) -> str:
    return f"{GENERATIONS}/{number:06d}.json"


def replaced_name(number: int) -> str:
    """The mark of a generation that was live and is no more."""
    return f"{GENERATIONS}/{number:06d}.replaced"


def audit_name(number: int) -> str:
    """The recall of queries that were answered from a generation."""
    return f"{GENERATIONS}/{number:06d}.audit"


def numbers_in(names: list[str], kind: str) -> list[int]:
    """The numbers of the generations whose manifests (kind json), marks (kind replaced) or audits
    (kind audit) are among `names`, in rising order."""
    found = (_GENERATION.fullmatch(name.rpartition("/")[2]) for name in names)
    return sorted(int(one[1]) for one in found if one and one[2] == kind and _is_plain(one[1]))


def _is_plain(digits: str) -> bool:
    return digits == f"{int(digits):06d}" and int(digits) > 0
