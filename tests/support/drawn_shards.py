"""Shards of drawn scenes with several captions each, and what the decoder can learn of them."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

from tars import write_tar

from chiasm.pipeline.records import Shard
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.scenes.questions import question
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import stream


def drawn_shard(
    path: Path, samples: int, seed: int = 0, captions: int = 2, tasks: bool = False
) -> Shard:
    """A tar of `samples` scenes, half of them twins of others, each with so many captions that
    leave things unsaid. tasks: json has two questions, a translation and a sentiment too."""
    members: dict[str, dict[str, bytes]] = {}
    for number, scene in enumerate(itertools.islice(stream(seed, twins=0.5), samples)):
        rng = random.Random(f"{seed} {number}")
        texts = [
            render_caption(plan(scene, rng, complete=False), rng, rng.choice(["en", "zh"]))
            for _ in range(captions)
        ]
        out = io.BytesIO()
        picture(scene).save(out, "PNG")
        fields: dict[str, Any] = {"captions": texts}
        if tasks:
            answers = [question(scene, rng, "en") for _ in range(2)]
            fields["questions"] = [
                {"question": e.source, "answer": e.target}
                for e in answers
                if isinstance(e, Example)
            ]
            fields["translations"] = [{"source": "a boat", "target": "一只小船", "to": "zh"}]
            fields["sentiment"] = {"text": "What a day!", "label": "positive"}
        members[f"{number:05d}"] = {
            "png": out.getvalue(),
            "txt": texts[0].encode(),
            "json": json.dumps(fields).encode(),
        }
    return write_tar(path, members)
