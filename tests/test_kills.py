"""Promise 1: kill anything at any moment, run the same command again: nothing lost or twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, make_shard, start_embed, until
from undisturbed import embed

from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import is_temporary

SLOW = ["fault:slow 0.02"] * 40


def start(shards: list[Path], to: Path, small_ray: bool = True) -> subprocess.Popen[str]:
    return start_embed(*shards, "--to", to, small_ray=small_ray)


def contents(to: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (to / "embeddings").glob("[!.]*")}


def temporaries(to: Path) -> list[Path]:
    return [path for path in to.rglob("*") if is_temporary(path.name)]


@pytest.fixture(scope="module")
def slow_shards(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    return [make_shard(folder / f"s{n}.tar", 40, seed=n, captions=SLOW) for n in range(6)]


@pytest.fixture(scope="module")
def undisturbed(slow_shards, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """What one run leaves that nobody disturbs, and how long it took."""
    to = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    process = start(slow_shards, to)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return contents(to), time.monotonic() - began


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_killed_at_random_moments_and_rerun_at_once_the_bytes_are_the_same(
    kills, slow_shards, undisturbed, tmp_path
):
    expected, seconds = undisturbed
    rng = random.Random(kills)
    moments = []
    for _ in range(kills):
        process = start(slow_shards, tmp_path)
        moment = rng.uniform(0, seconds)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        moments.append(round(moment, 2))
    last = start(slow_shards, tmp_path)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, (moments, output)
    assert contents(tmp_path) == expected, moments
    assert temporaries(tmp_path) == [], moments


@pytest.mark.parametrize(
    ("signum", "code", "send"),
    [
        pytest.param(signal.SIGTERM, 143, os.kill, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, os.killpg, id="ctrl-C"),  # reaches the whole group
    ],
)
def test_a_run_that_is_asked_to_stop_stops_cleanly(signum, code, send, tmp_path):
    stopped, to = tmp_path / "stopped", tmp_path / "c"
    waits = [f"fault:until {stopped}"]
    shards = [
        make_shard(tmp_path / f"s{n}.tar", 20, seed=n, captions=waits if n else ())
        for n in range(3)
    ]
    process = start(shards, to)
    until(lambda: contents(to) or process.poll() is not None, 140)  # Ray may be started twice
    send(process.pid, signum)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert output.splitlines()[-1] == "chiasm: stopped; run the same command again to go on"
    assert len(contents(to)) == 1, "it was stopped in the middle"
    assert temporaries(to) == []
    stopped.touch()
    embed(list_shards(list(map(str, shards))), str(tmp_path / "undisturbed"))
    assert contents(to).items() <= contents(tmp_path / "undisturbed").items()


@pytest.mark.parametrize("moment", [0.0, 1.0])
def test_asked_to_stop_while_ray_starts_it_says_so_and_leaves_nothing(
    moment, slow_shards, tmp_path
):
    process = start(slow_shards, tmp_path, small_ray=False)
    ours = psutil.Process(process.pid)
    while process.poll() is None and not any("gcs_server" in c.name() for c in ours.children(True)):
        time.sleep(0.01)
    time.sleep(moment)
    started = ours.children(True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 143, output
    assert output.splitlines()[-1] == "chiasm: stopped; run the same command again to go on"
    assert temporaries(tmp_path) == []
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []


SLOW_TO_END = """
import os, signal, time
from chiasm.jobs.cluster.session import connected
from chiasm.jobs.config import WorkerSettings
from chiasm.jobs.signals import STOPPING, Stopped

STOPPING.install()
try:
    with STOPPING.deferred(), connected(None, WorkerSettings()):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(4)
except Stopped:
    print("stopped in its own time")
"""


def test_a_run_that_takes_its_time_to_stop_is_not_aborted():
    """Ray's C++ code sets an alarm of 3 s where a SIGTERM comes to it."""
    ran = subprocess.run(
        [sys.executable, "-c", SLOW_TO_END], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert (ran.returncode, ran.stdout) == (0, "stopped in its own time\n"), ran.stderr
