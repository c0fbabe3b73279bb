"""What tests share: tiny shards made by code, an encoder without a model, one Ray for all."""

from __future__ import annotations

import ast
import functools
import gc
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_encoder
import pytest
from commands import Finished, choose_server, run_command
from faulty_server import Faults, FaultyServer, forwarding_to, running_moto
from hypothesis import settings
from tiny_shards import jpeg as jpeg
from tiny_shards import make_shard

from chiasm.index.segments import verified
from chiasm.pipeline.encoders import ENCODERS
from chiasm.pipeline.records import Dropped, Note, Sample
from chiasm.pipeline.storage import retry, schemes
from chiasm.pipeline.storage.retry import RetrySettings

# Files that take half a minute or more begin first, the longest of them before the others: else the
# last of them runs alone on one core.
LONG_FILES = (
    *("readme", "embed_shards", "train_model", "store_kills", "kills", "cli", "packaging"),
    *("store_cli", "submit", "answer_shards", "compatibility", "two_tower", "train_cli", "demo"),
    *("filter", "model", "train_joint", "stages", "query_sets"),
)
TESTS = Path(__file__).parent
ROOT = TESTS.parent
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Of a Ray that a test starts: no process for each core beforehand, as in jobs/cluster/session.py;
# and workers that need not wait for whatever other tests run beside them.
os.environ.update({"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"})
os.environ.update({"RAY_worker_niceness": "0"})
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; torch is not imported yet
# Hypothesis draws the same examples each time; `--hypothesis-profile default` looks for new ones.
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")


def uncollected(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, without a collection of cycles while it runs."""

    @functools.wraps(function)
    def run(*arguments: object, **named: object) -> Any:
        on = gc.isenabled()
        gc.disable()
        try:
            return function(*arguments, **named)
        finally:
            if on:
                gc.enable()

    return run


# Until 3.11.8 one counter of depth served every tree: a tree made inside another's, by a finaliser
# that a collection calls, ended the outer one as a SystemError (CPython issue 106905). pytest and
# Hypothesis parse sources at any moment.
if sys.version_info < (3, 11, 8):
    ast.parse = uncollected(ast.parse)


class HandClock(threading.local):
    """A clock that goes on where a test says so, in each thread for itself."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something holds; seconds: after which it never will."""
    last = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < last, "it does not come to hold"
        time.sleep(0.01)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that nothing packs, the same for the same arguments."""
    return random.Random(seed).randbytes(size)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {TESTS / f"test_{name}.py": number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported here lives to the end, some 700,000 objects: the collector of cycles, which
    a build calls after each trial, looks at what tests make and not at those."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else extensions report as leaks what is left when the interpreter ends


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    """Three shards of 20 samples."""
    return [make_shard(tmp_path / "shards" / f"s-{n:05d}.tar", 20, seed=n) for n in range(3)]


@pytest.fixture(autouse=True)
def _fake_encoder_is_known(monkeypatch):
    monkeypatch.setitem(ENCODERS, "fake", fake_encoder.load)


@pytest.fixture(autouse=True, scope="session")
def _logs_are_written_elsewhere(tmp_path_factory) -> Iterator[None]:
    """Programs that tests start write no log into the home folder; nor is it remembered there which
    index files were verified."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        remembered = tmp_path_factory.mktemp("verified")
        patch.setattr(verified, "verified_folder", lambda: remembered)
        yield


@pytest.fixture(autouse=True, scope="session")
def _commands_are_alike(_logs_are_written_elsewhere, tmp_path_factory) -> None:
    """What the commands of all tests import reads no home folder, and not that of one test."""
    home = tmp_path_factory.mktemp("home")
    folders = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "HF_HOME": home / "huggingface"}
    choose_server(environment() | {name: str(folder) for name, folder in folders.items()})


