"""Scenes -> webdataset samples: a key, a PNG picture, a caption, and the facts as json.

`txt` is one complete English caption. The json is the scene's facts and the captions in both
languages: `captions` and `zh` tell the same `claims`, first the complete caption of `txt`, then
another one in other words, then a partial one.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from chiasm.pipeline.scenes.claims import Claims
from chiasm.pipeline.scenes.draw import SIDE, picture
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, Scene, World

COMPLETE = (True, True, False)  # which of a sample's captions tell everything


def samples(
    scenes: Iterable[Scene],
    seed: int,
    side: int = SIDE,
    first: int = 0,
    world: World = WORLD_1,
) -> Iterator[dict[str, Any]]:
    """One sample a scene, keys counting from `first`: {"__key__", "png" bytes, "txt", "json" dict}.

    The captions of a sample are a function of the seed and its number; pictures are side x side.
    world: whose words the captions have.
    """
    for number, scene in enumerate(scenes, first):
        rng = random.Random(f"captions {seed} {number}")
        claims = [plan(scene, rng, complete) for complete in COMPLETE]
        captions = [render_caption(claim, rng, "en", world) for claim in claims]
        facts = scene.to_json() | {
            "captions": captions,
            "zh": [render_caption(claim, rng, "zh", world) for claim in claims],
            "claims": [claim.to_json() for claim in claims],
        }
        png = to_png(picture(scene, side))
        yield {"__key__": f"{number:06d}", "png": png, "txt": captions[0], "json": facts}


def facts_of_sample(fields: dict[str, Any]) -> tuple[Scene, Claims]:
    """A sample's json, as `samples` made it -> its scene and the claims of its `txt`.

    ValueError where it is the json of something else.
    """
    scene = Scene.from_json(fields)
    try:
        return scene, Claims.from_json(fields["claims"][0])
    except (KeyError, IndexError) as error:
        raise ValueError(f"a scene without the claims of its caption: {error}") from error


def to_png(image: Image.Image) -> bytes:
    """The picture as PNG bytes, the same for the same pixels and version of Pillow."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False)
    return file.getvalue()
