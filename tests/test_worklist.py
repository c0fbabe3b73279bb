"""The work list: shards claimed in blocks, summaries of what is done, and what that costs a store.

Workers are simulated: `commit` puts what one leaves. Requests are counted, never timed.
"""

from __future__ import annotations

import json
from collections import Counter, deque

import pytest
from counting_store import CountingStore
from fake_encoder import FakeEncoder
from test_runs import FakeClock, FakeMachine
from tiny_collection import add_shard

from chiasm.jobs.cli.status import format_run
from chiasm.jobs.status import read_status, status_of
from chiasm.pipeline import worklist
from chiasm.pipeline.collection import (
    FOLDERS,
    Collection,
    Identity,
    LedgerEntry,
    Run,
    ShardFiles,
    Survey,
    create_or_check,
    embeddings,
    failure_name,
    find_embedding,
    ledger_name,
    parquet_name,
    read_entry,
    summaries,
)
from chiasm.pipeline.collection.observer import STALE_SECONDS
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Dropped, Note, Shard
from chiasm.pipeline.shards import ReadSettings
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.storage.temporaries import temporary_of
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.verify import check_shards
from chiasm.pipeline.worklist import WorkList

RUNS = [f"20260101T000000-{number:08x}" for number in range(20)]
R1, R2, R3 = RUNS[1:4]
SETTINGS = EmbedSettings()
ENCODER = FakeEncoder()


def shards_of(count: int) -> list[Shard]:
    return [Shard(f"s3://b/{n}.tar", f"{n}-{n:010x}", 1000, f"v{n}") for n in range(count)]


def entry_of(shard: Shard, settings: EmbedSettings = SETTINGS) -> LedgerEntry:
    drops = (Dropped("9", "decode", "corrupt"),)
    edition = edition_of(shard, ENCODER.fingerprint, settings)
    return LedgerEntry(shard, edition, rows=9, dropped=drops, notes=(Note("1", "no_caption"),))


def commit(store: CountingStore, task: Task, name: str = "c") -> tuple[LedgerEntry, tuple]:
    """What a worker leaves: an entry, and bytes that only a footer's reader would refuse."""
    entry = entry_of(task.shard)
    contents = (entry.to_json(), f"rows of {task.shard.id}".encode())
    names = (ledger_name(task.shard.id), parquet_name(task.shard.id))
    for file, data in zip(names, contents, strict=True):
        store.keep(f"bucket/{name}/{file}", data)
    return entry, tuple(map(store.stat_of, contents))


def new_run(folder: Folder, run_id: str, clock: FakeClock, machine: str = "a") -> Run:
    return Run(
        folder, "embed", {}, run_id=run_id, clock=clock, machine=FakeMachine(machine),
        heartbeats=False,
    )  # fmt: skip


def work_of(folder: Folder, shards: list[Shard], run: Run, limit: int | None = None) -> WorkList:
    work = WorkList(shards, run, SETTINGS, limit)
    work.skip_finished(create_or_check(folder, Identity.of(ENCODER), run.id))
    return work


def embed_all(store: CountingStore, shards: list[Shard], run_id: str, most: int = 8) -> WorkList:
    folder, clock = store.folder(), FakeClock()
    with new_run(folder, run_id, clock) as run:
        run.sweep(("", "runs", "ledger", "embeddings"))
        work = work_of(folder, shards, run)
        at_work: deque[Task] = deque()
        while not work.over:
            while len(at_work) < most and (task := work.take()):
                at_work.append(task)
            task = at_work.popleft()
            work.finish(task, *commit(store, task))
        run.sweep(("ledger", "embeddings"), own=True)
        work.write_summaries()
        run.finish("done", {})
    return work


def test_what_a_driver_asks_of_a_store_does_not_grow_with_the_shards():
    counts = []
    for shards in (100, 900):
        store = CountingStore()
        work = embed_all(store, shards_of(shards), R1)
        assert (work.done.shards, work.done.rows, work.done.samples) == (
            shards,
            9 * shards,
            10 * shards,
        )
        first = store.total
        store.reset()
        again = embed_all(store, shards_of(shards), R2)
        assert (again.skipped.shards, again.done.shards, again.samples()) == (
            shards,
            0,
            10 * shards,
        )
        resumed, rounds = store.total, store.rounds
        store.reset()
        status = status_of(Collection.of(store.folder(), "c"), "c")
        assert (status.shards, status.dropped, status.notes) == (
            shards,
            shards,
            {"no_caption": shards},
        )
        counts.append((first, resumed, rounds, store.total))
    (few, *_), (first, resumed, rounds, requested) = counts
    assert first - few < 40, "a claim for every block, and blocks that grow"
    assert resumed <= 60 and rounds <= 20
    assert requested <= 16


