"""Promise 1 on an object store: kill anything at any moment, run the same command again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from conftest import start_embed, until
from test_remote_collection import put_shards
from undisturbed import embed

SLOW = ["fault:slow 0.03"] * 20
SECONDS = 9.0  # about what an undisturbed run takes


def start(s3, to: str) -> subprocess.Popen[str]:
    """`chiasm embed` of the store's shards into the store."""
    return start_embed(f"{s3.root}/shards", "--to", to, "--json", stderr=subprocess.PIPE)


def expected(s3, shards, tmp_path) -> dict[str, bytes]:
    """What stands in the bucket in the end: the bytes of local disk, and nothing beside them."""
    here = embed(shards, str(tmp_path / "here"))
    return {f"there/{name}": here.read_bytes(name) for name in here.list("embeddings")}


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_killed_at_random_moments_and_rerun_at_once_the_bytes_are_the_same(kills, s3, tmp_path):
    shards = put_shards(s3, tmp_path, 4, captions=SLOW)
    rng = random.Random(kills)
    moments = []
    for _ in range(kills):
        process = start(s3, f"{s3.root}/there")
        moment = rng.uniform(0, SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        moments.append(round(moment, 2))
    last = start(s3, f"{s3.root}/there")
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, (moments, errors)
    assert s3.keys("there/embeddings/") == expected(s3, shards, tmp_path), moments
    assert s3.uploads() == []


def test_a_worker_killed_at_a_random_moment_costs_nothing(s3, tmp_path):
    killed = tmp_path / "killed"
    shards = put_shards(s3, tmp_path, 4, captions=[*SLOW[1:], f"fault:until {killed}"])
    run = start(s3, f"{s3.root}/there")
    worker = None
    while worker is None and run.poll() is None:
        time.sleep(0.1)
        worker = next(filter(is_worker, psutil.Process(run.pid).children(recursive=True)), None)
    moment = random.Random(0).uniform(0, 3)
    time.sleep(moment)  # at the latest it waits for what comes next
    assert worker is not None and run.poll() is None
    worker.send_signal(signal.SIGKILL)
    killed.touch()
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, (moment, errors)
    # What Ray tells of the death is no part of the result.
    assert json.loads(out)["shards"] == {"done": 4, "skipped": 0, "failed": [], "damaged": []}
    assert s3.keys("there/embeddings/") == expected(s3, shards, tmp_path), moment
    assert s3.uploads() == []


def test_a_run_that_is_asked_to_stop_leaves_no_upload(s3, tmp_path):
    """What each signal does is tested on local disk, in tests/test_kills.py."""
    stopped = tmp_path / "stopped"
    shards = put_shards(s3, tmp_path, 1)
    shards = put_shards(s3, tmp_path, 3, start=1, captions=[f"fault:until {stopped}"])
    process = start(s3, f"{s3.root}/there")
    until(lambda: s3.keys("there/embeddings/") or process.poll() is not None, 140)
    os.killpg(process.pid, signal.SIGINT)  # as ctrl-C does, which reaches the workers too
    out, errors = process.communicate(timeout=120)
    stopped.touch()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "chiasm: stopped; run the same command again to go on"
    assert out == ""
    left = s3.keys("there/embeddings/")
    assert left.items() <= expected(s3, shards, tmp_path).items()
    assert len(left) == 1, "it was stopped in the middle"
    assert s3.uploads() == []


def is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "EmbedWorker" in " ".join(process.cmdline())
    return False


@pytest.mark.slow
def test_two_runs_at_once_share_the_shards(s3, tmp_path):
    (tmp_path / "there").mkdir()
    shards = put_shards(s3, tmp_path, 6, captions=[f"fault:meet {tmp_path / 'there'}"])
    both = [start(s3, f"{s3.root}/there") for _ in range(2)]
    outputs = [run.communicate(timeout=150) for run in both]
    assert [run.returncode for run in both] == [0, 0], outputs
    done = [json.loads(out)["shards"]["done"] for out, _ in outputs]
    assert sum(done) == 6 and min(done) > 0
    assert s3.keys("there/embeddings/") == expected(s3, shards, tmp_path)
