"""What a sample's json gives the decoder to learn:

    {"questions":    [{"question": "How many dogs?", "answer": "two"}, ...],
     "translations": [{"source": "a crane", "target": "一只鹤", "to": "zh"}, ...],
     "sentiment":    {"text": "What a day!", "label": "negative"}}

Answers are in the language of their question, labels in that of their text. An entry of another
shape is left out, and said with the reason; the sample and its other entries stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chiasm.pipeline.encoders import LANGUAGES, language_of
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.shards import json_object

FIELDS = {"questions": "ask", "translations": "translate", "sentiment": "sentiment"}
# The texts that an entry of each task has: what is read, and what is to be written.
TEXTS = {
    "ask": ("question", "answer"),
    "translate": ("source", "target"),
    "sentiment": ("text", "label"),
}


class BadEntry(ValueError):
    """An entry of another shape; its message says where, what was expected and what was found."""


def read_examples(json_text: str | None) -> tuple[list[Example], list[str]]:
    """The examples in a json member, and a line for each entry of another shape."""
    fields = json_object(json_text.encode("utf-8", "surrogatepass")) if json_text else None
    examples: list[Example] = []
    bad: list[str] = []
    for field, task in FIELDS.items():
        for where, entry in _entries(field, (fields or {}).get(field)):
            try:
                examples.append(_example(task, where, entry))
            except BadEntry as error:
                bad.append(str(error))
    return examples, bad


def _entries(field: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The entries of a field, and where they are."""
    if value is None:
        return
    if isinstance(value, list) and field != "sentiment":
        yield from ((f"{field}[{i}]", entry) for i, entry in enumerate(value))
    else:
        yield field, value


def _example(task: str, where: str, entry: Any) -> Example:
    names = TEXTS[task]
    if not isinstance(entry, Mapping):
        expected = f"an object with {' and '.join(names)}"
        raise BadEntry(f"{where}: expected {expected}, found {type(entry).__name__}")
    texts = []
    for name in names:
        text = entry.get(name)
        if not isinstance(text, str) or not text.strip():
            found = "none" if text is None else repr(text)[:40]
            raise BadEntry(f"{where}: expected a text as {name}, found {found}")
        texts.append(text.encode("utf-8", "replace").decode().strip())
    source, target = texts
    language = language_of(source)
    if task == "translate":
        language = entry.get("to", language_of(target))
        if language not in LANGUAGES:
            expected = " or ".join(LANGUAGES)
            raise BadEntry(f"{where}: expected {expected} as to, found {repr(language)[:40]}")
    return Example(task, language, source, target)