def environment() -> dict[str, str]:
    """For programs that tests start: our packages and the family `fake` in every process."""
    path = os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "support", TESTS / "site")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start_embed(
    *arguments: object, stderr: int = subprocess.STDOUT, small_ray: bool = True
) -> subprocess.Popen[str]:
    """`chiasm embed` as a program in a process group of its own, with the encoder `fake`."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "chiasm", "embed", *map(str, arguments)),
            *("--encoder", "fake", "--set", "batch.size=8"),
        ],
        env=environment() | ({"SMALL_RAY": "1"} if small_ray else {}),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def samples(items):
    return [item for item in items if isinstance(item, Sample)]


def dropped(items):
    return [(item.key, item.reason) for item in items if isinstance(item, Dropped)]


def notes(items):
    return [(item.key, item.reason) for item in items if isinstance(item, Note)]


@pytest.fixture
def chiasm():
    """Runs the command line in a process of its own: chiasm("status", path) -> CompletedProcess.
    input: its stdin. cwd: the folder in which it works."""

    def run(*arguments: object, input: str = "", cwd: Path | None = None) -> Finished:
        return run_command([*map(str, arguments)], environment(), input, cwd)

    return run


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for all tests that embed in this process; it takes seconds to start."""
    import ray
    from small_ray import start_small

    start_small()
    before = dict(os.environ)
    os.environ.update(environment())  # inherited by the workers
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=128 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    os.environ.clear()
    os.environ.update(before)
    yield
    ray.shutdown()


@dataclass
class S3:
    """A bucket of the tests' own S3. `server` stands before it and fails as told; `direct` is a
    client behind its back; `root` a prefix of this test alone."""

    server: FaultyServer
    direct: Any
    root: str

    def keys(self, under: str = "") -> dict[str, bytes]:
        """Name below `root` -> content, of all objects whose name begins with `under`."""
        prefix = f"{self.root.removeprefix('s3://bucket/')}/"
        found: dict[str, bytes] = {}
        for page in self.direct.get_paginator("list_objects_v2").paginate(
            Bucket="bucket", Prefix=prefix + under
        ):
            for entry in page.get("Contents", ()):
                body = self.direct.get_object(Bucket="bucket", Key=entry["Key"])["Body"]
                found[entry["Key"].removeprefix(prefix)] = body.read()
        return found

    def uploads(self) -> list[str]:
        """Keys of uploads in parts that nobody completed."""
        uploads = self.direct.list_multipart_uploads(Bucket="bucket")
        prefix = self.root.removeprefix("s3://bucket/")
        return [u["Key"] for u in uploads.get("Uploads", ()) if u["Key"].startswith(prefix)]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[FaultyServer, Any]]:
    """An S3 in a process of its own, and the environment in which this process and those that it
    starts find it. Waits between attempts are short."""
    import boto3

    with running_moto() as url, pytest.MonkeyPatch.context() as patch:
        server = FaultyServer(forwarding_to(url))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setattr(retry, "RETRIES", RetrySettings(5, first_wait=0.005, longest_wait=0.1))
        schemes.S3_STORE.replace(None)  # one of an earlier test knows no credentials
        direct = boto3.client("s3", endpoint_url=url)
        direct.create_bucket(Bucket="bucket")
        yield server, direct
        server.close()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path) -> Iterator[S3]:
    server, direct = s3_server
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.faults = Faults()
    server.seen.clear()
    server.ranges.clear()
    yield S3(server, direct, f"s3://bucket/{secrets.token_hex(4)}")
    server.faults = Faults()


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> tuple[Path, Path]:
    """The folders of two tiny towers, of pictures and of texts."""
    import tiny_towers  # loads transformers, which few tests need

    folder = tmp_path_factory.mktemp("towers")
    return tiny_towers.image_folder(folder / "image"), tiny_towers.text_folder(folder / "text")


@pytest.fixture(scope="session")
def coloured(tmp_path_factory) -> Path:
    """A folder of three shards of what the tiny towers can tell apart."""
    import tiny_towers

    folder = tmp_path_factory.mktemp("coloured")
    for seed in range(3):
        tiny_towers.make_pairs(folder / f"p-{seed:05d}.tar", 120, seed)
    return folder