def test_an_old_collection_is_read_shard_by_shard_once():
    """Without summaries, as an earlier version left it; then with those of the first new run."""
    store = CountingStore()
    embed_all(store, shards_of(12), R1)
    folder = store.folder()
    for name in folder.list("summaries"):
        folder.remove(name)
    for shard in shards_of(12):
        add_rows(store, shard)
    embed_all(store, shards_of(12), R2)
    store.reset()
    assert embed_all(store, shards_of(12), R3).skipped.shards == 12
    assert store.total <= 20


def add_rows(store: CountingStore, shard: Shard) -> LedgerEntry:
    """What a worker leaves, with a real Parquet file."""
    edition = edition_of(shard, ENCODER.fingerprint, SETTINGS)
    add_shard(store.folder(), "s", 9, shard=shard, edition=edition, dropped=1)
    return entry_of(shard)


@pytest.mark.parametrize("change", ["ledger", "rows", "ledger gone", "rows gone"])
def test_a_summary_counts_only_for_the_files_that_it_was_made_from(change):
    store, shards = CountingStore(), shards_of(6)
    embed_all(store, shards, R1)
    folder, victim = store.folder(), shards[3].id
    if change == "ledger":
        folder.write_whole(ledger_name(victim), b"{}")
    elif change == "rows":
        folder.write_whole(parquet_name(victim), b"other rows")
    else:
        folder.remove(ledger_name(victim) if change == "ledger gone" else parquet_name(victim))
    survey = Survey(folder, ShardFiles.list(folder))
    assert {summary.source.id for summary in survey.summaries()} == {
        shard.id for shard in shards if shard.id != victim
    }
    with new_run(folder, R2, FakeClock()) as run:
        work = work_of(folder, shards, run)
        assert work.skipped.shards == 5 and work.take().shard.id == victim


def test_damaged_summaries_cost_requests_and_nothing_else(tmp_path):
    folder = Folder(str(tmp_path))
    create_or_check(folder, Identity.of(ENCODER), "test")
    shards = [Shard(f"file:///nowhere/s{n}.tar", f"s{n}-0123456789", 4096, "1") for n in range(3)]
    for number, shard in enumerate(shards):
        edition = edition_of(shard, ENCODER.fingerprint, SETTINGS)
        add_shard(folder, f"s{number}", 20, edition=edition)
    for text in ("", "[" * 9999, '{"schema": 2}', '{"run": 3, "shards": [{"rows": "x"}]}', "{}"):
        folder.write_whole("summaries/x-0000.json", text.encode())
        assert read_status(str(tmp_path)).rows == 60
        with Run(folder, "embed", {}, heartbeats=False) as run:
            assert work_of(folder, shards, run).skipped.rows == 60


def test_many_small_files_of_summaries_are_put_together(monkeypatch):
    store, shards = CountingStore(), shards_of(24)
    for number in range(12):
        embed_all(store, shards[2 * number : 2 * number + 2], RUNS[4 + number])
    folder = store.folder()
    assert len(folder.list("summaries")) < 12
    live = new_run(folder, R1, FakeClock())
    live.__enter__()
    name = f"summaries/{R1}-0000.json"
    folder.write_whole(name, json.dumps({"run": R1, "shards": []}).encode())
    embed_all(store, shards, "last")
    assert name in folder.list("summaries"), "it may be written again"
    store.reset()
    assert embed_all(store, shards, "again").skipped.shards == 24
    assert store.requests["get"] < 24


def test_half_written_summaries_are_swept(tmp_path):
    folder = Folder(str(tmp_path))
    (tmp_path / "summaries").mkdir()
    name = temporary_of(f"summaries/{R1}-0000.json", R1, "0a0a0a0a")
    folder.path(name).touch()
    with Run(folder, "embed", {}, heartbeats=False) as run:
        assert run.sweep(FOLDERS) == [name]


