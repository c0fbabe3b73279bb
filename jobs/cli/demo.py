"""`chiasm demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chiasm.jobs.cli.options import folder_path, print_progress
from chiasm.jobs.console import json_line, printable, showing
from chiasm.jobs.demo import PER_SEARCH, Demo, run_demo

HELP = """
  chiasm demo
  chiasm demo --seed 5 --samples 2000

Nothing is downloaded: the pictures are drawn from a seed, and the encoder ships with chiasm. Run
again, the same demo reuses what is there."""
NEXT = (
    "  chiasm embed 'YOUR_SHARDS/*.tar' --to mine.chiasm "
    "--encoder hf:google/siglip2-base-patch16-224",
    "  chiasm index build mine.chiasm",
    '  chiasm search mine.chiasm "whatever you look for" --sheet hits.png',
)


def demo(
    seed: Annotated[int, typer.Option(help="Seed of the scenes; any whole number.")] = 7,
    samples: Annotated[int, typer.Option(help="How many scenes.")] = 1000,
    to: Annotated[
        Path | None,
        typer.Option(
            parser=folder_path,
            metavar="PATH",
            help="A folder for it. (default: demo/seed-SEED-SAMPLES)",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    folder = to or Path("demo") / f"seed-{seed}-{samples}"
    console = Console(stderr=True)
    with showing(console) as show:
        found = run_demo(seed, samples, folder, report=print_progress, show=show)
    if as_json:
        print(json_line(found.as_json()))
    else:
        print_demo(found)


def print_demo(found: Demo) -> None:
    """Searches and hits, figures, questions and answers, and what to type next."""
    for answer, right in found.questions:
        print("\n" + printable(answer.query))
        for result, true in zip(answer, right, strict=True):
            verdict = "true " if true else "false"
            print(printable(f"  {result.score:6.3f}  {verdict}  {result.caption}"))
    about = "each with three or more that differ in one attribute"
    print("\n" + printable(f"recall on {found.rows:,} scenes, {about}:"))
    for direction, languages in found.recall.items():
        for language, recall in languages.items():
            shares = "  ".join(f"R@{name[1:]} {share:.3f}" for name, share in recall.items())
            print(printable(f"  {direction.replace('_', ' ')}, {language}: {shares}"))
    right = sum(item.right for item in found.answered)
    print("\n" + printable(f"asked about these pictures, {right} of {len(found.answered)} right:"))
    for item in found.answered[::PER_SEARCH]:
        verdict = "right" if item.right else f"wrong, {item.wanted}"
        print(printable(f"  {item.caption}"))
        print(printable(f"    {item.question}  {item.answer}  ({verdict})"))
    stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in found.seconds.items())
    print("\n" + printable(stages))
    print(printable(f"the hits as a picture: {found.sheet}"))
    print("\nnext:")
    print(printable(f'  chiasm search {found.collection} "a red boat" --sheet boat.png'))
    print(printable(f'  chiasm ask {found.collection} "is there a red boat?"'))
    for line in NEXT:
        print(printable(line))
