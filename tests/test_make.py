"""`make_collection`: one process writes, to the byte, what workers on Ray write."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, make_shard, until
from fake_encoder import FakeEncoder

from chiasm.jobs.config import compose
from chiasm.jobs.embed_shards import EmbedRequest, embed_shards
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import Identity, Run, create_or_check, read_entry, runs
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.embed_summary import summary_error
from chiasm.pipeline.errors import CollectionError, StorageError, UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder, is_temporary
from chiasm.pipeline.worklist import WorkList

SETTINGS = EmbedSettings(batch=BatchSettings(size=8))


def contents(to: Path) -> dict[str, bytes]:
    """The bytes of every Parquet file."""
    return {path.name: path.read_bytes() for path in (to / "embeddings").glob("[!.]*")}


def temporaries(to: Path) -> list[Path]:
    return [path for path in to.rglob("*") if is_temporary(path.name)]


def test_the_bytes_are_those_of_the_workers_on_ray(shards, tmp_path, ray_session):
    summary = make_collection(shards, tmp_path / "here", "fake", settings=SETTINGS)
    assert (summary.samples, summary.rows, summary.done, summary.failed) == (60, 60, 3, [])
    assert summary_error(summary) is None and summary.pairs_per_second > 0
    settings = compose("laptop", ["batch.size=8", "workers.cpus=1"], {"encoder.name": "fake"})
    sources = list_shards([str(shard) for shard in shards])
    embed_shards(EmbedRequest(sources, str(tmp_path / "ray"), settings))
    assert contents(tmp_path / "here") == contents(tmp_path / "ray")


def test_a_second_call_embeds_nothing_anew_and_a_third_adds_a_shard(shards, tmp_path):
    to = tmp_path / "c"
    make_collection(shards[:2], to, FakeEncoder(), settings=SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in (to / "embeddings").iterdir()}
    again = make_collection(str(shards[0].parent), to, FakeEncoder(), settings=SETTINGS)
    assert (again.done, again.skipped, again.rows) == (1, 2, 60)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    records = list(runs(Folder(str(to))))
    assert [(run.command, run.state) for run in records] == [("make_collection", "done")] * 2


def test_a_shard_that_is_committed_though_its_worker_died_counts_as_done(shards, tmp_path):
    """The worker wrote the shard, and died on the next one before its answer arrived."""
    folder, encoder = Folder(str(tmp_path / "c")), FakeEncoder()
    identity = Identity.of(encoder)
    with Run(folder, "test", {}) as run:
        create_or_check(folder, identity, run.id)
        work = WorkList(list_shards([str(shard) for shard in shards[:2]]), run, SETTINGS)
        work.skip_finished(identity)
        first = work.take()
        assert first is not None
        embed_shard(first.shard, encoder, folder, SETTINGS, run_id=run.id)
        work.requeue(first)
        assert (work.done.shards, work.done.rows) == (1, 20)
        second = work.take()
        assert second is not None and second.shard != first.shard
        work.requeue(second)
        embed_shard(second.shard, encoder, folder, SETTINGS, run_id="another run")
        assert work.take() is None and work.over
        assert (work.skipped.shards, work.done.shards) == (1, 1)


def test_a_broken_shard_is_quarantined_with_its_reason_and_the_rest_is_done(shards, tmp_path):
    picture = tmp_path / "picture.tar"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    odd = make_shard(tmp_path / "odd.tar", 4, seed=9, captions=["fault:bug"])
    specs = [picture, odd, shards[0]]
    summary = make_collection(specs, tmp_path / "c", "fake", settings=SETTINGS)
    assert (summary.done, summary.rows, summary.exit_code) == (1, 20, 1)
    reasons = {Path(failed["shard"]).name: failed["reason"] for failed in summary.failed}
    assert "expected a tar" in reasons["picture.tar"]
    assert reasons["odd.tar"] == (
        "3 attempts failed, the last one: ZeroDivisionError: a fault was asked for"
    )
    assert "2 quarantined" in str(summary_error(summary))
    for path, attempts in ((picture, 1), (odd, 3)):
        (shard,) = list_shards([str(path)])
        entry = read_entry(Folder(str(tmp_path / "c")), shard.id)
        assert entry is not None and entry.attempts == attempts and entry.quarantined
    make_shard(picture, 5)
    mended = make_collection([picture], tmp_path / "c", "fake", settings=SETTINGS)
    assert (mended.rows, mended.exit_code) == (5, 0)


def test_losses_have_reasons(tmp_path):
    shard = make_shard(tmp_path / "a.tar", 10, broken=2)
    summary = make_collection(shard, tmp_path / "c", "fake")
    assert (summary.samples, summary.rows, summary.reasons) == (10, 8, {"not_a_picture": 2})
    assert [sample.key for _, sample in summary.dropped_samples] == ["00000008", "00000009"]
    assert "at most 1.00% of samples dropped, found 2 of 10" in str(summary_error(summary))


def test_a_limit_takes_the_first_samples(shards, tmp_path):
    summary = make_collection(shards, tmp_path / "c", "fake", settings=SETTINGS, limit=25)
    assert (summary.samples, summary.done) == (25, 2)


def test_what_would_meet_every_shard_is_raised(shards, tmp_path):
    make_collection(shards[:1], tmp_path / "c", "fake", settings=SETTINGS)
    with pytest.raises(CollectionError, match=r"expected encoder fake .*, found fake:other"):
        make_collection(shards, tmp_path / "c", "fake:other", settings=SETTINGS)
    with pytest.raises(UsageError, match="pocket, hf:ID_OR_DIR"):
        make_collection(shards, tmp_path / "d", "clip")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        make_collection(shards, tmp_path / "file" / "c", "fake")


SLOW = """
import signal, sys, fake_encoder
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.make import make_collection
signal.signal(signal.SIGINT, signal.default_int_handler)  # else as the shell has it
fake_encoder.register()
make_collection(sys.argv[2:], sys.argv[1], "fake", settings=EmbedSettings(batch=BatchSettings(8)))
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_stopped_by_a_signal_and_called_again_the_bytes_are_the_same(signum, tmp_path):
    go_on = tmp_path / "go on"
    specs = [
        make_shard(tmp_path / "a.tar", 16),
        make_shard(tmp_path / "b.tar", 16, 1, ["x"] * 10 + [f"fault:until {go_on}"]),
    ]
    to = tmp_path / "c"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(to), *map(str, specs)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # The first is done, the second waits in its middle.
        until(lambda: contents(to) or process.poll() is not None)
        process.send_signal(signum)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert len(contents(to)) == 1, "the second shard has no final name"
    go_on.touch()
    summary = make_collection(specs, to, "fake", settings=SETTINGS)
    assert (summary.done, summary.skipped, summary.rows) == (1, 1, 32)
    make_collection(specs, tmp_path / "undisturbed", "fake", settings=SETTINGS)
    assert contents(to) == contents(tmp_path / "undisturbed")
    assert temporaries(to) == []
    assert [run.state for run in runs(Folder(str(to)))].count("done") == 1
