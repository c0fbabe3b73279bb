"""`chiasm match`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any, cast

import numpy as np
import typer

from chiasm.index.query import encode_each, pixels_of, query_refused, text_of
from chiasm.jobs.cli.options import (
    ENCODING,
    MATCHER_HELP,
    Assignments,
    Device,
    Preset,
    prepare_pictures,
)
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.encoders import (
    Encoder,
    EncoderSettings,
    Matcher,
    load_encoder,
    load_matcher,
    match_each,
    probe_matcher,
    require_matcher,
    split_encoder_name,
)
from chiasm.pipeline.records import IMAGE, TEXT

HELP = """
  chiasm match boat.png "a red boat at sea" "a blue boat at sea"

For each text: yes or no, the probability that it is true of the picture, by a model that reads both
together, and the cosine of their two vectors, where it makes any. --json prints the log odds
too."""


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
    prepare_pictures(settings)
    _hint_quotes(image, texts)
    matcher = _load(encoder, settings.encoder)
    pixels = [pixels_of(image, matcher)]
    words = [text_of(text, matcher) for text in texts]
    pairs = np.array([(0, number) for number in range(len(texts))])
    logits, faults = match_each(matcher, (IMAGE, pixels), (TEXT, words), pairs)
    for number, fault in sorted(faults.items()):
        probe_matcher(matcher)
        raise query_refused(f'{image} with "{texts[number]}"', matcher, fault)
    cosines = _cosines(matcher, image, pixels, texts, words)
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
            near = "" if cosine is None else f"  cosine {cosine:.3f}"
            print(printable(f"{answer}  {scores['probability']:.3f}{near}  {text}"))


def _load(name: str, settings: EncoderSettings) -> Matcher:
    """An encoder that also matches, or a matcher of `hf:` that is none. Scores of a CrossEncoder
    are no log odds, so that it has no place here."""
    if split_encoder_name(name)[0] == "hf":
        return load_matcher(name, settings)
    return require_matcher(load_encoder(name, settings))


def _cosines(
    matcher: Matcher, image: str, pixels: list[Any], texts: list[str], words: list[Any]
) -> list[float] | list[None]:
    """Of each text's vector with the picture's; None from a model that makes none."""
    if not hasattr(matcher, "encode"):
        return [None] * len(texts)
    model = cast(Encoder, matcher)
    (of_image,) = encode_each(model.encode, IMAGE, pixels, [image], model)
    of_texts = encode_each(model.encode, TEXT, words, [f'"{text}"' for text in texts], model)
    return [float(of_text.vectors[0] @ of_image.vectors[0]) for of_text in of_texts]


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
