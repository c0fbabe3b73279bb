"""`chiasm search`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from chiasm.index import (
    Answer,
    Query,
    Recorder,
    RerankStage,
    Searcher,
    check_rate,
    open_collection,
    search_file,
)
from chiasm.index.query import check_stages
from chiasm.index.receipts import answer_as_json, explained, line_of
from chiasm.index.segments import build_command
from chiasm.index.sheet import text_to_explain, write_sheet
from chiasm.jobs.cli.answer_inputs import one_text
from chiasm.jobs.cli.options import (
    ENCODING,
    Assignments,
    Collection,
    Device,
    Preset,
    StoredEncoder,
    prepare_pictures,
    print_progress,
)
from chiasm.jobs.cli.search_options import (
    AllowStale,
    AsJson,
    Audit,
    Column,
    Count,
    Dedup,
    Diversity,
    Explain,
    ExplainHits,
    FalseAlarms,
    HitsFile,
    Hybrid,
    Members,
    Minus,
    Pictures,
    Plus,
    QueryFile,
    ReceiptFile,
    Rerank,
    SheetFile,
    Sounds,
    Where,
    Words,
    one_condition,
)
from chiasm.jobs.cli.search_outputs import Output, check_output, require_file_alone
from chiasm.jobs.cli.search_terms import Parts, query_maker
from chiasm.jobs.config import Settings, compose
from chiasm.jobs.console import json_line, lines_of, printable
from chiasm.pipeline.collection import read_identity
from chiasm.pipeline.encoders import require_explainer
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.storage import Folder

HELP = """
  chiasm search photos.chiasm "a red boat under a moon" -k 5 --sheet hits.png
  chiasm search photos.chiasm --image boat.jpg --column text
  chiasm search sounds.chiasm --sound dog.wav
  chiasm search photos.chiasm --json < queries.txt
  chiasm search photos.chiasm "a red boat" --rerank match:20
  chiasm search photos.chiasm "bus 42 at the station" --hybrid
  chiasm search photos.chiasm "2: red boat" --image x.jpg --minus night
  chiasm search photos.chiasm --queries queries.jsonl --to hits.parquet --audit 0.001
  chiasm search photos.chiasm "a red boat" --where "width > 512 AND caption ILIKE '%sea%'"
  chiasm search photos.chiasm "a red boat" --where "width > 512" --explain --receipt boat.json

Without text and picture, queries are read from stdin, one a line. Columns: image finds pictures,
text finds captions, joint finds pairs, sound or the name of another modality finds its members.
What is given together is searched by the mean of its vectors.

