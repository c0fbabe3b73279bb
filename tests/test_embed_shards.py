"""The write path under Ray: whole runs, faulty shards, workers that die, runs side by side."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_shard

from chiasm.jobs.cluster import pool
from chiasm.jobs.config import compose
from chiasm.jobs.embed_shards import EmbedRequest, embed_shards
from chiasm.pipeline.collection import embeddings, parquet_name, read_entry, runs
from chiasm.pipeline.embed_summary import EmbedSummary, summary_error
from chiasm.pipeline.errors import ChiasmError, CollectionError, EncoderError, UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder, is_temporary

pytestmark = pytest.mark.usefixtures("ray_session")


def embed(
    specs: list[Path],
    to: Path,
    *assignments: str,
    encoder: str = "fake",
    limit: int | None = None,
    reembed: bool = False,
) -> EmbedSummary:
    sources = list_shards([str(spec) for spec in specs])
    settings = compose(
        "laptop", ["batch.size=8", "workers.cpus=1", *assignments], {"encoder.name": encoder}
    )
    return embed_shards(EmbedRequest(sources, str(to), settings, limit=limit, reembed=reembed))


def test_progress_counts_every_sample_once(shards, tmp_path):
    seen: list[int] = []
    settings = compose("laptop", ["batch.size=8", "workers.cpus=1"], {"encoder.name": "fake"})
    sources = list_shards([str(shard) for shard in shards])
    request = EmbedRequest(sources, str(tmp_path / "c"), settings)
    embed_shards(request, lambda progress: seen.append(progress.samples))
    assert max(seen) <= 60 and seen == sorted(seen)


def test_a_report_of_the_shard_before_counts_for_nothing(shards):
    from chiasm.jobs.cluster.pool import Worker
    from chiasm.jobs.cluster.worker import Report
    from chiasm.pipeline.tasks import Task

    first, second = list_shards([str(shard) for shard in shards[:2]])
    worker = Worker(None, None)
    assert worker.at_work() == (0, 0)
    worker.assigned.append((None, Task(second)))
    worker.report = Report(first.id, samples=20, dropped=1)  # its ledger entry counts already
    assert worker.at_work() == (0, 0)
    worker.report = Report(second.id, samples=8, dropped=1)
    assert worker.at_work() == (8, 1)
    worker.assigned.clear()
    assert worker.at_work() == (0, 0)


def test_shards_are_added_with_the_encoder_of_the_collection(shards, tmp_path):
    embed(shards[:1], tmp_path / "c", encoder="fake:other")
    sources = list_shards([str(shard) for shard in shards])
    lines: list[str] = []
    settings = compose("laptop", ["batch.size=8", "workers.cpus=1"])
    summary = embed_shards(
        EmbedRequest(sources, str(tmp_path / "c"), settings), report=lines.append
    )
    assert (summary.done, summary.skipped, lines) == (2, 1, [])
    files = embeddings(Folder(str(tmp_path / "c")))
    assert {file.footer.encoder for file in files} == {"fake:other"}


def test_rows_made_in_an_earlier_way_are_renewed_all_together(shards, tmp_path):
    """tests/test_encoder_st_queries.py has the rule itself."""
    to = tmp_path / "c"
    make_collection(shards[:2], to, "fake")
    with pytest.raises(CollectionError, match=r"found rows made by earlier prompts, .* --reembed"):
        embed(shards, to, encoder="fake:today")
    summary = embed(shards, to, encoder="fake:today", reembed=True)
    assert (summary.done, summary.skipped) == (3, 0)
    assert {file.footer.encoder for file in embeddings(Folder(str(to)))} == {"fake:today"}


def test_a_new_collection_without_an_encoder_says_what_pocket_knows(tmp_path):
    settings = compose("laptop", ["workers.cpus=1"])
    (shard,) = list_shards([str(make_shard(tmp_path / "a.tar", 2))])
    lines: list[str] = []
    embed_shards(EmbedRequest([shard], str(tmp_path / "c"), settings), report=lines.append)
    (line,) = lines
    assert "pocket, which knows drawn scenes, not photographs" in line


def test_the_lines_of_workers_and_of_the_driver_reach_the_drivers_log(shards, tmp_path, caplog):
    picture = tmp_path / "picture.tar"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    odd = make_shard(tmp_path / "odd.tar", 4, seed=9, captions=["fault:bug"])
    with caplog.at_level("INFO", "chiasm"):
        embed([shards[0], picture, odd], tmp_path / "c")
    lines = caplog.messages
    for begin, times in (
        (f"opened {shards[0]}", 1),
        (f"committed {shards[0]}: 20 rows, 0 dropped, ", 1),
        (f"quarantined {picture}: ", 1),
        (f"retrying {odd}, attempt 2 of 3: ZeroDivisionError: a fault was asked for", 1),
        (f"retrying {odd}, attempt 3 of 3: ", 1),
        (f"quarantined {odd}: 3 attempts failed", 1),
        ("loaded encoder fake on cpu", 1),
        ("worker ready: fake in float32", 1),
    ):
        assert sum(line.startswith(begin) for line in lines) == times, (begin, lines)
    (opened,) = [record for record in caplog.records if record.msg == f"opened {shards[0]}"]
    assert opened.name == "chiasm.pipeline.embed" and "/" in vars(opened)["worker"]


def test_a_worker_that_dies_is_logged(shards, tmp_path, caplog):
    killer = make_shard(tmp_path / "killer.tar", 2, seed=9, captions=["fault:die"])
    with caplog.at_level("INFO", "chiasm"):
        embed([killer], tmp_path / "c", "workers.attempts=1")
    assert any("lost a worker at killer-" in line for line in caplog.messages)


def test_a_worker_that_no_node_can_hold_is_told_and_ends_the_run(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("chiasm.jobs.cluster.pool.PLACEMENT_SECONDS", 0.0)
    with pytest.raises(ChiasmError) as raised:
        embed(shards, tmp_path / "c", "workers.gpus=3")
    assert "a node with what one worker reserves (1 cores, 3 accelerators)" in str(raised.value)
    assert "4 cores, 0 accelerators" in str(raised.value)


def contents(to: Path) -> dict[str, bytes]:
    """The bytes of every Parquet file."""
    return {path.name: path.read_bytes() for path in (to / "embeddings").glob("[!.]*")}


def temporaries(to: Path) -> list[str]:
    return [str(path) for path in to.rglob("*") if is_temporary(path.name)]


def test_a_run_embeds_every_shard_and_a_second_run_none(shards, tmp_path):
    to = tmp_path / "c"
    first = embed(shards, to)
    assert (first.samples, first.rows, first.dropped) == (60, 60, 0)
    assert (first.done, first.skipped, first.failed, first.exit_code) == (3, 0, [], 0)
    assert first.pairs_per_second > 0
    assert {"read", "decode", "encode image", "encode text", "write", "total"} <= set(first.seconds)
    before = contents(to)
    second = embed(shards, to)
    assert (second.samples, second.rows, second.done, second.skipped) == (60, 60, 0, 3)
    assert contents(to) == before
    assert temporaries(to) == []
    assert [run.state for run in runs(Folder(str(to)))] == ["done", "done"]


def test_two_workers_write_the_same_bytes_as_one(shards, tmp_path):
    embed(shards, tmp_path / "one")
    embed(shards, tmp_path / "two", "workers.count=2")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_more_shards_are_added_and_a_changed_one_is_a_new_edition(shards, tmp_path):
    to = tmp_path / "c"
    embed(shards[:2], to)
    editions = {file.shard_id: file.edition for file in embeddings(Folder(str(to)))}
    make_shard(shards[0], 21, seed=0)
    summary = embed(shards, to)
    assert (summary.rows, summary.done, summary.skipped) == (61, 2, 1)
    now = {file.shard_id: file.edition for file in embeddings(Folder(str(to)))}
    changed = [shard for shard, edition in editions.items() if now[shard] != edition]
    assert changed == [list_shards([str(shards[0])])[0].id]


def test_losses_are_counted_and_above_the_limit_they_fail_the_run(tmp_path):
    shard = make_shard(tmp_path / "a.tar", 10, broken=2)
    summary = embed([shard], tmp_path / "c")
    assert (summary.samples, summary.rows, summary.dropped) == (10, 8, 2)
    assert summary.exit_code == 1
    assert "at most 1.00% of samples dropped, found 2 of 10" in str(summary_error(summary))
    assert embed([shard], tmp_path / "c").exit_code == 1, "the same command, the same verdict"
    assert embed([shard], tmp_path / "c", "max_loss=0.2").exit_code == 0
    folder = Folder(str(tmp_path / "c"))
    entry = read_entry(folder, list_shards([str(shard)])[0].id)
    assert [drop.key for drop in entry.dropped] == ["00000008", "00000009"]


def test_a_shard_that_kills_its_worker_each_time_is_quarantined_and_the_rest_is_done(
    shards, tmp_path
):
    killer = make_shard(tmp_path / "killer.tar", 20, seed=9, captions=["fine"] * 12 + ["fault:die"])
    summary = embed([shards[0], killer, *shards[1:]], tmp_path / "c")
    assert (summary.rows, summary.done, summary.exit_code) == (60, 3, 1)
    (failed,) = summary.failed
    assert failed["shard"].endswith("killer.tar")
    assert "3 attempts failed, the last one: its worker died" in failed["reason"]
    entry = read_entry(Folder(str(tmp_path / "c")), list_shards([str(killer)])[0].id)
    assert (entry.attempts, entry.quarantined) == (3, failed["reason"])
    assert temporaries(tmp_path / "c") == []


def test_a_worker_that_dies_once_costs_nothing(shards, tmp_path):
    fault = f"fault:die-once {tmp_path / 'died'}"
    clumsy = make_shard(tmp_path / "clumsy.tar", 20, seed=9, captions=["fine"] * 12 + [fault])
    summary = embed([clumsy, *shards], tmp_path / "c")
    assert (summary.rows, summary.exit_code) == (80, 0)
    embed([clumsy, *shards], tmp_path / "undisturbed")
    assert contents(tmp_path / "c") == contents(tmp_path / "undisturbed")


def test_a_shard_that_hangs_meets_its_deadline(shards, tmp_path, monkeypatch):
    """A minute passes when it hangs, and at no other time."""
    hangs = tmp_path / "hangs"
    clock = SimpleNamespace(monotonic=lambda: 60.0 * hangs.exists(), sleep=time.sleep)
    monkeypatch.setattr(pool, "time", clock)
    slow = make_shard(tmp_path / "slow.tar", 4, seed=9, captions=[f"fault:hang {hangs}"])
    summary = embed(
        [slow, *shards], tmp_path / "c", "workers.deadline_seconds=2", "workers.attempts=1"
    )
    assert (summary.rows, summary.done) == (60, 3)
    assert "it passed its deadline of 2 s" in summary.failed[0]["reason"]


def test_an_unexpected_error_is_tried_again_then_quarantined_with_its_name(shards, tmp_path):
    odd = make_shard(tmp_path / "odd.tar", 4, seed=9, captions=["fault:bug"])
    summary = embed([odd, shards[0]], tmp_path / "c")
    assert summary.done == 1
    reason = summary.failed[0]["reason"]
    assert reason == "3 attempts failed, the last one: ZeroDivisionError: a fault was asked for"


def test_a_shard_that_is_no_tar_is_quarantined_at_once(shards, tmp_path):
    picture = tmp_path / "picture.tar"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    summary = embed([picture, shards[0]], tmp_path / "c")
    assert (summary.done, summary.exit_code) == (1, 1)
    assert "expected a tar" in summary.failed[0]["reason"]
    entry = read_entry(Folder(str(tmp_path / "c")), list_shards([str(picture)])[0].id)
    assert entry.attempts == 1


def test_a_mended_shard_is_taken_up_again(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"not a tar")
    assert embed([path], tmp_path / "c").exit_code == 1
    make_shard(path, 5)
    summary = embed([path], tmp_path / "c")
    assert (summary.rows, summary.exit_code) == (5, 0)


def test_a_limit_takes_the_first_samples_and_a_later_run_the_rest(shards, tmp_path):
    to = tmp_path / "c"
    limited = embed(shards, to, limit=25)
    assert (limited.samples, limited.rows, limited.done) == (25, 25, 2)
    again = embed(shards, to, limit=25)
    assert (again.rows, again.done, again.skipped) == (25, 0, 2)
    full = embed(shards, to)
    assert (full.rows, full.done, full.skipped) == (60, 2, 1)
    embed(shards, tmp_path / "undisturbed")
    assert contents(to) == contents(tmp_path / "undisturbed")


def test_another_encoder_is_refused_and_nothing_is_written(shards, tmp_path):
    to = tmp_path / "c"
    embed(shards[:1], to)
    before = contents(to)
    with pytest.raises(
        CollectionError, match=r"expected encoder fake .*, found fake:other"
    ) as raised:
        embed(shards, to, encoder="fake:other")
    assert (
        "name the weights that made it, as in --encoder fake:DIR, or take another --to folder"
        in str(raised.value)
    )
    assert contents(to) == before


def test_an_unknown_encoder_lists_the_valid_ones(shards, tmp_path):
    with pytest.raises(UsageError, match="pocket, hf:ID_OR_DIR, st:ID_OR_DIR"):
        embed(shards, tmp_path / "c", encoder="clip")


def test_a_model_that_cannot_be_loaded_ends_the_run(shards, tmp_path):
    with pytest.raises(EncoderError):
        embed(shards, tmp_path / "c", encoder=f"pocket:{tmp_path}")
    assert list((tmp_path / "c").rglob("*.json")) == [], "there is no collection yet"


def test_two_runs_into_one_collection_share_the_work(tmp_path):
    (tmp_path / "there").mkdir()
    meet = [f"fault:meet {tmp_path / 'there'}"]  # the first shard of each run, and then no more
    shards = [make_shard(tmp_path / f"s{n}.tar", 16, seed=n, captions=meet) for n in range(6)]
    summaries: list[EmbedSummary] = []

    def run() -> None:
        summaries.append(embed(shards, tmp_path / "c"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [summary.rows for summary in summaries] == [96, 96]
    done = sorted(summary.done for summary in summaries)
    assert done[0] >= 1, "the second run had a share"
    assert sum(done) == 6, "no shard was done twice"
    embed(shards, tmp_path / "undisturbed")
    assert contents(tmp_path / "c") == contents(tmp_path / "undisturbed")


def test_the_parquet_file_bears_its_name_only_when_done(shards, tmp_path):
    folder = Folder(str(tmp_path / "c"))
    embed(shards[:1], tmp_path / "c")
    (shard,) = list_shards([str(shards[0])])
    folder.remove(f"ledger/{shard.id}.json")
    summary = embed(shards[:1], tmp_path / "c")
    assert summary.done == 1
    assert folder.exists(parquet_name(shard.id))


def test_a_worker_that_chose_another_precision_loads_again_in_the_collections(tmp_path):
    from chiasm.jobs.cluster import Pool, Recipe
    from chiasm.pipeline.collection import Identity, Run
    from chiasm.pipeline.pretrained import EncoderSettings
    from chiasm.pipeline.worklist import WorkList

    folder = Folder(str(tmp_path / "c"))
    shards = list_shards([str(make_shard(tmp_path / "a.tar", 4))])
    settings = compose("laptop", ["workers.cpus=1"])
    seen: list[str] = []

    def on_worker_ready(identity: Identity) -> str:
        seen.append(identity.precision)
        work.skip_finished(identity)
        return "bfloat16"

    with Run(folder, "test", {}) as run:
        work = WorkList(shards, run, settings.embedding)
        recipe = Recipe.of_this_driver(
            "fake", EncoderSettings(precision="float32"), folder.url, run.id, settings.embedding
        )
        Pool(recipe, settings.workers, on_worker_ready=on_worker_ready, tick=lambda pool: None).run(
            work
        )
    assert seen == ["float32", "bfloat16"]
    assert (work.done.shards, work.done.rows) == (1, 4)
