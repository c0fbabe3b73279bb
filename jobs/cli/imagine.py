"""`chiasm imagine`."""

from __future__ import annotations

import io
from itertools import count
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from chiasm.index.output_files import file_to_write
from chiasm.jobs.cli.answer_inputs import file_of, one_text, read_inputs
from chiasm.jobs.cli.answering import (
    Answering,
    AsJson,
    Model,
    Precision,
    answer_inputs,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset
from chiasm.pipeline.encoders import GenerateSettings, Reply, Sampling
from chiasm.pipeline.errors import UsageError

HELP = """
  chiasm imagine "a red boat under a moon" -o boat.png
  chiasm imagine - -o pictures/ < captions.txt

Draws what a text says, as a PNG. A model that matches samples several pictures and keeps the one
that fits the text best. With a caption a line on stdin, -o is a folder: 000001.png is the first
picture that was drawn."""

Candidates = Annotated[
    int | None,
    typer.Option(min=1, help="Pictures to draw, of which the best is kept. (default: 32)"),
]
Temperature = Annotated[
    float,
    typer.Option(min=0.0, help="Of codes drawn at random; 0: the most probable each time."),
]
Seed = Annotated[int | None, typer.Option(help="Of what is drawn at random. (default: 0)")]


def imagine(
    words: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="In quotes; - reads lines of stdin.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The picture, or their folder.")
    ],
    model: Model = "pocket",
    candidates: Candidates = None,
    temperature: Temperature = 1.0,
    seed: Seed = None,
    as_json: AsJson = False,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    options = Answering(
        model,
        as_json=as_json,
        device=device,
        precision=precision,
        preset=preset,
        assignments=assignments,
        drawing=_drawing(candidates, temperature, seed),
    )
    inputs = read_inputs("imagine", [], one_text("imagine", words))
    if inputs.several:
        file_to_write(file_of(output, 1))
    else:
        _require_png(output)
    numbers = count(1)

    def write(reply: Reply) -> str:
        return _write(reply, file_of(output, next(numbers)) if inputs.several else output)

    answer_inputs("imagine", inputs, options, write)


def _drawing(candidates: int | None, temperature: float, seed: int | None) -> GenerateSettings:
    """UsageError for options that contradict each other."""
    if temperature:
        return GenerateSettings(
            sampling=Sampling(temperature, seed=seed or 0), candidates=candidates
        )
    given = {"--seed": seed, "--candidates": candidates if candidates != 1 else None}
    useless = [f"{name} {value}" for name, value in given.items() if value is not None]
    if useless:
        raise UsageError(
            "--temperature 0",
            expected="one picture, of which nothing is drawn at random",
            found=" and ".join(useless),
            do="leave out --temperature 0, or what stands beside it",
        )
    return GenerateSettings()


def _require_png(path: str) -> None:
    """Refuses what cannot be written now, rather than after the picture is drawn."""
    if not path.lower().endswith(".png"):
        name = path.strip() or "-o"
        raise UsageError(name, expected="a name that ends in .png", do="name the picture so")
    file_to_write(path)


def _write(reply: Reply, path: str) -> str:
    """The picture in its file, whole or not at all; the file's path."""
    assert reply.image is not None
    folder, name = file_to_write(path)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(reply.image)).save(file, "PNG")
    folder.write_whole(name, file.getvalue())
    return path
