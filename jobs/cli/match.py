"""`chiasm match`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import numpy as np
import typer

from chiasm.index.query import encode_each, pixels_of, query_refused, text_of
from chiasm.jobs.cli.options import ENCODING, MATCHER_HELP, Assignments, Device, Preset
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.encoders import load_encoder, match_each, probe_matcher, require_matcher
from chiasm.pipeline.records import IMAGE, TEXT

HELP = """
  chiasm match boat.png "a red boat at sea" "a blue boat at sea"

For each text: yes or no, the probability that it is true of the picture, by a model that reads both
together, and the cosine of their two vectors. --json prints the log odds too."""


def match(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture's file.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="In quotes.")],
    encoder: Annotated[str, typer.Option(help=MATCHER_HELP)] = "pocket",
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a text.")] = False,
) -> None:
    settings = compose(preset, assignments or (), {"encoder.device": device}, uses=ENCODING)
    _hint_quotes(image, texts)
    model = load_encoder(encoder, settings.encoder)
    matcher = require_matcher(model)
    pixels = [pixels_of(image, model)]
    words = [text_of(text, model) for text in texts]
    pairs = np.array([(0, number) for number in range(len(texts))])
    logits, faults = match_each(matcher, (IMAGE, pixels), (TEXT, words), pairs)
    for number, fault in sorted(faults.items()):
        probe_matcher(matcher)
        raise query_refused(f'{image} with "{texts[number]}"', model, fault)
    (of_image,) = encode_each(model.encode, IMAGE, pixels, [image], model)
    of_texts = encode_each(model.encode, TEXT, words, [f'"{text}"' for text in texts], model)
    cosines = [float(of_text.vectors[0] @ of_image.vectors[0]) for of_text in of_texts]
    for text, logit, cosine in zip(texts, logits.tolist(), cosines, strict=True):
        scores = {
            "image": image,
            "text": text,
            "logit": logit,
            "probability": float(np.exp(-np.logaddexp(0, -logit))),
            "match": logit > 0,
            "cosine": cosine,
        }
        if as_json:
            print(json_line(scores))
        else:
            answer = "yes" if scores["match"] else "no "
            line = f"{answer}  {scores['probability']:.3f}  cosine {cosine:.3f}  {text}"
            print(printable(line))


def _hint_quotes(image: str, texts: list[str]) -> None:
    """A hint on stderr where the texts look like one text that the shell has split. Only ASCII
    words: Chinese has no spaces."""
    if len(texts) < 2 or not all(text.isascii() and len(text.split()) == 1 for text in texts):
        return
    command = shlex.join(["chiasm", "match", image, " ".join(texts)])
    print(
        printable(f"scores {len(texts)} texts of one word; for one text use quotes: {command}"),
        file=sys.stderr,
    )
