"""Runs: who is at work, and what dead runs left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from chiasm.pipeline.collection import (
    THIS_MACHINE,
    Machine,
    ProcessId,
    Run,
    RunRecord,
    processes,
    runs,
)
from chiasm.pipeline.collection.observer import HEARTBEAT_SECONDS, STALE_SECONDS
from chiasm.pipeline.collection.runs import LAPSE_SECONDS
from chiasm.pipeline.collection.uploads import is_dead_upload, owner_of_upload, unclaimed_shard
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.storage.disk import Disk
from chiasm.pipeline.storage.temporaries import run_of_temporary, temporary_of

R1, R2, R3 = (f"20260101T000000-0000000{number}" for number in range(1, 4))
HOLD_A_RUN = """
import sys, time
from chiasm.pipeline.collection.runs import Run
from chiasm.pipeline.storage.folder import Folder
folder = Folder(sys.argv[1])
with Run(folder, "test", {}) as run:
    file = folder.create("embeddings/a.parquet", run.id)
    file.write(b"half")
    file.flush()
    run.claim(["shard-1"])
    print(run.id, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process with a run and a half-written file in the same folder: (process, run id)."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_RUN, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    with process:
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_run_is_told_while_it_lives_and_how_it_ended(tmp_path):
    folder = Folder(str(tmp_path))
    with Run(folder, "embed", {"batch": {"size": 3}}) as run:
        run.claim(["b", "a"])
        (record,) = runs(folder)
        assert (record.id, record.state, record.claimed) == (run.id, "running", ("a", "b"))
        assert record.settings == {"batch": {"size": 3}}
        assert run.others() == []
        assert json.loads(folder.read_bytes(f"runs/{run.id}.json"))["holds"] == ["a", "b"]
        run.finish("done", {"rows": 1})
    (record,) = runs(folder)
    assert (record.state, record.claimed, record.summary) == ("done", (), {"rows": 1})


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError, "failed"), (KeyboardInterrupt, "stopped")]
)
def test_a_run_that_raises_says_so(tmp_path, error, state):
    folder = Folder(str(tmp_path))
    with pytest.raises(error), Run(folder, "embed", {}):
        raise error
    assert [run.state for run in runs(folder)] == [state]


def test_a_live_run_is_left_alone_and_a_killed_one_is_swept(tmp_path, other_run):
    process, run_id = other_run
    folder = Folder(str(tmp_path))
    (temporary,) = folder.list("embeddings")
    assert run_of_temporary(temporary) == run_id
    with Run(folder, "embed", {}) as run:
        assert [(other.id, other.claimed) for other in run.others()] == [(run_id, ("shard-1",))]
        assert run.sweep(["embeddings"]) == []
        assert folder.list("embeddings") == [temporary]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run.others() == []
        assert run.sweep(["", "embeddings", "runs"]) == [temporary]
        assert folder.list("embeddings") == []


