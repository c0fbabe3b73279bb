"""Examples of what a decoder is trained to do with a scene: texts in, texts out, by task.

The truth of an example comes from the scene's facts; its words come from `words.py`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, Scene, World


@dataclass(frozen=True, slots=True)
class Example:
    """One thing for the decoder to do with a scene.

    task: caption, ask, translate, sentiment or imagine. language: of the target, en or zh; of the
    source where the target is a picture. source: the text that the text tower reads, empty for
    captions. target: the text that is wanted, empty for pictures. kind: what sort, for reports
    (type of question, ambiguous word ...). form: number of the wording, None where wordings are not
    distinguished.
    """

    task: str
    language: str
    source: str
    target: str
    kind: str = ""
    form: int | None = None


def caption_example(
    scene: Scene, rng: random.Random, language: str, world: World = WORLD_1
) -> Example:
    """A complete caption of the scene to write, in the world's words of `language`."""
    text = render_caption(plan(scene, rng), rng, language, world)
    return Example("caption", language, "", text)


def imagine_example(
    scene: Scene, rng: random.Random, language: str, world: World = WORLD_1
) -> Example:
    """The scene to draw from a complete caption in the world's words of `language`."""
    text = render_caption(plan(scene, rng), rng, language, world)
    return Example("imagine", language, text, "")
