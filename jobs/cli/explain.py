"""`chiasm explain`."""

from __future__ import annotations

from itertools import count
from typing import Annotated, Any

import typer

from chiasm.index.output_files import file_to_write
from chiasm.index.queries import PictureBytes
from chiasm.index.query import encoded_picture, explain_picture
from chiasm.index.sheet import sheet_format, write_explanation
from chiasm.jobs.cli.answer_inputs import Inputs, Item, file_of, one_text, read_inputs
from chiasm.jobs.cli.options import (
    ENCODING,
    Assignments,
    Device,
    Preset,
    prepare_pictures,
    print_progress,
)
from chiasm.jobs.config import compose
from chiasm.jobs.console import counted, json_line, printable_columns, shortened
from chiasm.pipeline.encoders import (
    DEFAULT,
    ExplainingEncoder,
    Explanation,
    load_encoder,
    require_explainer,
    require_method,
)
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.storage import canonical_url

HELP = """
  chiasm explain boat.png "a red boat at sea" -o why.png
  chiasm explain boat.png "a green boat at sea" --json
  chiasm explain - -o maps/ < pairs.jsonl

Shows why a picture and a text have their score: a heat map of the patches that the cosine of the
two vectors rests on, and shaded words. Warm words support the pair, cold words speak against it.
If the model matches, a word's default score is what the log odds of a match lose without it.

- for IMAGE or TEXT reads lines of stdin; without TEXT, a line is a pair: a JSON object with "image"
and "text", or the two with a tab between them. -o is then the folder of the drawings: 000001.png is
the first, and nothing is drawn before the last line was read."""
MOST_WORDS = 3  # named on the line of each side


def explain(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A picture's path or URL; - reads stdin.")
    ],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]", help="In quotes; - reads stdin.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "-o", metavar="FILE", help="Draw it: .png, .jpg, .jpeg or .webp; of many: a folder."
        ),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a pair.")] = False,
) -> None:
    settings = compose(preset, assignments or (), {"encoder.device": device}, uses=ENCODING)
    prepare_pictures(settings)
    inputs = read_inputs("explain", [image], one_text("explain", words or []))
    if to is not None and not inputs.several:
        sheet_format(to, "-o")
        file_to_write(to, others={"IMAGE": image})
    elif to is not None:
        file_to_write(file_of(to, 1))
    model = require_explainer(load_encoder(encoder, settings.encoder))
    require_method(model, method)
    if to is not None and inputs.several:
        inputs = _apart_from_drawings(inputs, to)
    _explain_all(model, inputs, method, to, as_json)


def _apart_from_drawings(inputs: Inputs, folder: str) -> Inputs:
    """The same inputs, all of them read; UsageError where a drawing would take the place of one of
    their pictures."""
    batches = list(inputs.batches)
    items = [item for batch in batches for item in batch]
    drawn = {_place(file_of(folder, number + 1)) for number in range(len(items))} - {None}
    for item in items:
        if item.image is not None and _place(item.image) in drawn:
            raise UsageError(
                f"-o {folder}",
                expected="a folder where no drawing has the name of a picture to explain",
                found=item.image,
                do="name another folder",
            )
    return Inputs(iter(batches), inputs.several)


def _place(path: str) -> str | None:
    """Where a path or URL leads; None for what is none."""
    try:
        return canonical_url(path, allow_query=True)
    except (ChiasmError, ValueError):
        return None


def _explain_all(
    model: ExplainingEncoder, inputs: Inputs, method: str, to: str | None, as_json: bool
) -> None:
    """Explain each pair, print it and draw it; one that fails ends the others only where it is the
    only one."""
    numbers, failed, total = count(1), 0, 0
    for item in (item for batch in inputs.batches for item in batch):
        total += 1
        try:
            image = _image_of(item)
            explanation = _explained(model, image, item.text or "", method)
            drawn = file_of(to, next(numbers)) if to is not None and inputs.several else to
            if drawn is not None:
                file_to_write(drawn, others={"the picture": item.image or ""})
                write_explanation(image, item.text or "", explanation, drawn)
                print_progress(f"drew {drawn}")
        except ChiasmError as error:
            if not inputs.several:
                raise
            failed += 1
            print_progress(str(error))
            if as_json:  # a line that cannot be read has neither picture nor text
                given = {"image": item.image, "text": item.text}
                print(json_line({**{k: v for k, v in given.items() if v}, "error": str(error)}))
            continue
        if as_json:
            found = {"image": item.image, "text": item.text, "encoder": model.name}
            found |= {"drawn": drawn} if inputs.several and drawn else {}
            print(json_line({**found, **_as_json(explanation)}), flush=True)
        else:
            before = item.columns if inputs.several else []
            print(printable_columns([*before, _line(explanation)]), flush=True)
    if failed:
        raise ChiasmError("explain", expected=counted(total, "pair"), found=f"{total - failed:,}")


def _image_of(item: Item) -> PictureBytes:
    """The picture, read once: what is explained and what is drawn are the same, also of a pipe."""
    if item.error is not None:
        raise item.error
    assert item.image is not None
    return PictureBytes(encoded_picture(item.image), item.image)


def _explained(
    model: ExplainingEncoder, image: PictureBytes, text: str, method: str
) -> Explanation:
    explanation = explain_picture(image, text, model, method)
    if explanation.read < len(text):
        raise UsageError(
            f'"{shortened(text, 40)}"',
            expected=f"at most as many tokens as {model.name} reads",
            found=f'more: it would not read "{shortened(text[explanation.read :].strip())}"',
            do="shorten it",
        )
    return explanation


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
