"""Faults that are put back into the product, each by an edit of one function: the stories have to
find them. An edit that fits no longer fails, so the list follows the product."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from chiasm.index import retrieve as retrieving
from chiasm.index.segments import generations, publish, sweep
from chiasm.pipeline import embed
from chiasm.pipeline.collection.observer import RunObserver, Seen
from chiasm.pipeline.collection.processes import Machine
from chiasm.pipeline.collection.runs import Run
from chiasm.pipeline.collection.summaries import Survey
from chiasm.pipeline.storage.uploads import PendingObject
from chiasm.pipeline.worklist import WorkList

_publish: Any = inspect.getmodule(publish)
_sweep: Any = inspect.getmodule(sweep)
_STALE = "began - sighting.since >= STALE_SECONDS"
_FOLDERS = "    writers = {name: run_of_folder(name) for name in leftovers(folder)}\n"
_RUNNING = "    running = {other.id for other in run.others()}\n"
_LISTED = 'numbers_in(folder.list(GENERATIONS), "json")'
_BEAT = "    run.beat()  # a sweep that marks this run after that finds the manifest\n"
_LOOK = "    _require_own(folder, manifest)\n"
_ENTRY = "    write_entry(folder, replace(entry, replaced=replaced), run_id)\n"
_ROWS = "    rows.commit(footer)\n"

Edit = tuple[Any, str, str]  # a function, a piece of its text, what stands there instead

FAULTS: dict[str, list[Edit]] = {
    # Who lives?
    "clock step: heartbeats are judged by the wall clock": [
        (
            RunObserver._assess,
            _STALE,
            "record is not None and self._clock.time() - record.heartbeat >= STALE_SECONDS",
        )
    ],
    "clock step: processes are known by when they began": [
        (Machine.this_process, "namespace, ticks,", "namespace, ticks + int(self.clock.wrong),"),
        (Machine.alive, "ticks ==", "ticks + int(self.clock.wrong) =="),
    ],
    "equal host names: the boot id is ignored": [
        (Machine.this_process, 'self.read("sys/kernel/random/boot_id").strip()', "self.host()")
    ],
    "the start of a process is ignored": [(Machine.alive, "ticks == process.start_ticks and ", "")],
    "dead after five seconds": [(RunObserver._assess, "STALE_SECONDS", "5.0")],
    "what is not known is dead": [(Seen.may_live, "(Life.ALIVE, Life.UNKNOWN)", "(Life.ALIVE,)")],
    "records of newer versions are dead": [
        (RunObserver._assess, "not marked if record is None", "False if record is None")
    ],
    "the mark of a killed run is ignored": [
        (Run._check_mark, "not self.folder.exists(mark_name(self.id))", "True")
    ],
    "heartbeats end at the first error": [(Run._send_heartbeats, "continue", "return")],
    # Work that is shared
    "claims of others are ignored": [
        (WorkList._claims_elsewhere, "return self._elsewhere", "return set()")
    ],
    "claims are looked at before ours are written": [
        (WorkList._claim_block, "newer_than=math.inf", "newer_than=-math.inf")
    ],
    "claims are not written": [(Run.claim, "self._renew()", "pass")],
    "a lapse is not noticed": [(Run._renew, "self.lapses += lapsed", "pass")],
    "claims of shards that were skipped are kept": [
        (WorkList._claim_block, "len(self._block) < len(block)", "False")
    ],
    "what others finish is not seen": [
        (WorkList._skip_finished_since, "self.run.activity != self._activity", "False")
    ],
    "what others finish between two listings is not seen": [
        (WorkList.skip_finished, "left &= files.ledgers.keys()", "pass")
    ],
    "stale summaries are trusted": [(Survey.summaries, " and self.files.match(summary)", "")],
    "summaries without rows are trusted": [(Survey._read, "embeddings is not None and ", "")],
    "rows before their ledger entry": [(embed.commit_shard, _ENTRY + _ROWS, _ROWS + _ENTRY)],
    "quarantine over whole rows": [
        (WorkList.quarantine, "find_whole(self.run, task) is not None", "False")
    ],
    # Publishing
    "publish race: no look after the manifest": [(_publish.publish, _BEAT + _LOOK, "")],
    "publish race: segments are not looked at again": [(_publish.publish, _BEAT + _LOOK, _BEAT)],
    "publish race: the mark is not looked for": [(_publish.publish, _BEAT, "")],
    "the last build wins": [
        (_publish._settle, "_rivals(folder, new, began_with)", "[]"),
        (_publish.publish, "_rivals(folder, new, began_with)", "[]"),
    ],
    "a manifest is put over another": [
        (PendingObject.commit_new, "create_token=secrets.token_hex(8)", "")
    ],
    "a put whose answer was lost counts as another's": [
        (
            PendingObject._upload,
            "data, create_token=create_token)",
            "data, create_token=create_token and secrets.token_hex(8))",
        )
    ],
    # Sweeping
    "living builds are forgotten": [(_sweep._remove_unnamed, _RUNNING, "    running = set()\n")],
    "living builds are listed before folders": [
        (_sweep._remove_unnamed, _FOLDERS + _RUNNING, _RUNNING + _FOLDERS)
    ],
    "generations are listed before living builds": [
        (_sweep._remove_unnamed, f"in {_LISTED}:", "in listed:"),
        (_sweep._remove_unnamed, _RUNNING, f"    listed = {_LISTED}\n{_RUNNING}"),
    ],
    "generations of living builds are removed": [
        (_sweep._remove_old_generations, " | _of_running(folder, running, existing)", "")
    ],
    "a generation ages from when it was made": [
        (_sweep._remove_old_generations, "found[mark]", "found[manifest_name(number)]")
    ],
    "a generation goes once it is replaced": [
        (_sweep._remove_old_generations, "aged = keep_seconds == 0", "aged = True")
    ],
    "a mark from before a generation was live counts": [
        (_publish._settle, "if live and live != best.number:", "if False:")
    ],
    "generations go while CURRENT is damaged": [
        (_sweep._remove_old_generations, "live not in existing", "False")
    ],
    "a segment's record goes last": [
        (_sweep._remove_unnamed, 'folder.remove(f"{name}/{RECORD}")', "pass")
    ],
    "folders of others are removed": [
        (_sweep.leftovers, " if run_of_folder(name) is not None", "")
    ],
    "a failed build leaves its segments": [
        (_sweep.sweeping, "remove_unnamed(run.folder, run, before)", "pass")
    ],
    "a build does not wait for verdicts": [(_sweep.sweeping, "run.wait_for_verdicts(", "list(")],
    # Opening
    "opening does not fall back": [
        (
            generations.open_current,
            "newest_whole(folder, _without_advice(damage), number)",
            "None",
        )
    ],
    "a searcher does not reopen": [
        (retrieving.retrieve, "not collection.reopen(view.generation)", "True")
    ],
}


def put_back(patch: pytest.MonkeyPatch, name: str) -> None:
    """Put a fault of FAULTS back, for whoever has imported the functions already too."""
    for owner, old, new in FAULTS[name]:
        function = _plain(owner)
        source = textwrap.dedent(_source(function))
        assert source.count(old) == 1, f"{name}: {source.count(old)} times {old!r}"
        names = dict(function.__globals__)
        exec(compile(source.replace(old, new), name, "exec"), names)  # with our own __future__
        edited = _plain(names[function.__name__]).__code__
        _sources[edited] = source.replace(old, new)
        patch.setattr(function, "__code__", edited)


_sources: dict[Any, str] = {}  # of functions that were edited


def _source(function: Callable[..., Any]) -> str:
    return _sources.get(function.__code__) or inspect.getsource(function)


def _plain(function: Any) -> Any:
    """The function in a property or a context manager."""
    function = getattr(function, "fget", function)
    return getattr(function, "__wrapped__", function)
