"""Which captions a sample has: those that `embed` reads, and all of them; a member
rewritten without captions that were dropped.

A caption is a text without spaces around it. They stand in `txt`, `caption` and `text`, in json's
`caption` and `captions`, or in a json field of the reader's choice, `read.caption_field`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

from chiasm.pipeline.records import Decoded, Sample
from chiasm.pipeline.shards.json_text import with_values

CAPTION_EXTENSIONS = ("txt", "caption", "text")  # in the order in which they are read
CAPTION_FIELDS = ("caption", "captions")  # of json, in the order in which they are read

_MARKS = {  # byte order marks; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
_ALL_MARKS = tuple(_MARKS)
_MAX_TOLD = 500  # characters of the names of fields, where the one asked for is missing


class Texts(NamedTuple):
    """What the text members of a sample say. captions: those that `embed` reads. json: the json
    member as text, None where it is no object. notes: (reason, detail). too_large: texts that grew
    beyond the limit when they were decoded."""

    captions: tuple[str, ...] = ()
    json: str | None = None
    notes: tuple[tuple[str, str], ...] = ()
    too_large: tuple[str, ...] = ()


def read_texts(members: Mapping[str, bytes], field: str, max_bytes: int) -> Texts:
    """The texts of a sample from its members, extension -> bytes.

    Captions are those of the first source that has any: json's `field`, where one is asked for,
    then the CAPTION_EXTENSIONS in their order and, without a `field`, json's CAPTION_FIELDS."""
    table, json_text, notes = _read_json(members.get("json"))
    too_large: list[str] = []

    def sources() -> Iterator[object]:
        if field:
            yield table.get(field)
        for extension in CAPTION_EXTENSIONS:
            if extension not in members:
                continue
            text, fault = decode_text(members[extension])
            if fault:
                notes.append(("bad_text", fault))
            # An invalid byte has become three, and UTF-16 grows as well.
            if len(text) * 4 > max_bytes and (size := len(text.encode())) > max_bytes:
                too_large.append(f"{extension}: {size} bytes")
                notes.append(("member_too_large", too_large[-1]))
            else:
                yield text
        if not field:
            yield from map(table.get, CAPTION_FIELDS)

    captions = next(filter(None, map(captions_of, sources())), ())
    if field and field not in table:
        has = ", ".join(table)[:_MAX_TOLD]
        detail = f"the fields of json are {has}" if has else "there is no json beside it"
        notes.append(("no_caption_field", f"{field}: {detail}"))
    return Texts(captions, json_text, tuple(notes), tuple(too_large))


def decode_text(data: bytes) -> tuple[str, str]:
    """A text member as text, and what is wrong with it, "" for nothing.

    UTF-8 or, where it says so by a byte order mark, UTF-16 or UTF-32. What cannot be read is shown
    as U+FFFD. NUL characters stay."""
    encoding, mark = "utf-8", b""
    if data.startswith(_ALL_MARKS):
        mark, encoding = next(item for item in _MARKS.items() if data.startswith(item[0]))
    try:
        text, fault = data[len(mark) :].decode(encoding), ""
    except UnicodeDecodeError as error:
        text, fault = data[len(mark) :].decode(encoding, "replace"), str(error)
    if "\0" in text:
        fault = fault or f"a NUL character at {text.index(chr(0))}: UTF-16 without a mark?"
    return text, fault


def _read_json(data: bytes | None) -> tuple[dict[str, Any], str | None, list[tuple[str, str]]]:
    """A json member parsed, as text, and notes; ({}, None, ...) for none or an invalid one."""
    if data is None:
        return {}, None, []
    text, fault = decode_text(data)
    if fault:
        return {}, None, [("bad_json", fault)]
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, None, [("bad_json", str(error))]
    if not isinstance(table, dict):
        return {}, None, [("bad_json", f"a {type(table).__name__}, not an object")]
    return table, text, []


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
    if extension in CAPTION_EXTENSIONS:
        captions = captions_of(decode_text(data)[0])
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
    """The object in a json member. None for what the reader does not read (no text, no object) and
    for nesting too deep to parse."""
    table, text, _ = _read_json(data)
    return None if text is None else table


def json_bytes(value: object) -> bytes:
    """A value as JSON in UTF-8, escaped where it holds lone surrogates, which UTF-8 cannot."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
