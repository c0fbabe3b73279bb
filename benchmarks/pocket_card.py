"""The tables of pipeline/pocket/README.md, from the results of its benchmarks.

    python -m benchmarks.pocket_card

Reads pocket_recall.json, pocket_joint.json, explain.json and, for weights with a decoder,
pocket_tasks.json and pocket_imagine.json of benchmarks/results, and prints their tables, which a
test looks for in the card. Every figure has its standard error; of shares whose results have none
it is sqrt(p (1 - p) / queries), of other means that of the seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.machine import RESULTS
from chiasm.pipeline.training.paired import format_share

LANGUAGES = {"en": "English", "zh": "Chinese"}
DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
CHANGES = {"value": "another value", "swap": "things swapped", "fewer": "one thing fewer"}
WAYS = {
    "image": "picture",
    "text": "caption",
    "mean": "best weighted mean",
    "fusion": "joint vector",
}
RECALLS = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}
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
        ("direction", "captions", *RECALLS.values()),
        [
            (way, language, *_recalls(of, queries))
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
        ("query", "queries", *RECALLS.values()),
        [(name, str(of["queries"]), *_recalls(of, of["queries"])) for name, of in kinds],
    )


def joint_tables(found: dict[str, Any]) -> Iterator[str]:
    """What fusion and matching add."""
    yield _table(
        ("hard twins: R@1 among nine others one change away", "vectors", "first 20 matched again"),
        [
            (language, _named(of, "vectors_r1"), _named(of, "matching_r1"))
            for of, language in _by_language(found["hard_twins"])
        ],
    )
    accuracy = found["matching_accuracy"]
    rows: list[Sequence[str]] = [
        (f"right about {pairs}", _named(accuracy, key), "")
        for key, pairs in (
            ("all", "a pair"),
            ("right_pairs", "pairs that match"),
            ("wrong_pairs", "others"),
        )
    ]
    for change, name in CHANGES.items():
        both = (
            _named(accuracy, f"told_apart_{change}_by_{way}") for way in ("matching", "vectors")
        )
        rows.append((f"the right picture is preferred: {name}", *both))
    head = "a caption with its picture and with one that differs by one change"
    yield _table((head, "matching", "vectors"), rows)
    joint = found["joint"]
    yield _table(
        ("what is indexed", "R@1", "R@10"),
        [(name, *(_named(joint[way], r) for r in ("r1", "r10"))) for way, name in WAYS.items()],
    )


def task_tables(found: dict[str, Any]) -> Iterator[str]:
    """What the decoder writes: all of a task, its languages and pairs, and types of questions."""
    tasks = found["tasks"]
    groups = ("all", *LANGUAGES, "pairs")
    yield _table(
        ("task", "all", *LANGUAGES.values(), "both of a pair"),
        [(task, *(_share(of, name) for name in groups)) for task, of in tasks.items()],
    )
    question_tasks = [task for task in tasks if task.startswith("ask")]
    types = [name for name in tasks["ask"] if name.split()[0] not in groups]
    yield _table(
        ("type of question", *question_tasks),
        [(name, *(_share(tasks[task], name) for task in question_tasks)) for name in types],
    )


def explain_tables(found: dict[str, Any]) -> Iterator[str]:
    """What explanations point at."""
    mean, count = found["mean"], found["samples"] * len(found["seeds"])
    pointed = (
        ("the hottest patch lies on the thing named, of three", mean["located"]["grad-eclip"]),
        ("the changed word has the lowest relevance", mean["word"]["default"]),
        ("the same, captions that say less", mean["word, partial captions"]["default"]),
    )
    yield _table(
        (f"{count} pictures and texts", "all", *LANGUAGES.values()),
        [
            (
                claim,
                *(
                    format_share(of[group][0], _error_of_share(of[group][0], number))
                    for group, number in (
                        ("all", count),
                        *dict.fromkeys(LANGUAGES, count // 2).items(),
                    )
                ),
            )
            for claim, of in pointed
        ],
    )
    yield _table(
        (
            "mean probability of a match while patches are painted over",
            "hottest first",
            "random order",
        ),
        [
            (
                f"by the {filling}",
                *(_of_seeds(found, filling, order) for order in ("grad-eclip", "random")),
            )
            for filling in mean["deleted"]
        ],
    )


def _of_seeds(found: dict[str, Any], filling: str, order: str) -> str:
    values = [seed["deleted"][filling][order] for seed in found["seeds"].values()]
    return format_share(statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5)


def imagine_tables(found: dict[str, Any]) -> Iterator[str]:
    """What the decoder draws, beside true pictures and those through the codes that it draws by."""
    errors = found["standard_errors"]
    ways = {"": "drawn pictures", "coded_": "true pictures by codes", "true_": "true pictures"}
    yield _table(
        (f"{found['captions']} captions", *ways.values()),
        [
            (claim, *(format_share(found[way + name], errors[way + name]) for way in ways))
            for name, claim in (
                ("r1", "a true caption is found first, among 100, by another model"),
                ("agrees", "background, colours and places of the pixels agree with the caption"),
            )
        ],
    )


TABLES = {
    "pocket_recall.json": recall_tables,
    "pocket_joint.json": joint_tables,
    "explain.json": explain_tables,
    "pocket_tasks.json": task_tables,
    "pocket_imagine.json": imagine_tables,
}


def _by_language(of: dict[str, Any]) -> list[tuple[Any, str]]:
    return [(of[key], name) for key, name in LANGUAGES.items()]


def _recalls(of: dict[str, float], queries: int) -> list[str]:
    return [format_share(of[name], _error_of_share(of[name], queries)) for name in RECALLS]


def _error_of_share(share: float, count: int) -> float:
    return (share * (1 - share) / count) ** 0.5


def _named(of: dict[str, float], name: str) -> str:
    return format_share(of[name], of[f"{name}_error"])


def _share(groups: dict[str, dict[str, float]], name: str) -> str:
    return format_share(groups[name]["right"], groups[name]["error"]) if name in groups else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; columns of figures are aligned to the right."""
    numbers = [all(row[n][:1].isdigit() or not row[n] for row in rows) for n in range(len(head))]
    rule = "|".join("---:" if number else "---" for number in numbers)
    lines = ["|".join(f" {cell} " for cell in row) for row in (head, *rows)]
    return "\n".join(f"|{line}|" for line in (lines[0], rule, *lines[1:]))


if __name__ == "__main__":
    main()
