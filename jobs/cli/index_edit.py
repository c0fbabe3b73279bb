"""`chiasm index add`, `delete`, `compact`, `rollback` and `status`: edits of the live index."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from chiasm.index.build import (
    NOTABLE,
    ByFilter,
    ById,
    ByKey,
    EditSummary,
    Selection,
    add_to_index,
    compact_index,
    delete_from_index,
    read_reports,
    roll_back_index,
    shards_named,
)
from chiasm.index.query import filter_for
from chiasm.index.segments import Drift, Generation, PastGeneration, build_command, read_history
from chiasm.jobs.cli.options import Assignments, Collection, Preset
from chiasm.jobs.cli.reports import (
    Plot,
    exact_lines,
    print_reports,
    require_plot,
    write_plot,
)
from chiasm.jobs.cli.search_options import Where, one_condition
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, lines_of, printable
from chiasm.pipeline.collection import Collection as OpenCollection
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import Folder

ADD_HELP = """
  chiasm index add photos.chiasm

Adds the rows of shards that are new or changed since the index was built or added to, and leaves
out those of shards that changed or are gone. Nothing is trained: where the new rows are unlike the
old ones, it says so, and a build is worth its time. Rows that were deleted stay so; a shard that
was embedded anew has new rows. Shards whose file cannot be read are named, and the exit code is
then 1; all others are added."""
DELETE_HELP = """
  chiasm index delete photos.chiasm --key 000017 --shard 00003-1f0c2a9b44
  chiasm index delete photos.chiasm --where "meta.license = 'none' OR width < 64"
  chiasm index delete photos.chiasm --ids-from unwanted.txt

Leaves rows out of every answer. Nothing is removed from the embeddings: chiasm index build reads
them all and brings deleted rows back; add, compact and later edits do not. chiasm forget takes
whole shards out for good. A key is unique within its shard only; without --shard it is deleted in
all of them."""
COMPACT_HELP = """
  chiasm index compact photos.chiasm

Writes segments anew of which many rows are deleted, and many small ones as one: searches get
faster, answers stay as they are. Deleted rows stay deleted."""
ROLLBACK_HELP = """
  chiasm index rollback photos.chiasm
  chiasm index rollback photos.chiasm --to 7

Makes an earlier generation live again, with what was deleted in it, under a new number. Without
--to it is the one that the last edit changed, or that was there before the last build: what was
rolled back does not count. chiasm index status shows which there are."""
STATUS_HELP = """
  chiasm index status photos.chiasm
  chiasm index status photos.chiasm --report --plot recall.png

Shows the generations of the index that are kept, and which is live; what its rows that were added
and the queries that were audited say of its recall. --report prints what was measured when it was
built: every plan that was tried, with recall, bytes and speed."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def add(
    collection: Collection,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    settings = compose(preset, assignments or (), uses=["index"]).index
    with _progress("reading embeddings") as report:
        summary = add_to_index(collection, settings=settings, progress=report)
    counts = summary.counts
    shards = [f"{counts[kind]:,} {kind}" for kind in ("new", "changed", "gone") if kind in counts]
    done = f"{counts['rows']:,} rows added, of shards: {', '.join(shards)}"
    whole = "all other shards" if summary.damaged else "all shards"
    _print(summary, done, f"the index covers {whole}", as_json)
    if not as_json:
        for line in drift_lines(summary.drift):
            print(printable(f"  {line}; {build_command(Folder(collection))} trains anew"))
        for line in exact_lines(Folder(collection), settings.exact_below):
            print(printable(f"  {line}"))
    _require_whole(summary)


def _require_whole(summary: EditSummary) -> None:
    """CollectionError where shards could not be read, after a line for each."""
    for shard_id, why in summary.damaged.items():
        print(printable(f"damaged shard {shard_id}: {why}"), file=sys.stderr)
    if summary.damaged:
        raise CollectionError(
            "index add",
            expected="shards that can be read",
            found=f"{len(summary.damaged):,} that cannot, named above; all others are covered",
            do="mend them as said there, then run chiasm index add again",
        )


