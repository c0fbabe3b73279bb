"""Runs: who is at work, and what dead runs left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from chiasm.pipeline.collection import Run, process_alive, runs
from chiasm.pipeline.collection.runs import STALE_SECONDS
from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.storage.local import run_of_temporary, temporary_of

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
        assert record.alive()
        assert run.others() == []
        assert json.loads(folder.read_bytes(f"runs/{run.id}.json"))["holds"] == ["a", "b"]
        run.finish("done", {"rows": 1})
    (record,) = runs(folder)
    assert (record.state, record.claimed, record.summary) == ("done", (), {"rows": 1})
    assert not record.alive()


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
    temporary = temporary_of("ledger/x.json", "20200101T000000-00000000", "0a")
    (tmp_path / temporary).write_bytes(b"half")
    with Run(folder, "embed", {}) as run:
        assert len(run.sweep(["ledger"])) == 1


def test_a_run_elsewhere_lives_by_its_heartbeat(tmp_path):
    folder = Folder(str(tmp_path))
    with Run(folder, "embed", {}) as run:
        pass
    elsewhere = replace(run.record, host="elsewhere", state="running", heartbeat=1000.0)
    assert elsewhere.alive(now=1000.0 + STALE_SECONDS - 1)
    assert not elsewhere.alive(now=1000.0 + STALE_SECONDS + 1)


def test_a_pid_with_a_new_owner_is_not_the_old_process():
    me = psutil.Process()
    assert process_alive(me.pid, me.create_time())
    assert not process_alive(me.pid, me.create_time() - 100)
    assert not process_alive(2**22 + 1, time.time())


def test_a_record_that_cannot_be_read_is_passed_over(tmp_path):
    folder = Folder(str(tmp_path))
    with Run(folder, "embed", {}) as run:
        folder.write_whole("runs/odd.json", json.dumps({"id": "odd"}).encode())
        assert [record.id for record in runs(folder)] == [run.id]


def test_a_run_whose_first_temporary_is_swept_away_begins_all_the_same(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    real, tries = Folder.write_whole, []

    def swept_once(self: Folder, name: str, data: bytes, run_id: str = "") -> None:
        tries.append(name)
        if len(tries) == 1:
            raise StorageError(name, expected="a usable file", found="nothing there")
        real(self, name, data, run_id)

    monkeypatch.setattr(Folder, "write_whole", swept_once)
    with Run(folder, "embed", {}) as run:
        assert [found.id for found in runs(folder)] == [run.id]


def test_a_run_that_begins_during_a_sweep_loses_nothing(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    late = Run(folder, "embed", {})
    real = Folder.list

    def begins(self: Folder, prefix: str = "") -> list[str]:
        found = real(self, prefix)
        if prefix == "ledger":
            late.__enter__()
            (tmp_path / "ledger").mkdir()
            (tmp_path / temporary_of("ledger/a.json", late.id, "0a")).touch()
        return found

    with Run(folder, "embed", {}) as run:
        monkeypatch.setattr(Folder, "list", begins)
        assert run.sweep(["ledger"]) == []
    assert (tmp_path / temporary_of("ledger/a.json", late.id, "0a")).exists()
    late.__exit__(None, None, None)