def test_parts_have_a_size_and_only_the_last_is_written_again(monkeypatch):
    monkeypatch.setattr(summaries, "SHARDS_OF_A_PART", 10)
    monkeypatch.setattr(summaries, "SHARDS_OF_A_WRITE", 4)
    store = CountingStore()
    embed_all(store, shards_of(25), R1)
    folder = store.folder()
    parts = [json.loads(folder.read_bytes(name)) for name in folder.list("summaries")]
    assert [len(part["shards"]) for part in parts] == [10, 10, 5]
    assert all(part["run"] == R1 for part in parts)


def test_two_runs_share_shards_whatever_they_claim_at_the_same_moment():
    """Steps of two drivers in turn: no shard is handed out twice, and both get some."""
    for first in (0, 1):
        store, shards = CountingStore(), shards_of(40)
        folder, clock = store.folder(), FakeClock()
        runs = [new_run(folder, RUNS[n], clock, f"m{n}").__enter__() for n in range(2)]
        works = [work_of(folder, shards, run) for run in runs]
        taken: list[list[str]] = [[], []]
        turn = first
        while not all(work.over for work in works):
            task = works[turn].take()
            if task is None:
                clock.sleep(worklist.RECHECK_SECONDS)
            else:
                taken[turn].append(task.shard.id)
                works[turn].finish(task, add_rows(store, task.shard))
            for run in runs:
                run.beat()
            turn = 1 - turn
        assert sorted(taken[0] + taken[1]) == sorted(shard.id for shard in shards)
        assert min(map(len, taken)) >= 10
        for work in works:
            assert work.samples() == 400


def test_of_two_that_claim_at_the_same_moment_one_at_least_yields(monkeypatch):
    """The other run's claim arrives between our first look and our write."""
    store, shards = CountingStore(), shards_of(4)
    folder, clock = store.folder(), FakeClock()
    with new_run(folder, R1, clock) as one, new_run(folder, R2, clock) as other:
        work = work_of(folder, shards, one)
        real = Run.claim

        def claim(run: Run, ids) -> None:
            if run is one and not other.record.claimed:
                real(other, [shards[0].id])
            real(run, ids)

        monkeypatch.setattr(Run, "claim", claim)
        task = work.take()
        assert task is not None and task.shard.id != shards[0].id
        assert shards[0].id not in json.loads(folder.read_bytes(f"runs/{R1}.json"))["holds"]


def test_a_block_is_no_more_than_what_others_need_too():
    store, shards = CountingStore(), shards_of(64)
    folder, clock = store.folder(), FakeClock()
    with new_run(folder, R1, clock) as run:
        work = work_of(folder, shards, run)
        sizes = []
        while (task := work.take()) is not None:
            claimed = json.loads(folder.read_bytes(f"runs/{R1}.json"))["holds"]
            sizes.append(len(claimed))
            work.finish(task, *commit(store, task))
        assert max(sizes) <= 16
        assert run.record.claimed == ()
    with new_run(folder, R2, clock) as slow:
        work = work_of(folder, shards_of(200)[64:], slow)
        for _ in range(20):
            task = work.take()
            assert len(json.loads(folder.read_bytes(f"runs/{R2}.json"))["holds"]) == 1
            clock.sleep(60)
            slow.beat()
            work.finish(task, *commit(store, task))


def test_a_shard_that_another_run_finished_meanwhile_is_skipped(tmp_path):
    folder = Folder(str(tmp_path))
    shards = [Shard(f"file:///nowhere/s{n}.tar", f"s{n}-0123456789", 4096, "1") for n in range(2)]
    clock = FakeClock()
    with new_run(folder, R1, clock) as run:
        work = work_of(folder, shards, run)
        with new_run(folder, R2, clock):
            edition = edition_of(shards[0], ENCODER.fingerprint, SETTINGS)
            add_shard(folder, "s0", 20, edition=edition)
        task = work.take()
        assert task is not None and task.shard == shards[1]
        assert (work.skipped.shards, work.skipped.rows) == (1, 20)


def test_a_run_that_others_took_for_dead_claims_again_what_it_has_not_begun():
    store, shards = CountingStore(), shards_of(16)
    folder, clock = store.folder(), FakeClock()
    one = new_run(folder, R1, clock, "m1").__enter__()
    work = work_of(folder, shards, one)
    begun = [work.take(), work.take()]
    assert len(one.record.claimed) > 2, "a block is claimed beyond what is handed out"
    not_begun = set(one.record.claimed) - {task.shard.id for task in begun}
    with new_run(folder, R2, clock, "m2") as other:
        other.others()
        clock.sleep(STALE_SECONDS + 1)
        assert other.others() == []
        other.claim(not_begun)  # it takes over; the first is out of reach, and not yet marked
        task = work.take()
        assert task is not None and task.shard.id not in not_begun
        entry, files = commit(store, begun[0])
        work.finish(begun[0], entry, files)
        work.write_summaries()
        assert folder.list("summaries") == [], "another run may have written that file meanwhile"
        other.observe()
        clock.sleep(STALE_SECONDS + 1)
        other.beat()
        other.sweep([])
        with pytest.raises(CollectionError, match="another run that has taken over its work"):
            work.take()