def delete(
    collection: Collection,
    key: Annotated[
        list[str] | None, typer.Option(help="The key of a row; can be repeated.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="The shard of the keys: its id, path or URL, or a glob.")
    ] = None,
    ids_from: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file of ids, SHARD/ROW@EDITION, one a line; - stdin."),
    ] = None,
    where: Where = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    settings = compose(preset, assignments or (), uses=["index"]).index
    select = _selection(key, shard, ids_from, one_condition(where))
    summary = delete_from_index(collection, select, settings=settings)
    counts = summary.counts
    before = f" ({counts['deleted_before']:,} were before)" if counts["deleted_before"] else ""
    missing = f", {counts['missing']:,} not found" if counts["missing"] else ""
    done = f"{counts['deleted']:,} rows deleted in {counts['shards']:,} shards{before}{missing}"
    unchanged = f"{counts['deleted_before']:,} rows were deleted before{missing}"
    _print(summary, done, unchanged, as_json)


def compact(
    collection: Collection,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    settings = compose(preset, assignments or (), uses=["index"]).index
    with _progress("reading segments") as report:
        summary = compact_index(collection, settings=settings, progress=report)
    counts = summary.counts
    done = (
        f"{counts['read']:,} segments written as {counts['written']:,}, "
        f"{counts['removed']:,} deleted rows removed"
    )
    _print(summary, done, "no segment is worth it", as_json)


def rollback(
    collection: Collection,
    to: Annotated[int | None, typer.Option(help="The number of the generation.")] = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    settings = compose(preset, assignments or (), uses=["index"]).index
    summary = roll_back_index(collection, to, settings=settings)
    restored = summary.counts["restored"]
    done = f"it is generation {restored} again"
    _print(summary, done, f"it is generation {restored} already", as_json)


def status(
    collection: Collection,
    with_report: Annotated[
        bool, typer.Option("--report", help="Print the report of the live index, too.")
    ] = False,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    if plot is not None:
        require_plot(plot)
    folder = OpenCollection.open(collection).folder
    history = read_history(folder)
    live = next((one.number for one in history if one.live), None)
    wanted = live is not None and (with_report or plot is not None)
    reports = read_reports(folder, live) if wanted else {}
    if plot is not None:
        write_plot(plot, reports)
    if as_json:
        found: dict[str, Any] = {"generations": [_as_json(one) for one in history]}
        if with_report:
            found["reports"] = {column: asdict(report) for column, report in reports.items()}
        print(json_line(found))
        return
    _print_history(folder, history)
    if with_report:
        print_reports(reports)
        if not reports and live is not None:
            print("no report: nothing was measured when the live index was built")


def _print_history(folder: Folder, history: Sequence[PastGeneration]) -> None:
    if not history:
        print(printable(f"no index; run {build_command(folder)}"))
    for one in history:
        print(printable(format_generation(one)))
        if one.live:
            for line in drift_lines(one.drift, notable=-1.0):
                print(printable(f"  {line}"))
            for line in [*calibration_lines(one), *exact_lines(folder)]:
                print(printable(f"  {line}"))
        for recall in one.audited:
            print(printable(f"  {recall}"))
            if one.live and recall.broken:
                print(printable(f"  {build_command(folder)} tunes anew"))
        if one.audit_problem:
            print(printable(f"  {one.audit_problem}"))


def _as_json(one: PastGeneration) -> dict[str, Any]:
    return asdict(one) | {"audited": [recall.as_json() for recall in one.audited]}


def calibration_lines(one: PastGeneration) -> list[str]:
    """What is said of calibrations that were made of other rows."""
    return [
        f"{column}: false-alarm rates were calibrated on {stored.rows:,} rows, now it has "
        f"{one.rows:,}; chiasm index build makes them anew"
        for column, stored in one.calibrated.items()
        if stored.is_old(one.rows)
    ]


def format_generation(one: PastGeneration) -> str:
    """A generation in one line."""
    name = f"{'*' if one.live else ' '} {one.number:>6}"
    if one.problem:
        return f"{name}  cannot be read: {one.problem}"
    deleted = f" ({one.deleted:,} deleted)" if one.deleted else ""
    of = f" of {one.parent}" if one.parent is not None else ""
    of = f" to {one.restores}" if one.restores is not None else of
    return f"{name}  {one.command}{of}: {one.rows:,} rows{deleted}, {one.segments:,} segments"


def drift_lines(drift: Mapping[str, Drift], notable: float = NOTABLE) -> list[str]:
    """What is said of columns whose added rows are beyond the limit in a share above `notable`."""
    return [
        f"{column}: {one.share:.1%} of {one.rows:,} added rows are farther from their centroids "
        "than 99% of those that it was trained on"
        for column, one in drift.items()
        if one.rows and one.share > notable
    ]


def _selection(
    keys: list[str] | None, shard: str | None, ids_from: str | None, where: str | None
) -> Callable[[Generation], Selection]:
    """What gives the rows to delete, by the options that were given."""
    options = {"--key": keys or None, "--ids-from": ids_from, "--where": where}
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        expected, found = f"one of {', '.join(options)}", " and ".join(given) or "none of them"
        raise UsageError("index delete", expected=expected, found=found)
    if shard is not None and not keys:
        raise UsageError("--shard", expected="it beside --key", found=given[0])
    if where is not None:
        return lambda generation: ByFilter(filter_for(where, generation))
    if ids_from is not None:
        selection = ById(_lines(ids_from))
        return lambda generation: selection

    def by_key(generation: Generation) -> Selection:
        if shard is None:
            return ByKey(keys or ())
        named = shards_named(generation, shard)
        if not named:
            raise UsageError(
                f"--shard {shard}",
                expected="an id, path, URL or glob of indexed shards",
                found=f"none of {len(generation.indexed_shards()):,}",
            )
        return ByKey(keys or (), named)

    return by_key


def _lines(name: str) -> list[str]:
    """The lines of a file that are not blank; UsageError for none, or where it cannot be read."""
    try:
        if name == "-":
            lines = list(chain.from_iterable(lines_of(sys.stdin.fileno(), "surrogateescape")))
        else:
            lines = Path(name).read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise UsageError(
            f"--ids-from {name}", expected="a file of ids", found=str(error.strerror)
        ) from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise UsageError(f"--ids-from {name}", expected="ids, one a line", found="none")
    return ids


class _progress:
    """A line on stderr that says what is done, as a context."""

    def __init__(self, first: str) -> None:
        self._status = Console(stderr=True).status(first)

    def __enter__(self) -> Callable[[str, int, int], None]:
        status = self._status.__enter__()
        return lambda stage, done, total: status.update(f"{stage}: {done:,} of {total:,} rows")

    def __exit__(self, *raised: object) -> None:
        self._status.stop()


def _print(summary: EditSummary, done: str, unchanged: str, as_json: bool) -> None:
    if as_json:
        print(json_line(asdict(summary)))
        return
    state = f"{summary.rows:,} rows in {summary.segments:,} segments"
    what = done if summary.changed else f"nothing to do, {unchanged}"
    print(printable(f"generation {summary.generation} is live: {what}; {state}"))
