"""The decoder's figures in the report of a training, each with its standard error.

By task: of all examples, of each language, of each type, of each type in each language; and of
pairs, by language and by type: one text with two pictures that differ in one fact, both of which
have to be right, so that no rule that reads the text alone is ever right. Captions have no such
pairs.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.scenes.question_facts import TYPES
from chiasm.pipeline.scenes.questions import paired_questions
from chiasm.pipeline.scenes.sentiment import sentiment_pair
from chiasm.pipeline.scenes.translation import SOURCE_LANGUAGES, ambiguous_pair
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.vocabulary import LANGUAGES, homonyms
from chiasm.pipeline.scenes.world import Scene, World
from chiasm.pipeline.training.paired import format_share, share
from chiasm.pipeline.training.pocket.data import WORLDS
from chiasm.pipeline.training.pocket.evaluate_tasks import (
    Examples,
    draw_examples,
    encode_examples,
    groups_of,
    right_ones,
    write_texts,
)
from chiasm.pipeline.training.pocket.task_data import TaskSettings

# Examples of a scene: a type of question has a tenth of them, and needs some hundreds for a
# standard error of a point.
EACH = 4
Pair = tuple[tuple[Scene, Example], tuple[Scene, Example]]
Figure = dict[str, float]


def task_figures(
    model: JointNetwork, tokenizer: Tokenizer, settings: TaskSettings, samples: int, seed: int
) -> dict[str, dict[str, Figure]]:
    """Task -> group -> {"right": share, "error": its standard error, "of": examples, or pairs},
    on so many scenes of a gallery, and of as many pairs. Groups as in `groups_of`, and of pairs as
    in `figures_of`. No scene shows a withheld combination."""
    world = WORLDS[settings.scenes.world]
    found: dict[str, dict[str, Figure]] = {}
    for of in draw_examples(settings, samples, seed, EACH):
        found[of.task] = figures_of(model, tokenizer, settings, of)
        pairs = list(draw_pairs(of.task, samples, seed, world))
        if pairs:
            sides = [side for pair in pairs for side in pair]
            examples = list(enumerate(example for _, example in sides))
            paired = Examples(of.task, [scene for scene, _ in sides], examples)
            found[of.task] |= _of_pairs(paired, _right(model, tokenizer, settings, paired))
    return found


def figures_of(
    model: JointNetwork,
    tokenizer: Tokenizer,
    settings: TaskSettings,
    of: Examples,
    *,
    paired: bool = False,
) -> dict[str, Figure]:
    """Group -> figure of examples of one task, see `groups_of`. paired: examples 2 i and 2 i + 1
    are a pair; then also of pairs, both of which are right: `pairs`, `<language> pairs`, and
    `<type> pairs` where both are of one type."""
    right = _right(model, tokenizer, settings, of)
    groups = [groups_of(example) for _, example in of.examples]
    found = _figures(groups, right, [row for row, _ in of.examples])
    return found | _of_pairs(of, right) if paired else found


def draw_pairs(task: str, samples: int, seed: int, world: World) -> Iterator[Pair]:
    """So many pairs of a task, in either language and of each type in turn; none of a task that has
    none."""
    draw = PAIRS.get(task)
    for number in range(samples if draw else 0):
        assert draw is not None
        pair = draw(random.Random(f"pairs {task} {seed} {number}"), number, world)
        if pair is not None:
            yield pair


def _questions(rng: random.Random, number: int, world: World) -> Pair:
    language, kind = LANGUAGES[number % 2], list(TYPES)[number // 2 % len(TYPES)]
    one, other, first, second = paired_questions(
        rng, kind, language, "trained", allowed=lambda scene: not withheld_in(scene), world=world
    )
    return (one, first), (other, second)


def _translations(rng: random.Random, number: int, world: World) -> Pair | None:
    """None in a world that has no ambiguous words in the source's language."""
    language = LANGUAGES[number % 2]
    if not homonyms(SOURCE_LANGUAGES[language], world):
        return None
    pair = ambiguous_pair(rng, language, world)
    first, second = (
        (scene, Example("translate", language, pair.source, target, "ambiguous"))
        for scene, target in zip(pair.scenes, pair.targets, strict=True)
    )
    return first, second


def _sentiments(rng: random.Random, number: int, world: World) -> Pair:
    language = LANGUAGES[number % 2]
    first, second = (
        (scene, Example("sentiment", language, text, label, label))
        for scene, text, label in sentiment_pair(rng, language, world)
    )
    return first, second


PAIRS: Mapping[str, Callable[[random.Random, int, World], Pair | None]] = {
    "ask": _questions,
    "translate": _translations,
    "sentiment": _sentiments,
}


def format_tasks(figures: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    """The figures of `task_figures` in lines for a person: a line a task, then one a type, with its
    pairs."""
    lines = ["right of what the decoder writes, and of both of a pair, with standard errors:"]
    for task, groups in figures.items():
        named = [name for name in ("all", *LANGUAGES, "pairs") if name in groups]
        lines.append(f"  {task:<10}" + "".join(f"  {n} {_share(groups[n])}" for n in named))
        for name in groups:
            if name.split()[0] in (*named, *LANGUAGES) or name.endswith(" pairs"):
                continue
            pairs = f"{name} pairs"
            both = f"  pairs {_share(groups[pairs])}" if pairs in groups else ""
            lines.append(f"    {name:<16}{_share(groups[name])}{both}")
    return lines


def _share(figure: Figure) -> str:
    return format_share(figure["right"], figure["error"])


def _right(
    model: JointNetwork, tokenizer: Tokenizer, settings: TaskSettings, of: Examples
) -> np.ndarray:
    """(R,) bool, of each example."""
    texts = write_texts(model, tokenizer, encode_examples(model, tokenizer, settings, of))
    return np.array(right_ones(texts, of, WORLDS[settings.scenes.world]), dtype=bool)


def _of_pairs(of: Examples, right: np.ndarray) -> dict[str, Figure]:
    """Figures of the pairs of neighbours, see `figures_of`; right (R,) bool."""
    examples = [example for _, example in of.examples]
    groups = [
        ["pairs", f"{one.language} pairs"] + [f"{one.kind} pairs"] * (one.kind == other.kind)
        for one, other in zip(examples[0::2], examples[1::2], strict=True)
    ]
    return _figures(groups, right[0::2] & right[1::2], range(len(groups)))


def _figures(
    groups: Sequence[Sequence[str]], right: np.ndarray, scenes: Sequence[int]
) -> dict[str, Figure]:
    """groups of each example, whether it is right, and its scene's number -> a figure a group.
    Examples of one scene are not independent, scenes are: the error is that of the sum over
    scenes."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, names in enumerate(groups):
        for name in names:
            rows[name].append(row)
    found: dict[str, Any] = {}
    for name, some in sorted(rows.items()):
        mean, error = share(right[some], np.asarray(scenes)[some])
        found[name] = {"right": mean, "error": error, "of": len(some)}
    return found