With --plus, --minus or --image, texts and pictures may begin with a weight: a number below 100, a
colon and, for a text, a space, or a colon of full width. The query is then their weighted sum.
Before a text that begins with a digit a weight needs a decimal point: "12: 30 train" is a text,
"2.0: 3 boats" is twice a text. A text alone, and lines of stdin or of a file, never have a weight.
--image -0.5:PICTURE searches away from a picture; a file whose name looks like that is
./0.5:boat.jpg."""
USES = (*ENCODING, "index.nprobe")  # settings
BATCH = 64  # lines of stdin that are encoded together


def _settings(preset: str, assignments: list[str] | None, device: str | None) -> Settings:
    """The settings in force, and pictures prepared as they say."""
    settings = compose(preset, assignments or (), {"encoder.device": device}, uses=USES)
    prepare_pictures(settings)
    return settings


def search(
    collection: Collection,
    words: Words = None,
    k: Count = 10,
    image: Pictures = None,
    sound: Sounds = None,
    member: Members = None,
    plus: Plus = None,
    minus: Minus = None,
    column: Column = None,
    rerank: Rerank = None,
    hybrid: Hybrid = False,
    where: Where = None,
    dedup: Dedup = None,
    diversity: Diversity = 0.0,
    as_json: AsJson = False,
    false_alarms: FalseAlarms = None,
    sheet: SheetFile = None,
    explain_hits: ExplainHits = False,
    queries: QueryFile = None,
    to: HitsFile = None,
    audit: Audit = None,
    explain: Explain = False,
    receipt: ReceiptFile = None,
    allow_stale: AllowStale = False,
    encoder: StoredEncoder = None,
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    settings = _settings(preset, assignments, device)
    calibrated = false_alarms is not None and check_rate(false_alarms)
    parts = Parts(image or (), plus or (), minus or (), sound or (), member or ())
    output = Output(as_json, false_alarms, sheet, explain_hits, explain, receipt, audit)
    check_output(output, collection, parts.files())
    _require_collection_first(collection, words or [], parts.options())
    text = one_text("search", words or [], _in_quotes(collection, words or []))
    fields: dict[str, Any] = {"k": k, "rerank": _stages(rerank or []), "hybrid": hybrid}
    fields |= {"calibrated": calibrated, "where": one_condition(where), "dedup": dedup}
    fields |= {"diversity": diversity, "nprobe": settings.index.nprobe or None}
    if queries is not None or to is not None:
        require_file_alone(queries, to, text is not None or bool(parts.options()), output)
    searcher = _open(collection, allow_stale, settings.encoder, encoder, fields["where"])
    fields["column"] = column or searcher.default_column
    if queries is not None and to is not None:
        _answer_file(searcher, queries, to, audit, fields)
        return
    from_stdin = text == "-" or (text is None and not parts.options())
    maker = query_maker(parts, is_data=from_stdin, **fields)
    _answer(searcher, _batches(text, maker, from_stdin), output)


def _open(
    collection: str,
    allow_stale: bool,
    encoding: EncoderSettings,
    encoder: str | None,
    where: str | None,
) -> Searcher:
    """The collection, open. A filter that cannot be used is refused now, rather than after the
    encoder is loaded."""
    searcher = open_collection(
        collection, allow_stale=allow_stale, encoding=encoding, encoder=encoder
    )
    if where is not None:
        searcher.filter(where)
    return searcher


def _stages(texts: list[str]) -> tuple[RerankStage, ...]:
    stages = tuple(map(RerankStage.parse, texts))
    check_stages(stages)
    return stages


def _answer_file(
    searcher: Searcher, queries: str, to: str, audit: float | None, fields: dict[str, Any]
) -> None:
    counts = search_file(searcher, queries, to, audit=audit, **fields)
    print_progress(f"wrote {to}: {counts.queries:,} queries, {counts.hits:,} results")
    print_audited(searcher)


def print_audited(searcher: Searcher) -> None:
    """What recall the queries had that were audited, and what to do where it is too low. That is a
    warning: the answers are what the index gives."""
    for recall in chain.from_iterable(kinds.values() for kinds in searcher.audited.values()):
        print_progress(f"audited: {recall}")
        if recall.broken:
            command = build_command(searcher.collection.folder)
            more = f"--set index.nprobe={2 * recall.nprobe}"
            print_progress(f"  {command} tunes anew; until then search with {more}")


def _answer(searcher: Searcher, batches: Iterable[list[Query]], output: Output) -> None:
    """Print the answers as they come; draw all of them where there is a sheet, and audit some."""
    recorder = None
    if output.receipt is not None:
        recorder = Recorder(searcher, explain=output.explain, false_alarms=output.false_alarms)
    answers: list[Answer] = []
    explainer = require_explainer(searcher.encoder) if output.explain_hits else None
    for queries in batches:
        if explainer is not None:
            list(map(text_to_explain, queries))
        batch = recorder.search(queries) if recorder else searcher.search_many(queries)
        for answer in batch:
            _print_answer(answer, output)
        sys.stdout.flush()
        if output.sheet is not None:
            answers += batch
    if output.sheet is not None:
        write_sheet(answers, output.sheet, explainer)
        print_progress(f"drew {output.sheet}")
    if recorder is not None and output.receipt is not None:
        recorder.write(output.receipt)
        print_progress(f"wrote {output.receipt}")
    if output.audit is not None:
        searcher.audit(output.audit, raise_probes=False, save=True)
    print_audited(searcher)


def _print_answer(answer: Answer, output: Output) -> None:
    if output.as_json:
        if output.receipt is not None:
            line = line_of(answer_as_json(answer, output.explain))
        else:
            line = json_line(answer.as_json() | (explained(answer) if output.explain else {}))
        print(printable(line))
        return
    if output.explain and answer.trace is not None:
        for search in answer.trace.searches:
            print_progress(str(search))
    rate = output.false_alarms
    if rate is not None and answer.nothing_matches(rate):
        print(printable(f"nothing here matches (at a false-alarm rate of {100 * rate:g} %)"))
    for line in format_answer(answer).splitlines():
        print(printable(line))


def _require_collection_first(collection: str, words: list[str], options: list[str]) -> None:
    """UsageError where the first argument is a text, or a part of the collection's name: no such
    folder, and a space in it, a collection as the last argument, or one whose name the shell has
    split."""
    if "://" in collection or os.path.exists(collection):
        return
    for count in range(1, len(words) + 1):
        whole = " ".join([collection, *words[:count]])
        if _is_collection(whole):
            text = [" ".join(words[count:])] if words[count:] else []
            raise UsageError(
                "COLLECTION",
                expected="its name in quotes, as it has spaces",
                found=f"{count + 1} words",
                do=f"type: {shlex.join(['chiasm', 'search', whole, *text, *options])}",
            )
    last = words[-1] if words else ""
    swapped = _is_collection(last)
    if not swapped and " " not in collection:
        return
    place = last if swapped else "COLLECTION"
    text = "TEXT" if words and not swapped else " ".join([collection, *words[:-1]])
    raise UsageError(
        "COLLECTION",
        expected="the collection first, then the text",
        found=f"{collection!r}, which is no collection",
        do=f"type: {shlex.join(['chiasm', 'search', place, text, *options])}",
    )


def _is_collection(path: str) -> bool:
    return os.path.isdir(path) and read_identity(Folder(path)) is not None


def _in_quotes(collection: str, words: list[str]) -> str:
    command = shlex.join(["chiasm", "search", collection, " ".join(words)])
    return f"put the words in quotes: {command}"


def _batches(
    text: str | None, make_query: Callable[[str | None], Query], from_stdin: bool
) -> Iterator[list[Query]]:
    """Queries to answer together: the one of the command line, or those that arrived on stdin."""
    if not from_stdin:
        yield [make_query(text)]
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "search",
            expected="a text, --image FILE, --sound FILE, or queries on stdin",
            found="none of them",
        )
    for lines in lines_of(sys.stdin.fileno(), "replace"):
        texts = list(filter(None, map(str.strip, lines)))
        for start in range(0, len(texts), BATCH):
            yield [make_query(line) for line in texts[start : start + BATCH]]


def format_answer(answer: Answer) -> str:
    """An answer as lines for a person. A line separates the results that the last stage of
    reranking did not score."""
    lines = [f"{answer.query} in {answer.query.column}: {answer.time_label()}"]
    stages = answer.query.stages
    separated = not stages
    if not len(answer):
        lines.append("      no results")
    for result in answer:
        if not separated and not answer.is_reranked(result):
            lines.append(f"      not scored by {stages[-1]}, ordered by {result.scored_by}:")
            separated = True
        caption = result.caption if result.caption is not None else "(no caption)"
        lines.append(f"{result.rank:4d}  {result.score:6.3f}  {caption}")
        lines.append(f"              {result.key}  {result.id}{result.duplicates_label()}")
    return "\n".join(map(printable, lines))
