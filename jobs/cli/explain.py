"""`chiasm explain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chiasm.index.output_files import file_to_write
from chiasm.index.query import decoded_picture
from chiasm.index.sheet import sheet_format, write_explanation
from chiasm.jobs.cli.options import ENCODING, Assignments, Device, Preset, print_progress
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.encoders import (
    DEFAULT,
    Explanation,
    load_encoder,
    require_explainer,
    require_method,
)
from chiasm.pipeline.errors import UsageError

HELP = """
  chiasm explain boat.png "a red boat at sea" -o why.png
  chiasm explain boat.png "a green boat at sea" --json

Why a picture and a text have the score that they have: heat over the patches that the cosine of the
two vectors rests on, and shades under the words, warm where they speak for the pair, cold where
they speak against it. Of a model that matches, words are explained by the log odds of a match: what
they lose without the word."""
MOST_WORDS = 3  # named on the line of each side


def explain(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture's file or URL.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="In quotes.")],
    to: Annotated[
        str | None,
        typer.Option("-o", metavar="FILE", help="Draw it: .png, .jpg, .jpeg or .webp."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="pocket, pocket:DIR, two-tower:DIR, or a CLIP or SigLIP by hf:.")
    ] = "pocket",
    method: Annotated[
        str, typer.Option(help="default, or another one that the encoder has.")
    ] = DEFAULT,
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    settings = compose(preset, assignments or (), {"encoder.device": device}, uses=ENCODING)
    if to is not None:
        sheet_format(to)
        file_to_write(to, others={"IMAGE": image})
    model = require_explainer(load_encoder(encoder, settings.encoder))
    require_method(model, method)
    (explanation,) = model.explain([decoded_picture(image, model)], [text], method)
    if explanation.read < len(text):
        raise UsageError(
            f'"{text[:40]}..."',
            expected=f"at most as many tokens as {model.name} reads",
            found=f'a text of which it would not read "{text[explanation.read :].strip()}"',
            do="shorten it",
        )
    if to is not None:
        write_explanation(image, text, explanation, to)
        print_progress(f"drew {to}")
    found = {"image": image, "text": text, "encoder": model.name, **_as_json(explanation)}
    if as_json:
        print(json_line(found))
    else:
        print(printable(_line(explanation)))


def _as_json(explanation: Explanation) -> dict[str, Any]:
    names = ("box", "read", "score", "logit", "patches_by", "words_by")
    words = [
        {"start": word.start, "end": word.end, "text": word.text, "relevance": word.relevance}
        for word in explanation.words
    ]
    near = explanation.word_patches
    return {
        **{name: getattr(explanation, name) for name in names},
        "patches": explanation.patches.tolist(),
        "words": words,
        **({} if near is None else {"word_patches": near.tolist()}),
    }


def _line(explanation: Explanation) -> str:
    """The scores, then the strongest words on either side."""
    ordered = sorted(explanation.words, key=lambda word: word.relevance)
    against = [word.text for word in ordered[:MOST_WORDS] if word.relevance < 0]
    speak = [word.text for word in ordered[: -MOST_WORDS - 1 : -1] if word.relevance > 0]
    score = f"cosine {explanation.score:.3f}"
    if explanation.logit is not None:
        score += f"  log odds {explanation.logit:.2f}"
    return f"{score}  for: {', '.join(speak) or '-'}  against: {', '.join(against) or '-'}"
