"""`chiasm embed`."""

from __future__ import annotations

import contextlib
import sys
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console

from chiasm.jobs.cli.options import (
    Address,
    AllowQuery,
    Assignments,
    CaptionField,
    Device,
    Preset,
    Shards,
    list_command_shards,
    print_progress,
)
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, printable, showing
from chiasm.jobs.embed_shards import USES, EmbedRequest, embed_shards
from chiasm.pipeline.embed_summary import EmbedSummary, summary_error
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage import display_name

HELP = """
  chiasm embed 'photos/*.tar' --to photos.chiasm
  chiasm embed 'laion/{00000..00099}.tar' --to laion --encoder hf:google/siglip2-base-patch16-224

SHARDS are paths, folders, globs, brace ranges, or - for a list on stdin. More shards can be added
to a collection; its encoder is then taken from it.

Kill it and run it again: what is done is skipped."""
NO_FAISS = (
    "faiss is not installed, which chiasm index build will need: pip install 'chiasm[cpu]', "
    "or 'chiasm[gpu]' on a machine with CUDA"
)
MOST_LISTED = 20  # dropped samples printed one by one

EncoderName = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="pocket, hf:ID_OR_DIR, st:ID_OR_DIR, oc:NAME_OR_DIR, two-tower:DIR or joint:DIR. "
        "(default: the collection's; pocket for a new one)",
    ),
]
QueryPrompt = Annotated[
    str | None, typer.Option(help="st: models: the prompt of queries, by its name or a text.")
]
DocumentPrompt = Annotated[
    str | None, typer.Option(help="st: models: the prompt of what is embedded, likewise.")
]
Dims = Annotated[
    int | None, typer.Option(min=1, help="Cut vectors to so many numbers (Matryoshka models).")
]
Reembed = Annotated[
    bool,
    typer.Option(
        "--reembed", help="Embed shards again that were read, or encoded, in an earlier way."
    ),
]
JointWeights = Annotated[
    str | None,
    typer.Option(
        metavar="WEIGHTS",
        help="Of the modalities in the mean that is a joint vector, as in image=2,text=1.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Embed the first N samples only.")]
MaxLoss = Annotated[
    float | None, typer.Option(help="Share of samples that may be dropped. (default: 0.01)")
]


def embed(
    shards: Shards,
    to: Annotated[str, typer.Option(help="The collection's folder.")],
    encoder: EncoderName = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    dims: Dims = None,
    joint_weights: JointWeights = None,
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    address: Address = None,
    caption_field: CaptionField = None,
    limit: Limit = None,
    max_loss: MaxLoss = None,
    reembed: Reembed = False,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Shards that are cut or damaged are no failure.")
    ] = False,
    allow_query: AllowQuery = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    flags = {"encoder.name": one_encoder(encoder), "encoder.device": device, "encoder.dims": dims}
    flags |= {"encoder.query_prompt": query_prompt, "encoder.document_prompt": document_prompt}
    flags |= {"encoder.joint_weights": joint_weights}
    flags |= {"read.caption_field": caption_field, "max_loss": max_loss}
    request = EmbedRequest(
        shards=list_command_shards(shards, allow_query),
        to=to,
        settings=compose(preset, assignments or (), flags, uses=USES),
        address=address,
        limit=limit,
        reembed=reembed,
        allow_damaged=allow_damaged,
    )
    if find_spec("faiss") is None:
        print_progress(NO_FAISS)
    # What Ray prints of its processes is no result, though it goes to stdout.
    with contextlib.redirect_stdout(sys.stderr), showing(Console(stderr=True)) as show:
        summary = embed_shards(request, show, report=print_progress)
    if as_json:
        print(json_line(summary.as_json()))
    else:
        print_summary(summary, to)
    print_odd(summary)
    if (error := summary_error(summary)) is not None:
        print_failures(summary)
        raise error


def one_encoder(names: list[str] | None) -> str | None:
    """The name of --encoder, None for none; UsageError for several."""
    first, *more = names or [None]
    if more:
        raise UsageError(
            "--encoder",
            expected="one encoder, since vectors of two are of different spaces and are not joined",
            found=f"{1 + len(more)}",
            do="embed into a collection for each",
        )
    return first


def print_odd(summary: EmbedSummary) -> None:
    """Shards that are damaged, and what most rows lack."""
    for damaged in summary.damaged:
        where = display_name(damaged["shard"])
        print(printable(f"damaged {where}: {damaged['reason']}"), file=sys.stderr)
    for hint in summary.hints:
        print(printable(f"chiasm: {hint}"), file=sys.stderr)


def print_failures(summary: EmbedSummary) -> None:
    """Shards that were quarantined and, where they are too many, samples that were dropped."""
    for failure in summary.failed:
        where = display_name(failure["shard"])
        reason = failure["reason"].removeprefix(f"{where}: ")
        print(printable(f"quarantined {where}: {reason}"), file=sys.stderr)
    if summary.loss > summary.max_loss:
        for url, dropped in summary.dropped_samples[:MOST_LISTED]:
            reason = f"{dropped.reason} {dropped.detail}".strip()
            print(
                printable(f"dropped {display_name(url)} {dropped.key}: {reason}"), file=sys.stderr
            )
        left = summary.dropped - min(MOST_LISTED, len(summary.dropped_samples))
        if left:
            print(printable(f"and {left:,} more, in the ledger of each shard"), file=sys.stderr)


def print_summary(summary: EmbedSummary, to: str) -> None:
    """The run in a few lines, for a person."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.reasons.items())
    dropped = f"{summary.dropped:,} dropped ({reasons})" if summary.dropped else "none dropped"
    print(printable(f"{summary.rows:,} rows of {summary.samples:,} samples in {to}; {dropped}"))
    if summary.notes:
        notes = ", ".join(f"{count:,} {reason}" for reason, count in summary.notes.items())
        print(printable(f"notes: {notes}"))
    counted = f"shards: {summary.done} done, {summary.skipped} were done already"
    counted += f", {len(summary.damaged)} damaged" if summary.damaged else ""
    counted += f", {len(summary.failed)} quarantined" if summary.failed else ""
    print(printable(counted))
    stages = {stage: spent for stage, spent in summary.seconds.items() if stage != "total"}
    if stages:
        rate = f"{summary.pairs_per_second:,.1f} pairs/s"
        print(printable(f"{rate}; busy seconds by stage, all threads:"))
        for stage, spent in sorted(stages.items(), key=lambda item: -item[1]):
            print(printable(f"  {stage:<15}{spent:9.2f}"))
    print(printable(f"{summary.seconds['total']:.1f} s in all"))
