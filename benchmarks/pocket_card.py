"""The tables of pipeline/pocket/README.md, from the results of its benchmarks.

    python -m benchmarks.pocket_card

Reads pocket_recall.json, pocket_joint.json and, for weights with a decoder, pocket_tasks.json of
benchmarks/results, and prints their tables. A test compares the card with them. Standard errors of
shares that the results have none for are sqrt(p (1 - p) / queries).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.machine import RESULTS

LANGUAGES = {"en": "English", "zh": "Chinese"}
DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
CHANGES = {"value": "another value", "swap": "things swapped", "fewer": "one thing fewer"}
WAYS = {
    "image": "picture",
    "text": "caption",
    "mean": "best weighted mean",
    "fusion": "joint vector",
}
WITHHELD = "a colour, a kind and a relation never met together in training"


def main() -> None:
    """Print the tables of all results that are there."""
    for block in blocks():
        print(f"{block}\n")


def blocks() -> Iterator[str]:
    """The tables in Markdown."""
    for name, tables in TABLES.items():
        path = RESULTS / name
        if path.exists():
            yield from tables(json.loads(path.read_text()))


def recall_tables(found: dict[str, Any]) -> Iterator[str]:
    """How well vectors find."""
    queries = found["samples"] * len(found["galleries"])
    yield _table(
        ("direction", "captions", "R@1", "R@5", "R@10"),
        [
            (way, language, _with_error(of["r1"], queries), _three(of["r5"]), _three(of["r10"]))
            for direction, way in DIRECTIONS.items()
            for of, language in _by_language(found["mean"][direction])
        ],
    )
    kinds = list(found["by_kind_of_query"].items())
    for key, name in (("withheld_combinations", WITHHELD), ("hard_twins", "hard twins")):
        each = found[key]
        kinds += [
            (f"{name}, {language}", {"queries": each["queries"], **of})
            for of, language in _by_language(each)
        ]
    yield _table(
        ("query", "queries", "R@1", "R@5", "R@10"),
        [
            (name, str(of["queries"]), _with_error(of["r1"], of["queries"]), _three(of["r5"]),
             _three(of["r10"]))
            for name, of in kinds
        ],
    )  # fmt: skip


def joint_tables(found: dict[str, Any]) -> Iterator[str]:
    """What fusion and matching add."""
    twins = found["hard_twins"]
    yield _table(
        ("hard twins: each scene among nine others one change away", "R@1, vectors",
         "R@1, first 20 matched again"),
        [
            (language, _three(of["vectors_r1"]), _three(of["matching_r1"]))
            for of, language in _by_language(twins)
        ],
    )  # fmt: skip
    accuracy = found["matching_accuracy"]
    rows = [("matching is right about a pair", _three(accuracy["all"]), "")]
    for change, name in CHANGES.items():
        both = [
            _three(accuracy[f"told_apart_{change}_by_{way}"]) for way in ("matching", "vectors")
        ]
        rows.append((f"the right picture is preferred: {name}", *both))
    yield _table(
        ("of a caption's picture and one that differs by one change", "matching", "vectors"), rows
    )
    joint = found["joint"]
    yield _table(
        ("what is indexed", "R@1", "R@10"),
        [
            (
                name,
                *(f"{joint[way][r]:.3f} ({joint[way][f'{r}_error']:.3f})" for r in ("r1", "r10")),
            )
            for way, name in WAYS.items()
        ],
    )


def task_tables(found: dict[str, Any]) -> Iterator[str]:
    """What the decoder writes: all of a task, its languages and pairs, and types of questions."""
    groups = ("all", *LANGUAGES, "pairs")
    yield _table(
        ("task", "all", *LANGUAGES.values(), "both of a pair"),
        [
            (task, *(_share(of[name]) if name in of else "" for name in groups))
            for task, of in found["tasks"].items()
        ],
    )
    types = [
        name
        for name in found["tasks"]["ask"]
        if name not in groups and not name.startswith(tuple(LANGUAGES))
    ]
    yield _table(
        ("type of question", *(task for task in found["tasks"] if task.startswith("ask"))),
        [
            (
                name,
                *(
                    _share(of[name]) if name in of else ""
                    for task, of in found["tasks"].items()
                    if task.startswith("ask")
                ),
            )
            for name in types
        ],
    )


TABLES = {
    "pocket_recall.json": recall_tables,
    "pocket_joint.json": joint_tables,
    "pocket_tasks.json": task_tables,
}


def _by_language(of: dict[str, Any]) -> list[tuple[Any, str]]:
    return [(of[key], name) for key, name in LANGUAGES.items()]


def _three(value: float) -> str:
    return f"{value:.3f}"


def _share(figure: dict[str, float]) -> str:
    return f"{figure['right']:.3f} ({figure['error']:.3f})"


def _with_error(share: float, of: int) -> str:
    return f"{share:.3f} ({(share * (1 - share) / of) ** 0.5:.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown: the first column left, all others right."""
    numbers = [all(row[n][:1].isdigit() or not row[n] for row in rows) for n in range(len(head))]
    rule = "|".join("---:" if number else "---" for number in numbers)
    lines = ["|".join(f" {cell} " for cell in row) for row in (head, *rows)]
    return "\n".join(f"|{line}|" for line in (lines[0], rule, *lines[1:]))


if __name__ == "__main__":
    main()