@pytest.fixture
def whole(tmp_path):
    """A collection with one shard of whole rows."""
    folder = Folder(str(tmp_path))
    create_or_check(folder, Identity.of(ENCODER), "test")
    shard = Shard("file:///nowhere/s0.tar", "s0-0123456789", 4096, "1")
    add_shard(folder, "s0", 50, edition=edition_of(shard, ENCODER.fingerprint, SETTINGS))
    return folder, shard


def quarantine(folder: Folder, shard: Shard, settings: EmbedSettings) -> None:
    with Run(folder, "embed", {}, heartbeats=False) as run:
        work = WorkList([shard], run, settings)
        work.skip_finished(Identity.of(ENCODER))
        task = work.take()
        work.quarantine(task, "3 attempts failed, the last one: its worker died")
        assert list(work.quarantined) == [shard.id]
        work.write_summaries()
        run.finish("failed", {})


def test_whole_rows_keep_their_entry_when_an_attempt_to_embed_them_anew_fails(whole):
    folder, shard = whole
    before = folder.read_bytes(ledger_name(shard.id))
    quarantine(folder, shard, EmbedSettings(read=ReadSettings(caption_field="title")))
    assert folder.read_bytes(ledger_name(shard.id)) == before
    assert [file.rows for file in embeddings(folder)] == [50]
    assert list(check_shards(Collection.of(folder, "c"), Counter())) == []
    status = read_status(str(folder.local))
    (failed,) = status.set_aside
    assert (status.rows, status.shards) == (50, 1)
    assert "its worker died (the rows that it had are kept)" in failed["reason"]
    # The first command again finds its rows, and is content.
    with Run(folder, "embed", {}, heartbeats=False) as run:
        assert work_of(folder, [shard], run).over
    assert not folder.exists(failure_name(shard.id))
    assert read_status(str(folder.local)).set_aside == []


def test_a_run_that_has_nothing_left_to_claim_holds_nothing(tmp_path):
    """Two runs that both kept claims of shards which they had skipped waited for each other."""
    folder, clock = Folder(str(tmp_path)), FakeClock()
    shard = Shard("file:///nowhere/s0.tar", "s0-0123456789", 4096, "1")
    with new_run(folder, R1, clock) as run:
        work = work_of(folder, [shard], run)
        with new_run(folder, R2, clock):
            add_shard(folder, "s0", 20, edition=edition_of(shard, ENCODER.fingerprint, SETTINGS))
        assert work.take() is None and work.over
        assert run.record.claimed == ()


def test_a_shard_that_is_finished_between_two_listings_is_skipped(tmp_path, monkeypatch):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    shard = Shard("file:///nowhere/s0.tar", "s0-0123456789", 4096, "1")
    edition, real = edition_of(shard, ENCODER.fingerprint, SETTINGS), Folder.list_stats

    def list_stats(folder: Folder, prefix: str):
        if prefix == "embeddings":
            add_shard(folder, "s0", 20, edition=edition)
        return real(folder, prefix)

    monkeypatch.setattr(Folder, "list_stats", list_stats)
    with new_run(folder, R1, clock) as run, new_run(folder, R2, clock):
        work = work_of(folder, [shard], run)
        assert work.take() is None and work.skipped.rows == 20


def test_a_summary_is_of_rows_that_were_listed(whole):
    """One without rows would hold again once they are gone."""
    folder, shard = whole
    files = ShardFiles.list(folder)
    early = ShardFiles(files.ledgers, {}, set())
    for known, unfinished in ((files, False), (early, True)):
        (summary,) = Survey(folder, known).read([shard.id], skip_damaged=False)
        assert summary is not None and summary.unfinished == unfinished


