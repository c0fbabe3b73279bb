"""Sweeping: removes what builds have left that no generation needs any more.

Kept are the live generation, the last few, those that ceased to be live a while ago at most
(readers may have them open), every segment those name, and whatever a build that may live has
written so far. Removed are only files and folders of names that chiasm writes (`names.py`).

A generation that cannot be read may name any segment: until it is removed none is, and a warning
names it. It goes once it is old, as others do.

The order makes this safe beside other builds: first the folders are listed, then the builds that
live, and those found dead are marked, then the generations are read. A build that ends between the
first two has published its generation by the third. A build that was taken for dead and lives finds
the mark, or its segments gone, before it moves CURRENT. The generation of a build that may live is
kept and not marked: CURRENT may be about to name it.

How long ago a generation ceased to be live is told by two files of the same store, hence by one
clock: the mark that the first sweep to find it replaced has written, and the latest of all such
marks and CURRENT. A clock that is set can shorten that time; a searcher that is open then opens the
live generation and answers from that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from contextlib import contextmanager, suppress

from chiasm.index.plan import IndexSettings
from chiasm.index.segments.generations import keeping_segments, read_manifest
from chiasm.index.segments.names import (
    CURRENT,
    DELETED,
    GENERATIONS,
    RECORD,
    SEGMENTS,
    TRAINED,
    audit_name,
    is_segment_file,
    manifest_name,
    numbers_in,
    replaced_name,
    run_of_folder,
)
from chiasm.index.segments.proposals import proposal_column
from chiasm.index.segments.publish import live_number
from chiasm.pipeline.collection import STALE_SECONDS, Run, read_identity
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.records import COLUMNS
from chiasm.pipeline.storage import Folder, Stat

LOG = logging.getLogger(__name__)


@contextmanager
def sweeping(
    run: Run,
    settings: IndexSettings,
    keep: Callable[[], Set[str]] = frozenset,
    *,
    make_room: bool = True,
) -> Iterator[None]:
    """Room is made before a build, and what it has written is removed where it fails: a disk that
    was full once must not stay so. keep: folders of dead builds that this one may take up.
    make_room: an edit, which is small, need not wait for that."""
    before = numbers_in(run.folder.list(GENERATIONS), "json")
    if make_room:
        run.wait_for_verdicts(filter(None, map(run_of_folder, leftovers(run.folder))))
        sweep(run.folder, run, settings, warn=False, keep=keep())  # the one at the end warns
    try:
        yield
    except BaseException:
        with _left_for_the_next():
            remove_unnamed(run.folder, run, before)
        raise


def sweep_published(folder: Folder, run: Run, settings: IndexSettings) -> None:
    """`sweep` after a build has published: that it fails changes nothing of that."""
    with _left_for_the_next():
        sweep(folder, run, settings)


@contextmanager
def _left_for_the_next() -> Iterator[None]:
    try:
        yield
    except (CollectionError, StorageError) as error:
        LOG.warning("left for the next build to remove: %s", error)


def sweep(
    folder: Folder,
    run: Run,
    settings: IndexSettings,
    *,
    warn: bool = True,
    keep: Set[str] = frozenset(),
) -> list[str]:
    """Remove what is not needed any more, of this run too; returns the names of what was
    removed. warn: of generations that keep it from doing so. keep: folders that stay."""
    removed = run.remove_temporaries(["index", GENERATIONS, "runs"]) + run.abort_uploads()
    # First: that makes room for the marks.
    unnamed, unreadable = _remove_unnamed(folder, run, keep=keep)
    old = _remove_old_generations(folder, run, settings, unreadable)
    if old:
        more, unreadable = _remove_unnamed(folder, run, keep=keep)
        unnamed += more
    if warn:
        _warn(unreadable)
    return removed + old + unnamed


def remove_unnamed(folder: Folder, run: Run, before: Collection[int] = ()) -> list[str]:
    """Remove the segments and trained indexes that no generation names and no other run that may
    live has written; returns the folders' names. before: the generations that were there when this
    run began, which name nothing of what it has written."""
    removed, unreadable = _remove_unnamed(folder, run, before)
    _warn(unreadable)
    return removed


def _remove_unnamed(
    folder: Folder, run: Run, before: Collection[int] = (), keep: Set[str] = frozenset()
) -> tuple[list[str], dict[int, CollectionError]]:
    """The same, and the generations that cannot be read. What these name is not known, not even by
    its age (clocks are set): all segments stay, but for those of this run."""
    writers = {name: run_of_folder(name) for name in leftovers(folder)}
    running = {other.id for other in run.others()}
    try:
        running |= run.mark_dead()
    except StorageError as error:  # of a full disk, in which room is to be made now
        LOG.warning("dead runs are not marked: %s", error)
    named = set(keep)
    unreadable: dict[int, CollectionError] = {}
    for number in numbers_in(folder.list(GENERATIONS), "json"):
        try:
            manifest = read_manifest(folder, number)
        except CollectionError as error:
            if folder.exists(manifest_name(number)):  # else another sweep has just removed it
                unreadable[number] = error
            continue
        named |= {f"{SEGMENTS}/{entry.id}" for entry in manifest.segments}
        named |= {name.rpartition("/")[0] for name in manifest.shared_files()}
    own = bool(unreadable)
    if not unreadable.keys() <= set(before):
        return [], unreadable
    unnamed = [
        name
        for name, writer in writers.items()
        if name not in named and writer not in running and (not own or writer == run.id)
    ]

    columns = _columns(folder) if unnamed else ()

    def remove(name: str) -> None:
        folder.remove(f"{name}/{RECORD}")  # first: a segment that has its record is whole
        folder.remove_folder(name, lambda base: is_segment_file(base, columns))

    return _remove_all(unnamed, remove), unreadable


def _columns(folder: Folder) -> Collection[str]:
    """The vector columns that a segment of the collection may have files of."""
    try:
        identity = read_identity(folder)
    except CollectionError:
        identity = None
    if identity is None:
        return COLUMNS
    return {*COLUMNS, *identity.columns, *map(proposal_column, identity.tokens)}


def leftovers(folder: Folder) -> list[str]:
    """The folders of segments, trained indexes and deletions that chiasm has written."""
    found = [name for parent in (SEGMENTS, TRAINED, DELETED) for name in folder.folders(parent)]
    return [name for name in found if run_of_folder(name) is not None]


def _remove_old_generations(
    folder: Folder, run: Run, settings: IndexSettings, unreadable: Collection[int]
) -> list[str]:
    """Remove the manifests of generations that nobody needs, and mark those that were replaced. One
    that cannot be read could not answer instead of the live one: it goes by its age alone."""
    found = folder.list_stats(GENERATIONS)
    existing, marks = (numbers_in([*found], kind) for kind in ("json", "replaced"))
    live = live_number(folder)
    if live not in existing:
        return []  # CURRENT is damaged: any of them may have to answer
    kept = {live, *existing[-settings.keep_generations :]}
    now = _latest({**found, **folder.list_stats("index")})
    running = {other.id for other in run.others()}
    needed = {live} | _of_running(folder, running, existing)
    # Beside another build none goes at once: that one may be about to make it live.
    keep_seconds = max(settings.keep_seconds, STALE_SECONDS if running else 0.0)
    if now is not None:
        # The newest stays, whatever it is: no number is given twice.
        kept -= {number for number in unreadable if number < live}
    old: list[str] = []
    for number in existing:
        mark = replaced_name(number)
        if number in needed:
            continue
        if number not in marks:
            folder.write_whole(mark, b"", run.id)
            aged = keep_seconds == 0
        else:
            age = _age(found[mark].modified, now)
            aged = age is None or age >= keep_seconds
        if aged and number not in kept:
            old.append(manifest_name(number))
    gone = [replaced_name(number) for number in marks if number == live or number not in existing]
    audits = numbers_in([*found], "audit")
    gone += [audit_name(number) for number in audits if number not in existing]
    _remove_all(gone, folder.remove)
    removed = _remove_all(old, folder.remove)
    _remove_all([name.removesuffix(".json") + ".replaced" for name in removed], folder.remove)
    _remove_all([audit_name(n) for n in audits if manifest_name(n) in removed], folder.remove)
    return removed


def _of_running(folder: Folder, running: Set[str], existing: list[int]) -> set[int]:
    """The generations of other builds that may live: one that is not live may be about to be."""
    if not running:
        return set()
    needed: set[int] = set()
    for number in existing:
        with suppress(CollectionError):  # its run is not known; it has an age all the same
            if read_manifest(folder, number).run in running:
                needed.add(number)
    return needed


def _latest(found: dict[str, Stat]) -> float | None:
    """When CURRENT or any of the marks was last written, by the store's clock; None where the store
    does not tell."""
    marks = map(replaced_name, numbers_in([*found], "replaced"))
    times = [found[name].modified for name in (CURRENT, *marks)]
    return max((time for time in times if time is not None), default=None)


def _age(modified: float | None, now: float | None) -> float | None:
    """None where the store tells no times: then the number of generations decides alone."""
    return None if modified is None or now is None else now - modified


def _warn(unreadable: dict[int, CollectionError]) -> None:
    """One line, however many there are."""
    for _, error in sorted(unreadable.items())[:1]:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        LOG.warning("%s%s", keeping_segments(error), more)


def _remove_all(names: Iterable[str], remove: Callable[[str], None]) -> list[str]:
    """Remove each; returns those that were. One that cannot be removed, such as a link that
    somebody has put there, keeps nobody from the rest."""
    removed: list[str] = []
    for name in names:
        try:
            remove(name)
            removed.append(name)
        except StorageError as error:
            LOG.warning("not removed: %s", error)
    return removed
