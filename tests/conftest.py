"""What tests share: tiny shards made by code, an encoder without a model, one Ray for all."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import fake_encoder
import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parent
ROOT = TESTS.parent
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; torch is not imported yet


def jpeg(rng: random.Random, side: int = 32) -> bytes:
    """A picture of coloured blocks, as a JPEG."""
    pixels = np.frombuffer(rng.randbytes(48), np.uint8).reshape(4, 4, 3)
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def make_shard(
    path: Path, samples: int, seed: int = 0, captions: Sequence[str] = (), broken: int = 0
) -> Path:
    """A tar of pictures with captions and json, the same for the same arguments.

    captions: in place of the first samples' own. broken: so many pictures at the end are none.
    """
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            told = captions[number] if number < len(captions) else f"picture {number} of {seed}"
            members = {
                "jpg": jpeg(rng) if number < samples - broken else b"not a picture",
                "txt": told.encode(),
                "json": json.dumps({"number": number, "even": number % 2 == 0}).encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{seed:03d}{number:05d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    """Three shards of 20 samples."""
    return [make_shard(tmp_path / "shards" / f"s-{n:05d}.tar", 20, seed=n) for n in range(3)]


@pytest.fixture(autouse=True)
def _fake_encoder_is_known(monkeypatch):
    monkeypatch.setitem(fake_encoder.FAMILIES, "fake", "fake_encoder")


def environment() -> dict[str, str]:
    """For programs that tests start: our packages and the family `fake` in every process."""
    path = os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "site")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def chiasm():
    """Runs the command line as a program: chiasm("status", path) -> CompletedProcess."""

    def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs", *map(str, arguments)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for all tests that embed in this process; it takes seconds to start."""
    import ray

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