def test_a_claim_that_took_so_long_that_others_took_it_over_is_made_again(monkeypatch):
    store, shards = CountingStore(), shards_of(2)
    folder, clock = store.folder(), FakeClock()
    with new_run(folder, R1, clock, "m1") as one, new_run(folder, R2, clock, "m2") as other:
        work = work_of(folder, shards, one)
        real = WorkList._skip_finished_since

        def skip_finished_since(work: WorkList, block: list[Task]) -> list[Task]:
            if not other.record.claimed:
                clock.sleep(STALE_SECONDS + 1)  # in which the other finds this run dead
                other.claim([task.shard.id for task in block])
            return real(work, block)

        monkeypatch.setattr(WorkList, "_skip_finished_since", skip_finished_since)
        task = work.take()
        assert task is not None and [task.shard.id] != list(other.record.claimed)


def test_success_removes_the_reason_beside(whole):
    folder, shard = whole
    other = EmbedSettings(read=ReadSettings(caption_field="title"))
    quarantine(folder, shard, other)
    with Run(folder, "embed", {}, heartbeats=False) as run:
        work = WorkList([shard], run, other)
        work.skip_finished(Identity.of(ENCODER))
        task = work.take()
        edition = edition_of(shard, ENCODER.fingerprint, other)
        add_shard(folder, "s0", 60, edition=edition)
        work.finish(task, read_entry(folder, shard.id))
    assert not folder.exists(failure_name(shard.id))
    assert read_status(str(folder.local)).rows == 60


def test_a_shard_without_whole_rows_is_given_up_in_its_entry(tmp_path):
    folder = Folder(str(tmp_path))
    create_or_check(folder, Identity.of(ENCODER), "test")
    shard = Shard("file:///nowhere/s0.tar", "s0-0123456789", 4096, "1")
    quarantine(folder, shard, SETTINGS)
    assert read_entry(folder, shard.id).quarantined
    assert [failed["shard"] for failed in read_status(str(tmp_path)).set_aside] == [shard.url]
    assert find_embedding(folder, shard.id) is None


def test_status_claims_no_death_of_a_run_elsewhere():
    store = CountingStore()
    embed_all(store, shards_of(2), R1)
    folder = store.folder()
    new_run(folder, R2, FakeClock(), "elsewhere").__enter__().claim([f"s{n}" for n in range(9)])
    folder.write_whole(f"runs/{R3}.json", b'{"schema": 2}')
    runs = status_of(Collection.of(folder, "c"), "c").runs
    assert [(run["id"], run["state"], run["foreign"]) for run in runs] == [
        (R1, "done", False), (R2, "running", True), (R3, "unreadable", True),
    ]  # fmt: skip
    lines = [format_run(run) for run in runs]
    assert f"{R2}: embed running on worker-0, if it still lives, " in lines[1]
    assert lines[1].endswith("holds s0, s1, s2, s3 and 5 more")
    assert "its record cannot be read" in lines[2]


def test_a_killed_runs_claims_are_waited_for_and_then_taken():
    store, shards = CountingStore(), shards_of(3)
    folder, clock = store.folder(), FakeClock()
    killed = new_run(folder, R1, clock, "elsewhere").__enter__()
    killed.claim([shards[0].id])
    with new_run(folder, R2, clock) as run:
        work = work_of(folder, shards, run)
        order = []
        while not work.over:
            task = work.take()
            if task is None:
                clock.sleep(worklist.RECHECK_SECONDS)
                run.beat()
                continue
            order.append((task.shard.id, clock.now >= 1000 + STALE_SECONDS))
            work.finish(task, *commit(store, task))
        assert order == [(shards[1].id, False), (shards[2].id, False), (shards[0].id, True)]


def test_claims_beside_many_killed_runs_read_none_of_them():
    store, shards = CountingStore(), shards_of(200)
    folder, clock = store.folder(), FakeClock()
    machine = FakeMachine("a")
    for number in range(100):
        run = Run(
            folder, "embed", {}, run_id=f"20250101T000000-{number:08x}", clock=clock,
            machine=FakeMachine("a", 100 + number), heartbeats=False,
        ).__enter__()  # fmt: skip
        machine.dead.add(run.record.process)
    for run_id, reads in ((R1, 300), (R2, 100)):  # the first marks them
        with Run(
            folder, "embed", {}, run_id=run_id, clock=clock, machine=machine, heartbeats=False
        ) as run:
            run.sweep([])
            work = work_of(folder, shards, run)
            before = store.requests["get"]
            assert before <= reads + 20
            for _ in range(20):
                task = work.take()
                work.finish(task, *commit(store, task))
            assert store.requests["get"] - before <= 2
        store.reset()
        shards = shards[20:]
