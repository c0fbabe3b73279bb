"""Fuzz targets without the engine: each reads what is drawn, and each finds a fault put in."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path

import pytest

from benchmarks import fuzz, fuzz_inputs
from benchmarks.fuzz_targets import TARGETS
from chiasm.index.segments import json_columns, manifest
from chiasm.pipeline.collection import ledger
from chiasm.pipeline.shards import tar
from chiasm.pipeline.storage import schemes, web_files

INPUTS = 300


@pytest.fixture(autouse=True)
def stores_as_before():
    """The target of URLs puts stores of its own in their place."""
    yield
    for store in (schemes.S3_STORE, schemes.GS_STORE, schemes.HF_STORE):
        store.replace(None)


def failures(name: str, folder: Path) -> dict[str, str]:
    """What fails of the inputs that a seed draws, up to the first failure."""
    meter = fuzz.Meter(TARGETS[name].run, folder)
    for data in fuzz.drawn_inputs(TARGETS[name], INPUTS, seed=1):
        meter(data)
        if meter.outcome.failures:
            break
    return meter.outcome.failures


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_reads_whatever_is_drawn(tmp_path, name):
    assert failures(name, tmp_path) == {}


def fault_in_tar(patch):
    """What decompressors raise is not the shard's damage."""
    patch.setattr(tar, "BAD_BYTES", (tarfile.TarError, EOFError))


def fault_in_json(patch):
    """Integers of more than 64 bits count as those that fit."""
    patch.setattr(json_columns, "_EXACT_IN_INT64", 1 << 70)


def fault_in_ledger(patch):
    """Records are taken as they come."""
    patch.setattr(ledger, "read_record", lambda data, *rest, **named: json.loads(data))


def fault_in_index(patch):
    """A damaged manifest is no error of ours."""
    patch.setattr(manifest, "read_record", lambda data, *rest, **named: json.loads(data))


def fault_in_url(patch):
    """Escaped characters are escaped again."""
    patch.setattr(web_files, "quote", lambda url, **named: url.replace("%", "%25"))


FAULTS = {
    "tar": fault_in_tar,
    "json": fault_in_json,
    "ledger": fault_in_ledger,
    "index": fault_in_index,
    "url": fault_in_url,
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_a_fault_that_is_put_in(tmp_path, monkeypatch, name):
    FAULTS[name](monkeypatch)
    assert failures(name, tmp_path)


def test_seeds_fit_and_mutations_are_drawn_by_the_seed_alone():
    for target in TARGETS.values():
        assert max(map(len, target.seeds())) <= target.longest
        first, again = (list(fuzz.drawn_inputs(target, 150, seed=7)) for _ in range(2))
        assert first == again != list(fuzz.drawn_inputs(target, 150, seed=8))


def test_a_mutated_header_has_the_right_checksum():
    rng = random.Random(3)
    plain = fuzz_inputs.tars()[1]
    for _ in range(30):
        block = fuzz_inputs._change_field(rng, plain[:512], lambda data: data[::-1])
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")


def target_at_fault(data: bytes) -> None:
    if data.startswith(b"crash"):
        raise KeyError(data)
    if data == b"memory":
        bytes(b"x" * (80 << 20))
    if data == b"loop":
        while True:
            pass


def test_an_input_fails_by_an_exception_by_time_and_by_memory(tmp_path):
    meter = fuzz.Meter(target_at_fault, tmp_path, seconds=0.3)
    with meter.watching():
        for data in (b"fine", b"crash and more", b"crash", b"crash again", b"memory", b"loop"):
            meter(data)
    outcome = meter.outcome
    kept = {
        place.split(" at ")[0]: Path(file).read_bytes() for place, file in outcome.failures.items()
    }
    assert kept["KeyError"] == b"crash"  # the smallest at that place
    assert kept["too large"] == b"memory" and kept["too slow, TooSlow"] == b"loop"
    assert outcome.inputs == 6 and outcome.largest_megabytes > 64 and outcome.slowest_seconds > 0.3
