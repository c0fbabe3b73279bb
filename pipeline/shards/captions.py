"""Which captions a sample has: those that `embed` reads, and all of them; a member
rewritten without captions that were dropped.

A caption is a text without spaces around it. They stand in `txt`, in json's `caption` and
`captions`, or in a json field of the reader's choice, `read.caption_field`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from chiasm.pipeline.records import Decoded, Sample
from chiasm.pipeline.shards.json_text import with_values

CAPTION_FIELDS = ("caption", "captions")  # of json, in the order in which they are read


def first_captions(text: str | None, table: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """The captions that `embed` reads, those of the first source that has any: `field` and `txt`
    or, without a field, `txt` and json's CAPTION_FIELDS."""
    fields = map(table.get, CAPTION_FIELDS)
    values = (table.get(field), text) if field else (text, *fields)
    return next(filter(None, map(captions_of, values)), ())


def every_caption(sample: Sample | Decoded, field: str) -> tuple[str, ...]:
    """Every caption of a sample, each text once: first those that `embed` reads; without a `field`
    then those of json's CAPTION_FIELDS. What trains takes them, what filters judges them."""
    found = sample.captions
    if not field and sample.json is not None:
        table = json_object(sample.json.encode()) or {}
        for name in CAPTION_FIELDS:
            found += captions_of(table.get(name))
    return tuple(dict.fromkeys(found))


def captions_of(value: object) -> tuple[str, ...]:
    """A string or a list of strings -> its captions, stripped, without empty ones."""
    values = value if isinstance(value, list) else [value]
    # JSON can contain lone surrogates, Parquet cannot.
    texts = (v.encode("utf-8", "replace").decode().strip() for v in values if isinstance(v, str))
    return tuple(text for text in texts if text)


def without_captions(
    extension: str, data: bytes, dropped: Set[str], first: str, field: str
) -> bytes:
    """A member without the captions `dropped`, wherever a text is exactly one of them: lists in
    json's CAPTION_FIELDS and `field` lose it, a string and a `txt` become `first`. A member that
    has none of them stays as it is."""
    if extension == "txt":
        captions = captions_of(data.decode("utf-8-sig", "replace"))
        return data if dropped.isdisjoint(captions) else first.encode()
    table = (json_object(data) or {}) if extension == "json" else {}
    changed: dict[str, Any] = {}
    for name in {field, *CAPTION_FIELDS} - {""}:
        value = table.get(name)
        if isinstance(value, list):
            left = [v for v in value if isinstance(v, list) or dropped.isdisjoint(captions_of(v))]
            if len(left) < len(value):
                changed[name] = left
        elif not dropped.isdisjoint(captions_of(value)):
            changed[name] = first
    return with_values(data, changed) if changed else data


def json_object(data: bytes) -> dict[str, Any] | None:
    """The object in a json member. None for what the reader does not read (no UTF-8, no object) and
    for nesting too deep to parse."""
    try:
        table = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def json_bytes(value: object) -> bytes:
    """A value as JSON in UTF-8, escaped where it holds lone surrogates, which UTF-8 cannot."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
