"""What the decoder of a model does on scenes of fresh seeds, and how fast.

    python -m benchmarks.pocket_tasks --model pocket:DIR

By seed: questions, captions, translations and sentiment, by language and type, and both of a pair
of pictures with one text (pipeline/training/pocket/task_report.py); questions about combinations
that training never showed; questions and remarks in wordings that it never showed; what the best
rule does that sees the text or the picture alone. Errors are of sums over scenes. Then the time of
one question about one picture, and of 64 captions of 24 tokens at most, after loading, medians of
rounds. Prints JSON and writes benchmarks/results/pocket_tasks.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.encoders import GenerateSettings, Request, load_answerer
from chiasm.pipeline.model.checkpoint import SHIPPED, load_model
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.scenes.question_facts import TYPES
from chiasm.pipeline.scenes.questions import paired_questions
from chiasm.pipeline.scenes.sentiment import one_sided_accuracy, sentiment, sentiment_pair
from chiasm.pipeline.scenes.unseen import unseen_gallery, withheld_in
from chiasm.pipeline.scenes.vocabulary import LANGUAGES
from chiasm.pipeline.scenes.world import Scene, World, gallery
from chiasm.pipeline.training.pocket.data import WORLDS
from chiasm.pipeline.training.pocket.evaluate_tasks import Examples
from chiasm.pipeline.training.pocket.settings import TrainSettings, measured_tasks
from chiasm.pipeline.training.pocket.task_data import TaskSettings, examples_of
from chiasm.pipeline.training.pocket.task_report import EACH, figures_of, task_figures

RESULT = Path(__file__).parent / "results" / "pocket_tasks.json"
CAPTIONS, CAPTION_TOKENS = 64, 24
ROUNDS = 9

Figures = dict[str, dict[str, float]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--seed", type=int, nargs="+", default=[9701, 9702, 9703])
    parser.add_argument("--samples", type=int, default=500, help="scenes of a seed, and pairs")
    parser.add_argument("--precision", default="auto", help="of the timed answers")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    folder = Path(given.model.removeprefix("pocket").removeprefix(":") or SHIPPED)
    model, tokenizer = load_model(folder)
    config, recipe = model.config, TrainSettings()
    data = replace(recipe.data, side=config.image.side, context=config.text.context)
    settings = measured_tasks(replace(recipe, model=config, data=data))
    found = {
        "model": given.model,
        "fingerprint": load_answerer(given.model, EncoderSettings(device="cpu")).fingerprint,
        "seeds": given.seed,
        "samples": given.samples,
        "tasks": over_seeds(
            given.seed, lambda seed: measured(model, tokenizer, settings, given.samples, seed)
        ),
        "one_sided": one_sided(given.seed[0], WORLDS[settings.scenes.world]),
        "milliseconds": milliseconds(given.model, given.precision),
        "machine": machine(),
    }
    tell_and_keep(found, given.to)


def measured(
    model: JointNetwork, tokenizer: Tokenizer, settings: TaskSettings, samples: int, seed: int
) -> dict[str, Figures]:
    """The figures of one seed, by task and group."""
    world = WORLDS[settings.scenes.world]
    found = task_figures(model, tokenizer, settings, samples, seed)
    for name, draw in UNSEEN.items():
        examples, paired = draw(samples, seed, world), draw is not unseen_combinations
        found[name] = figures_of(model, tokenizer, settings, examples, paired=paired)
    return found


def unseen_combinations(samples: int, seed: int, world: World) -> Examples:
    """EACH questions about each of so many scenes that show a withheld combination."""
    scenes = [scene for scene in unseen_gallery(4 * samples, seed, world)[0] if withheld_in(scene)]
    scenes = scenes[:samples]
    seeds = [f"unseen {seed} {row}" for row in range(len(scenes))]
    return Examples("ask", scenes, examples_of(scenes, "ask", [EACH] * len(scenes), seeds, world))


def unseen_forms(samples: int, seed: int, world: World) -> Examples:
    """Questions of each type and language in turn, in withheld forms, each of a pair of pictures,
    one after the other; types that have no such form in a language are left out."""
    scenes: list[Scene] = []
    examples: list[tuple[int, Example]] = []
    for number in range(samples):
        language, kind = LANGUAGES[number % 2], list(TYPES)[number // 2 % len(TYPES)]
        rng = random.Random(f"unseen forms {seed} {number}")
        try:
            one, other, first, second = paired_questions(
                rng, kind, language, "withheld", world=world,
                allowed=lambda scene: not withheld_in(scene),
            )  # fmt: skip
        except ValueError:
            continue
        examples += [(len(scenes), first), (len(scenes) + 1, second)]
        scenes += [one, other]
    return Examples("ask", scenes, examples)


def unseen_remarks(samples: int, seed: int, world: World) -> Examples:
    """Remarks in withheld templates, in each language in turn, each with a pair of pictures, one
    after the other."""
    sides: list[tuple[Scene, Example]] = []
    for number in range(samples):
        language = LANGUAGES[number % 2]
        rng = random.Random(f"unseen remarks {seed} {number}")
        for scene, text, name in sentiment_pair(rng, language, world, withheld=True):
            sides.append((scene, Example("sentiment", language, text, name, name)))
    scenes, examples = zip(*sides, strict=True)
    return Examples("sentiment", scenes, list(enumerate(examples)))


UNSEEN = {
    "ask, combinations never shown": unseen_combinations,
    "ask, forms never asked": unseen_forms,
    "sentiment, remarks never shown": unseen_remarks,
}


def over_seeds(
    seeds: Sequence[int], measure: Callable[[int], dict[str, Figures]]
) -> dict[str, Figures]:
    """Figures of all seeds together: of each group the share of all its examples, and the standard
    error of independent galleries."""
    parts = [measure(seed) for seed in seeds]
    found: dict[str, Figures] = {}
    for task in parts[0]:
        for group in parts[0][task]:
            some = [part[task][group] for part in parts if group in part.get(task, {})]
            counts = np.array([figure["of"] for figure in some], dtype=float)
            weights = counts / counts.sum()
            errors = np.array([figure["error"] for figure in some])
            found.setdefault(task, {})[group] = {
                "right": round(float(weights @ [figure["right"] for figure in some]), 4),
                "error": round(float(np.sqrt(np.square(weights * errors).sum())), 4),
                "of": int(counts.sum()),
            }
    return found


def one_sided(seed: int, world: World) -> dict[str, dict[str, float]]:
    """What the best rule does that sees one side of sentiment alone, by language."""
    found = {}
    for language in LANGUAGES:
        rng = random.Random(f"one-sided {seed} {language}")
        drawn = [sentiment(rng, language, world) for _ in range(4000)]
        found[language] = one_sided_accuracy(drawn, language)
    return found


def milliseconds(model: str, precision: str) -> dict[str, float]:
    """One question about one picture, and CAPTIONS captions: median wall time from pixels on."""
    answerer = load_answerer(model, EncoderSettings(precision=precision, device="cpu"))
    pixels = [np.asarray(picture(scene)) for scene in gallery(CAPTIONS, 1)]

    def ask() -> None:
        item = answerer.preprocess("image", pixels[0])
        answerer.answer([Request("ask", "en", item, "what colour is the boat?")], question_settings)

    def caption() -> None:
        items = [answerer.preprocess("image", each) for each in pixels]
        answerer.answer([Request("caption", "en", item) for item in items], caption_settings)

    question_settings = GenerateSettings()
    caption_settings = GenerateSettings(max_tokens=CAPTION_TOKENS)
    return {
        f"{precision}, one question": _median(ask),
        f"{precision}, {CAPTIONS} captions of {CAPTION_TOKENS} tokens": _median(caption),
    }


def _median(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 1)


if __name__ == "__main__":
    main()
