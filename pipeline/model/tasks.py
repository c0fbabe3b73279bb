"""What a joint decoder does, each task told apart by its first token.

    caption     picture -> text               ask        picture, question -> text
    translate   picture, text -> text         sentiment  picture, text -> text, one label
    imagine     text -> codes of a picture

The first token says task and language of the target: `caption:en`. Ids of a decoder lie in three
ranges, one after the other: V text tokens, P prefixes, C picture codes. A head is the range that
a task's targets come from: its logits are over that range alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Head = Literal["text", "codes"]


@dataclass(frozen=True, slots=True)
class Task:
    """name; source: does it read a text; picture: does it read a picture; head: what it writes;
    languages: of its targets, none where these are no text."""

    name: str
    source: bool
    picture: bool
    head: Head = "text"
    languages: tuple[str, ...] = ("en", "zh")

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The first tokens of the task, one a language."""
        return tuple(f"{self.name}:{item}" for item in self.languages) or (self.name,)


TASKS = {
    task.name: task
    for task in (
        Task("caption", source=False, picture=True),
        Task("ask", source=True, picture=True),
        Task("translate", source=True, picture=True),
        Task("sentiment", source=True, picture=True),
        Task("imagine", source=True, picture=False, head="codes", languages=()),
    )
}
PREFIXES = tuple(prefix for task in TASKS.values() for prefix in task.prefixes)


@dataclass(frozen=True)
class TargetIds:
    """Ids of a decoder: `text` of text tokens, then one a prefix, then `codes` of picture codes."""

    text: int
    prefixes: Sequence[str]
    codes: int

    def __len__(self) -> int:
        return self.text + len(self.prefixes) + self.codes

    def prefix(self, task: str, language: str = "") -> int:
        """The id of a task's first token; KeyError for a task or a language that is not there."""
        name = f"{task}:{language}" if TASKS[task].languages else task
        if name not in self.prefixes:
            raise KeyError(name)
        return self.text + tuple(self.prefixes).index(name)

    def range(self, head: Head) -> tuple[int, int]:
        """First id of a head, and how many it has."""
        if head == "text":
            return 0, self.text
        return self.text + len(self.prefixes), self.codes

    def tasks(self) -> dict[str, tuple[str, ...]]:
        """The tasks that there are ids for, each with the languages of its targets."""
        return {
            task.name: tuple(
                language
                for language in task.languages
                if f"{task.name}:{language}" in self.prefixes
            )
            for task in TASKS.values()
            if set(task.prefixes) & set(self.prefixes) and self.range(task.head)[1]
        }


def as_written(text: str, language: str) -> str:
    """What a decoder wrote, with the commas of its language: the tokenizer's normal form has those
    of Chinese as Latin ones."""
    return (text.replace(",", "，") if language == "zh" else text).strip()
