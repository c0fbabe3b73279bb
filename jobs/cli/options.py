"""Options that several commands share, each written once."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from chiasm.jobs.config import Settings
from chiasm.jobs.console import lines_of, printable
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.resizing import use_pillow
from chiasm.pipeline.shards import list_shards

Collection = Annotated[str, typer.Argument(metavar="COLLECTION", help="Its folder or URL.")]
Shards = Annotated[list[str], typer.Argument(metavar="SHARDS...", help="WebDataset tars.")]
Preset = Annotated[str, typer.Option(help="laptop, one_gpu, cluster, or a YAML file of settings.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, as in batch.size=32."),
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray: host:port or auto. (default: start one here)")
]
CaptionField = Annotated[
    str | None, typer.Option(help="Take captions from this json field, before txt.")
]
AllowQuery = Annotated[
    bool,
    typer.Option(
        "--allow-query",
        help="Take URLs with any query. Ledgers keep them, so none may be a secret.",
    ),
]
ENCODER_HELP = (
    "Where the weights are that made the collection, as in pocket:DIR. (default: where its "
    "encoder's name says)"
)
StoredEncoder = Annotated[str | None, typer.Option(metavar="NAME", help=ENCODER_HELP)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
MATCHER_HELP = (
    "A model that matches: pocket, pocket:DIR, two-tower:DIR, joint:DIR, or hf:ID_OR_DIR of a BLIP "
    "or BLIP-2 for retrieval."
)
# How a model runs, and how pictures are prepared for it.
ENCODING = ("encoder.precision", "encoder.device", "encoder.threads", "decode.exact")


def prepare_pictures(settings: Settings) -> None:
    """Decode and resize pictures as `decode.exact` says, until the command and its process end."""
    use_pillow(settings.decode.exact)


def folder_path(text: str) -> Path:
    """The path of a folder; UsageError for none, which would be the current folder, and for a URL,
    which would be a folder named `s3:`."""
    if not text:
        raise UsageError(repr(text), expected="a folder's path", found="an empty one")
    if "://" in text:
        scheme = text.partition("://")[0]
        raise UsageError(f"{scheme}://***", expected="a folder of this machine", found="a URL")
    return Path(text)


def list_command_shards(specs: list[str], allow_query: bool) -> list[Shard]:
    """The shards of the command line, `-` read from stdin; UsageError where there is none."""
    lines = None
    if "-" in specs and sys.stdin is not None:
        # A path may have any bytes.
        lines = chain.from_iterable(lines_of(sys.stdin.fileno(), "surrogateescape"))
    shards = list_shards(specs, lines, allow_query=allow_query)
    if not shards:
        raise UsageError("SHARDS", expected="at least one shard", found="an empty list on stdin")
    return shards


def print_progress(line: str) -> None:
    """One line of progress, on stderr."""
    print(printable(line), file=sys.stderr, flush=True)