def test_files_with_final_names_and_of_the_own_run_are_never_swept(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_whole("embeddings/a.parquet", b"whole")
    with Run(folder, "embed", {}) as run:
        with folder.create("embeddings/b.parquet", run.id) as file:
            file.write(b"half")
            assert run.sweep(["embeddings"]) == []
            file.commit()
        assert folder.list("embeddings") == ["embeddings/a.parquet", "embeddings/b.parquet"]


def test_a_temporary_whose_run_is_unknown_is_swept(tmp_path):
    folder = Folder(str(tmp_path))
    (tmp_path / "ledger").mkdir()
    temporary = temporary_of("ledger/x.json", "20200101T000000-00000000", "0a0a0a0a")
    (tmp_path / temporary).write_bytes(b"half")
    with Run(folder, "embed", {}) as run:
        assert len(run.sweep(["ledger"])) == 1


class FakeClock:
    """A clock that stands still but for `sleep`; `wall` may be set at will."""

    def __init__(self) -> None:
        self.now, self.wall = 1000.0, 1.7e9

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeMachine:
    """A machine of its own, whose processes live until they are killed."""

    def __init__(self, boot_id: str, pid: int = 7) -> None:
        self.process, self.dead = ProcessId(pid, boot_id, "pid:[4026531836]", 12345), set()

    def host(self) -> str:
        return "worker-0"  # as every pod of a set is called on its own node

    def this_process(self) -> ProcessId:
        return self.process

    def alive(self, process: ProcessId) -> bool | None:
        if process.boot_id != self.process.boot_id:
            return None
        return process not in self.dead


def fake_run(folder: Folder, machine: str, clock: FakeClock, run_id: str = "") -> Run:
    return Run(
        folder, "embed", {}, clock=clock, machine=FakeMachine(machine), heartbeats=False,
        run_id=run_id,
    )  # fmt: skip


def half_a_file(folder: Folder, run: Run) -> None:
    """As a run leaves it that is killed."""
    path = folder.path(temporary_of("embeddings/a.parquet", run.id, "0a0a0a0a"))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")


@pytest.mark.parametrize("step", [-3600, -61, -1, 1, 61, 3600])
def test_a_clock_that_is_set_kills_nobody(tmp_path, monkeypatch, step):
    """The time since the boot stays; the boot's time of day, and all heartbeats, move."""
    folder, clock = Folder(str(tmp_path)), FakeClock()
    with Run(folder, "embed", {}, clock=clock, heartbeats=False) as one:
        half_a_file(folder, one)
        clock.wall += step
        monkeypatch.setattr("time.time", lambda: clock.wall)
        with Run(folder, "embed", {}, clock=clock, heartbeats=False) as other:
            assert [seen.id for seen in other.others()] == [one.id]
            assert other.sweep(["embeddings", "runs"]) == []


def test_a_process_is_known_by_boot_namespace_and_start():
    me = THIS_MACHINE.this_process()
    assert me.pid == os.getpid() and me.boot_id and me.start_ticks
    assert THIS_MACHINE.alive(me) is True
    assert THIS_MACHINE.alive(replace(me, start_ticks=me.start_ticks - 1)) is False
    for gone in (2**22 + 1, 2**40, 0, -1):
        assert THIS_MACHINE.alive(replace(me, pid=gone)) is False
    for elsewhere in ({"boot_id": "b"}, {"pid_namespace": "pid:[1]"}, {"boot_id": ""}):
        assert THIS_MACHINE.alive(replace(me, **elsewhere)) is None


@pytest.mark.parametrize(
    ("state", "alive"), [("S", True), ("R", True), ("D", True), ("Z", False), ("X", False)]
)
def test_a_name_with_parentheses_and_a_zombie_are_read_aright(tmp_path, monkeypatch, state, alive):
    me = THIS_MACHINE.this_process()
    for pid, number in (("self", me.pid), ("7", 7)):
        (tmp_path / pid / "ns").mkdir(parents=True)
        fields = [str(field) for field in range(4, 22)] + ["4242", "23"]
        line = f"{number} (a) b (c) {state if pid == '7' else 'R'} {' '.join(fields)}"
        (tmp_path / pid / "stat").write_text(line)
    (tmp_path / "self" / "ns" / "pid").symlink_to("pid:[1]")
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("b\n")
    monkeypatch.setattr(processes, "_PROC", str(tmp_path))
    assert THIS_MACHINE.this_process() == ProcessId(me.pid, "b", "pid:[1]", 4242)
    assert THIS_MACHINE.alive(ProcessId(7, "b", "pid:[1]", 4242)) is alive


def test_without_proc_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_PROC", str(tmp_path))
    me = THIS_MACHINE.this_process()
    assert me == ProcessId(os.getpid()) and THIS_MACHINE.alive(me) is None


@pytest.mark.parametrize("skew", [-3600.0, -61.0, 0.0, 3600.0])
def test_a_run_of_another_machine_is_dead_once_it_stands_still_for_a_minute(tmp_path, skew):
    """Whatever its clock says, and though both machines have one name."""
    folder, clock, theirs = Folder(str(tmp_path)), FakeClock(), FakeClock()
    theirs.wall += skew
    other = fake_run(folder, "b", theirs, R1)
    other.__enter__()
    half_a_file(folder, other)
    with fake_run(folder, "a", clock, R2) as run:
        for _ in range(40):  # it beats: it lives
            assert [seen.id for seen in run.others()] == [R1]
            assert run.sweep(["embeddings"]) == []
            clock.sleep(HEARTBEAT_SECONDS)
            other.beat()
        run.observe()
        clock.sleep(STALE_SECONDS - 0.5)
        run.beat()
        assert run.sweep(["embeddings"]) == []
        clock.sleep(1)
        assert len(run.sweep(["embeddings"])) == 1
        assert run.others() == []
    assert {record.id: record.state for record in runs(folder)}[R1] == "killed"


def test_a_new_process_has_seen_nobody_stand_still(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    other = fake_run(folder, "b", FakeClock(), R1)
    other.__enter__()
    half_a_file(folder, other)
    for number in range(3):
        clock.sleep(10 * STALE_SECONDS)
        with fake_run(folder, "a", clock, f"r2-{number}") as run:
            assert run.sweep(["embeddings"]) == []


def newer(content: bytes) -> bytes:
    return json.dumps(json.loads(content) | {"schema": 2, "holds": {"s": 1}}).encode()


@pytest.mark.parametrize(
    "spoil", [newer, lambda content: b"", lambda content: content[:40], lambda content: b"[" * 9999]
)
def test_a_record_that_cannot_be_read_is_alive_while_young(tmp_path, spoil):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    other = fake_run(folder, "a", clock, R1)
    other.__enter__()
    half_a_file(folder, other)
    name = f"runs/{R1}.json"
    folder.write_whole(name, spoil(folder.read_bytes(name)))
    with fake_run(folder, "b", clock, R2) as run:
        assert [(seen.id, seen.claimed) for seen in run.others()] == [(R1, ())]
        assert run.sweep(["embeddings"]) == []
        clock.sleep(STALE_SECONDS + 1)
        assert len(run.sweep(["embeddings"])) == 1
    assert [record.id for record in runs(folder)] == [R2]


def test_a_record_with_fields_of_a_later_release_is_read(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    with fake_run(folder, "a", clock, R1) as one, fake_run(folder, "a", clock, R2) as run:
        one.claim(["s"])
        name = f"runs/{R1}.json"
        folder.write_whole(
            name, json.dumps(json.loads(folder.read_bytes(name)) | {"x": 3}).encode()
        )
        assert [seen.claimed for seen in run.others()] == [("s",)]


def test_a_record_of_another_run_or_of_a_newer_version_is_not_believed():
    record, name = RunRecord(R1, "embed", "host", 1, 0.0, 0.0), f"runs/{R1}.json"
    assert RunRecord.from_json(record.to_json(), name) == record
    newer = record.to_json().replace(b'"schema": 1', b'"schema": 2')
    for data, found in ((replace(record, id=R2).to_json(), R2), (newer, "2")):
        with pytest.raises(CollectionError, match=f"{name}: .*{found}"):
            RunRecord.from_json(data, name)


def test_a_disk_that_fails_at_one_read_kills_nobody(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    real = Folder.read_bytes
    with Run(folder, "embed", {}) as one, Run(folder, "embed", {}) as run:
        half_a_file(folder, one)

        def stale(self: Folder, name: str) -> bytes:
            if one.id in name:
                raise StorageError(name, found="Stale file handle")
            return real(self, name)

        monkeypatch.setattr(Folder, "read_bytes", stale)
        assert run.sweep(["embeddings"]) == []
        monkeypatch.undo()


def test_records_of_earlier_versions_are_read(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    fields = {
        "id": R1, "command": "embed", "host": "h/pid:[4026531836]", "pid": os.getpid(),
        "process_started": 1.0, "started": 1.0, "heartbeat": 2.0, "state": "running",
        "holds": ["s"], "settings": {}, "summary": {},
    }  # fmt: skip
    folder.write_whole(f"runs/{R1}.json", json.dumps(fields).encode())
    with fake_run(folder, "a", clock, R2) as run:
        assert [seen.claimed for seen in run.others()] == [("s",)], "perhaps it lives elsewhere"
        clock.sleep(STALE_SECONDS + 1)
        assert run.others() == []


def test_a_dead_run_is_marked_and_never_read_again(tmp_path, monkeypatch):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    machine = FakeMachine("a")
    for number in range(5):
        dead = Run(
            folder, "embed", {}, clock=clock, machine=FakeMachine("a", 100 + number),
            heartbeats=False,
        ).__enter__()  # fmt: skip
        machine.dead.add(dead.record.process)
    reads: list[str] = []
    real = Folder.read_bytes
    monkeypatch.setattr(Folder, "read_bytes", lambda f, name: reads.append(name) or real(f, name))
    with Run(folder, "embed", {}, clock=clock, machine=machine, heartbeats=False) as run:
        assert run.others() == []
        assert len(reads) == 5
        assert run.others() == [] and len(reads) == 5
        before = clock.now
        run.sweep(["embeddings"])
        assert clock.now > before, "their workers get the time to exit"
        reads.clear()
        assert run.others() == []
        run.sweep(["embeddings"])
        assert len(reads) == 5, "the marks, once"
    states = sorted(record.state for record in runs(folder))
    assert states == ["failed", *["killed"] * 5]


def test_a_run_that_comes_back_is_not_overwritten_by_a_mark(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    other = fake_run(folder, "b", clock, R1)
    other.__enter__()
    with fake_run(folder, "a", clock, R2) as run:
        run.observe()
        clock.sleep(STALE_SECONDS + 1)
        assert run.others() == [], "found dead"
        other.beat()
        run.mark_dead()
        assert [seen.id for seen in run.others()] == [R1], "and alive again"


def test_a_run_out_of_reach_for_long_looks_before_it_goes_on(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    other = fake_run(folder, "b", clock, R1)
    other.__enter__()
    other.claim(["s"])
    clock.sleep(LAPSE_SECONDS)
    assert other.lapses == 0
    other.confirm()
    assert other.lapses == 1, "whoever rests on its claims has to claim anew"
    with fake_run(folder, "a", clock, R2) as run:
        run.observe()
        clock.sleep(STALE_SECONDS + 1)
        run.sweep(["embeddings"])
    for act in (other.confirm, other.beat, lambda: other.claim(["t"]), other.confirm):
        with pytest.raises(CollectionError, match=rf"run {R1} .* run the same command again"):
            act()
    assert {record.id: record.state for record in runs(folder)}[R1] == "killed"


def test_a_mark_outlasts_a_record_that_was_being_written(tmp_path):
    """As where a process stopped between its look for a mark and its write, and went on later."""
    folder, clock = Folder(str(tmp_path)), FakeClock()
    other = fake_run(folder, "b", clock, R1)
    other.__enter__()
    with fake_run(folder, "a", clock, R2) as run:
        run.observe()
        clock.sleep(STALE_SECONDS + 1)
        run.sweep([])
    folder.write_whole(f"runs/{R1}.json", other.record.to_json())
    with pytest.raises(CollectionError, match="another run that has taken over its work"):
        other.beat()


def test_a_run_that_came_back_before_its_mark_is_told(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    other = fake_run(folder, "b", clock, R1)
    other.__enter__()
    with fake_run(folder, "a", clock, R2) as run:
        run.observe()
        clock.sleep(STALE_SECONDS + 1)
        assert run.others() == []
        other.beat()
        assert run.mark_dead() == {R1} and not folder.exists(f"runs/{R1}.killed")


def test_a_mark_is_noticed_by_the_next_heartbeat_even_if_no_time_passed_here(tmp_path):
    """As on a machine that slept: its monotonic clock stood still."""
    folder, clock, asleep = Folder(str(tmp_path)), FakeClock(), FakeClock()
    other = fake_run(folder, "b", asleep, R1)
    other.__enter__()
    with fake_run(folder, "a", clock, R2) as run:
        run.observe()
        clock.sleep(STALE_SECONDS + 1)
        run.sweep([])
    with pytest.raises(CollectionError, match="another run that has taken over its work"):
        other.beat()


def test_verdicts_are_waited_for(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    dead, alive = fake_run(folder, "b", clock, R1), fake_run(folder, "c", clock, R2)
    dead.__enter__()
    alive.__enter__()

    def sleep(seconds: float) -> None:
        clock.now += seconds
        alive.beat()

    clock.sleep = sleep
    with fake_run(folder, "a", clock, R3) as run:
        assert run.wait_for_verdicts([R2, "never there"]) == {R2}
        assert clock.now < 1000 + 2 * HEARTBEAT_SECONDS
        assert run.wait_for_verdicts([R1, R2]) == {R2}
        assert clock.now >= 1000 + STALE_SECONDS


@pytest.mark.parametrize(
    "record",
    [
        {"pid": 10**40}, {"pid": -1}, {"start_ticks": -5}, {"heartbeat": 1e308},
        {"holds": ["\x1b[31m", "\ud800"]}, {"host": "\n"}, {"id": "another"}, {"state": 3},
    ],
)  # fmt: skip
def test_hostile_records_are_no_traceback(tmp_path, record):
    folder = Folder(str(tmp_path))
    me = THIS_MACHINE.this_process()
    base = json.loads(
        RunRecord(
            R1, "embed", "h", 1, 1.0, 1.0, boot_id=me.boot_id, pid_namespace=me.pid_namespace
        ).to_json()
    )
    folder.write_whole(f"runs/{R1}.json", json.dumps(base | record).encode())
    with Run(folder, "embed", {}, clock=FakeClock(), heartbeats=False) as run:
        run.sweep(["embeddings"])
        run.others()


@pytest.mark.parametrize("state", ["paused", "", "RUNNING"])
def test_a_state_that_is_not_known_is_no_end(tmp_path, state):
    folder = Folder(str(tmp_path))
    with Run(folder, "embed", {}) as other, Run(folder, "embed", {}) as run:
        for process, expected in ((other.record, [R1]), (replace(other.record, pid=1), [])):
            record = replace(process, id=R1, state=state)
            folder.write_whole(f"runs/{R1}.json", record.to_json())
            others = [seen.id for seen in run.others() if seen.id == R1]
            assert others == expected


def test_a_process_of_another_time_namespace_is_not_judged_by_its_ticks():
    me = THIS_MACHINE.this_process()
    assert THIS_MACHINE.alive(replace(me, time_namespace="time:[1]")) is None
    assert THIS_MACHINE.alive(me) is True


def test_files_that_are_no_records_are_no_runs_and_old_damage_costs_no_wait(tmp_path, caplog):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    for name in ("notes.json", "r1.json", f"{R1} (copy).json"):
        folder.write_whole(f"runs/{name}", b'{"my": "notes"}')
    folder.write_whole(f"runs/{R1}.json", b'{"id": ')
    folder.write_whole(f"runs/{R2}.json", b'{"id": ')
    os.utime(tmp_path / "runs" / f"{R1}.json", (0, 0))
    with fake_run(folder, "a", clock, R3) as run:
        assert [seen.id for seen in run.others()] == [R2], "which is young"
        began = clock.monotonic()
        assert run.wait_for_verdicts([R1]) == set() and clock.monotonic() == began
        assert caplog.text == ""
        assert run.wait_for_verdicts([R1, R2]) == set()
        assert clock.monotonic() - began >= STALE_SECONDS
        assert f"waiting up to 60 s to see which live: {R2} of an unknown machine" in caplog.text
        run.mark_dead()
    with fake_run(folder, "a", clock, "20260101T000000-00000009") as run:
        assert run.others() == [], "the mark spares the next run that wait"


def test_a_sweep_leaves_the_first_record_of_a_run_that_begins(tmp_path, monkeypatch):
    folder, real = Folder(str(tmp_path)), Disk.rename
    with Run(folder, "embed", {}) as run:
        late = Run(folder, "embed", {})

        def swept_before(self: Disk, old: str, new: str) -> None:
            if late.id in old:
                run.sweep(["runs"])
            real(self, old, new)

        monkeypatch.setattr(Disk, "rename", swept_before)
        with late:
            assert [other.id for other in run.others()] == [late.id]


@pytest.mark.parametrize("seconds", [-61.0, 61.0])
def test_the_first_record_of_a_run_killed_while_it_began_is_swept(tmp_path, seconds):
    folder = Folder(str(tmp_path))
    temporary = temporary_of(f"runs/{R1}.json", R1, "0a0a0a0a")
    (tmp_path / "runs").mkdir()
    (tmp_path / temporary).write_bytes(b"half")
    with Run(folder, "embed", {}, heartbeats=False) as run:
        assert run.sweep(["runs"]) == [], "it may begin just now"
        own = (tmp_path / "runs" / f"{run.id}.json").stat().st_mtime
        os.utime(tmp_path / temporary, (own + seconds, own + seconds))
        assert run.sweep(["runs"]) == [temporary]


def test_a_run_that_begins_during_a_sweep_loses_nothing(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    late = Run(folder, "embed", {})
    real = Folder.list

    def begins(self: Folder, prefix: str = "") -> list[str]:
        found = real(self, prefix)
        if prefix == "ledger":
            late.__enter__()
            (tmp_path / "ledger").mkdir()
            (tmp_path / temporary_of("ledger/a.json", late.id, "0a0a0a0a")).touch()
        return found

    with Run(folder, "embed", {}) as run:
        monkeypatch.setattr(Folder, "list", begins)
        assert run.sweep(["ledger"]) == []
    assert (tmp_path / temporary_of("ledger/a.json", late.id, "0a0a0a0a")).exists()
    late.__exit__(None, None, None)


class OddMachine(Machine):
    """Shows what a test says of processes. files: in /proc, an exception in place of one that
    cannot be read. probed: what looking for a process raises."""

    def __init__(self, stat: str | Exception, probed: Exception | None = None) -> None:
        boot, me = "sys/kernel/random/boot_id", f"7 (a) R {' '.join('1' * 18)} 42 0"
        self.files, self.probed = {boot: "b\n", "self/stat": me, "9/stat": stat}, probed

    def read(self, name: str) -> str:
        found = self.files[name]
        if isinstance(found, Exception):
            raise found
        return found

    def link(self, name: str) -> str:
        return "pid:[1]" if name.endswith("pid") else "time:[1]"

    def pid(self) -> int:
        return 7

    def probe(self, pid: int) -> None:
        if self.probed is not None:
            raise self.probed


@pytest.mark.parametrize(
    ("stat", "probed", "alive"),
    [
        (f"9 (a) S {' '.join('1' * 18)} 5 0", None, True),
        (f"9 (a) S {' '.join('1' * 18)} 6 0", None, False),
        ("9 (a) S 1 2", None, None),
        ("none", None, None),
        (PermissionError(), None, None),
        (FileNotFoundError(), ProcessLookupError(), False),
        (FileNotFoundError(), OverflowError(), False),
        (FileNotFoundError(), PermissionError(), None),
        (ProcessLookupError(), None, False),
    ],
)
def test_a_process_that_proc_does_not_show_may_be_anothers(stat, probed, alive):
    machine = OddMachine(stat, probed)
    assert machine.this_process() == ProcessId(7, "b", "pid:[1]", 42, "time:[1]")
    assert machine.alive(ProcessId(9, "b", "pid:[1]", 5, "time:[1]")) is alive


@pytest.mark.parametrize(
    "stat", [f"8 (a) R {' '.join('1' * 18)} 42 0", "7 (a) R 1", "?", OSError()]
)
def test_of_a_proc_that_shows_another_process_nothing_is_believed(stat):
    machine = OddMachine("")
    machine.files["self/stat"] = stat
    assert machine.this_process() == ProcessId(7)


def test_a_missed_heartbeat_is_no_failure_and_a_mark_ends_them(tmp_path, monkeypatch):
    with fake_run(Folder(str(tmp_path)), "a", FakeClock(), R1) as run:
        failures = [StorageError("a", found="b"), None, CollectionError("a", found="killed"), None]
        waits: list[float] = []

        def beat() -> None:
            if failure := failures.pop(0):
                raise failure

        monkeypatch.setattr(run, "beat", beat)
        monkeypatch.setattr(run._stop, "wait", lambda seconds: bool(waits.append(seconds)))
        run._send_heartbeats()
        assert len(failures) == 1 and waits == [HEARTBEAT_SECONDS] * 3


def test_a_record_that_goes_between_the_listing_and_its_reading_is_none(tmp_path, monkeypatch):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    fake_run(folder, "b", clock, R1).__enter__()
    fake_run(folder, "c", clock, R3).__enter__()
    real = Folder.read_bytes

    def goes(self: Folder, name: str) -> bytes:
        (tmp_path / f"runs/{R1}.json").unlink(missing_ok=True)
        return real(self, name)

    with fake_run(folder, "a", clock, R2) as run:
        monkeypatch.setattr(Folder, "read_bytes", goes)
        assert [seen.id for seen in run.others()] == [R3]


def test_a_temporary_that_cannot_be_removed_keeps_nobody_from_the_rest(tmp_path, caplog):
    names = [temporary_of(f"ledger/{base}", R1, "0a0a0a0a") for base in "ab"]
    (tmp_path / "real").mkdir()
    (tmp_path / "ledger").symlink_to("real")
    (tmp_path / "runs").mkdir()
    for name in (names[0], names[1].replace("ledger", "runs")):
        (tmp_path / name).touch()
    with fake_run(Folder(str(tmp_path)), "a", FakeClock()) as run:
        removed = run.sweep(["ledger", "runs"])
    assert removed == [names[1].replace("ledger", "runs")] and "not removed: " in caplog.text
    assert (tmp_path / names[0]).exists()


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("embeddings/a-0123456789.parquet", "a-0123456789"),
        ("ledger/a-0123456789.json", "a-0123456789"),
        ("runs/20260101T000000-01234567.json", "20260101T000000-01234567"),
        ("summaries/20260101T000000-01234567-0003.json", "20260101T000000-01234567"),
        ("index/segments/20260101T000000-01234567-3/image.faiss", "20260101T000000-01234567"),
        ("index/trained/20260101T000000-01234567/image.faiss", "20260101T000000-01234567"),
        ("embeddings/s~_a-0123456789.parquet", "_a-0123456789"),
        ("a-0123456789.tar", None),
        ("collection.json", None),
        ("other/a-0123456789.parquet", None),
        ("embeddings/a-0123456789.parquet.part", None),
    ],
)
def test_an_upload_is_dead_if_its_owner_is_known_and_works_no_more(name, owner):
    """owner: None for names that tell none."""
    assert owner_of_upload(name) == owner
    assert is_dead_upload(name, {owner or ""}, {"x"}) is (owner is not None)
    assert not is_dead_upload(name, {"x"}, set()), "of nobody who is known"
    assert not is_dead_upload(name, {owner or ""}, {owner or ""})
    assert unclaimed_shard(name) == ("a-0123456789" if name.endswith(".tar") else None)


def test_uploads_of_copies_scores_and_answers_say_which_shard_they_are_of():
    for name in ("{}.tar", "{}.scores.jsonl", "shards/{}.tar", "answers/{}.parquet"):
        assert unclaimed_shard(name.format("a-0123456789")) == "a-0123456789"
    assert unclaimed_shard("answers/s~_a-0123456789.parquet") == "_a-0123456789"
    for name in (
        "answers.json",
        "answers/a.parquet",
        "x/a-0123456789.tar",
        "answers/a-0123456789.tar",
    ):
        assert unclaimed_shard(name) is None


@pytest.mark.parametrize("pid", [0, -1])
def test_no_group_of_processes_is_looked_for(monkeypatch, pid):
    """To the system the ids 0 and -1 mean many processes, and a signal of 0 alone asks only."""
    machine = OddMachine("", PermissionError())
    machine.files[f"{pid}/stat"] = FileNotFoundError()
    assert machine.alive(ProcessId(pid, "b", "pid:[1]", 5, "time:[1]")) is False
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(processes.os, "kill", lambda *arguments: signals.append(arguments))
    THIS_MACHINE.probe(7)
    assert signals == [(7, 0)]


def test_activity_changes_with_each_look_while_another_run_may_write(tmp_path):
    folder, clock = Folder(str(tmp_path)), FakeClock()
    with fake_run(folder, "a", clock, R1) as run:

        def changes() -> bool:
            before = run.activity
            run.observe()
            return run.activity != before

        assert not changes() and not changes()
        with fake_run(folder, "b", clock, R2):
            assert changes() and changes()
        assert changes(), "what it wrote before its end"
        assert not changes() and not changes()


def test_a_full_disk_hides_no_error_and_is_one_where_there_is_no_other(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("a", found="no space left on the disk")

    folder = Folder(str(tmp_path))
    with pytest.raises(KeyError, match="why it ends"), fake_run(folder, "a", FakeClock()):
        monkeypatch.setattr(Folder, "write_whole", full)
        raise KeyError("why it ends")
    monkeypatch.undo()
    with pytest.raises(StorageError, match="no space"), fake_run(folder, "a", FakeClock()):
        monkeypatch.setattr(Folder, "write_whole", full)
