"""Tars that are cut or changed anywhere, in every dialect: what was whole before is kept, what is
lost is told in one line, and nothing else is raised."""

import io
import tarfile
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile_tars import DIALECTS, FORMATS, by_tarfile

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Dropped, Note, Sample
from chiasm.pipeline.shards import (
    DROP_REASONS,
    NOTE_REASONS,
    ReadSettings,
    list_shards,
    read_samples,
)

# Names longer than a header holds: extended headers stand before most members.
LONG = [(f"{'d' * 80}/{n * 9}{n}.{ext}", b"x" * 700) for n in "123" for ext in ("jpg", "txt")]
WHOLE = {**DIALECTS, "gnu, long": by_tarfile(FORMATS["gnu"], *LONG)}
WHOLE["pax, long"] = by_tarfile(FORMATS["pax"], *((f"é{name}", data) for name, data in LONG))


@cache
def ends(dialect: str) -> list[int]:
    """Behind which byte each sample is whole, as tarfile itself reads them."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE[dialect])) as tar:
        members = [info.offset_data + info.size for info in tar]
    return members[1::2]


@cache
def boundaries(dialect: str) -> set[int]:
    """Bytes between the end of a member and the next header, or the end mark."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE[dialect])) as tar:
        behind = [info.offset_data + info.size for info in tar]
    padding = {at for end in behind for at in range(end, -(-end // 512) * 512 + 1)}
    last = -(-behind[-1] // 512) * 512
    return padding | set(range(last, last + 512))


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "a.tar"

    def run(data: bytes):
        path.write_bytes(data)
        [shard] = list_shards([str(path)])
        return list(read_samples(shard, ReadSettings(max_member_bytes=1 << 20)))

    return run


def check_cut(read, dialect: str, cut: int) -> None:
    data = WHOLE[dialect]
    whole = [item for item in read(data) if isinstance(item, Sample)]
    kept = sum(end <= cut for end in ends(dialect))
    try:
        items = read(data[:cut])
    except SourceError as error:
        assert cut < 512 and ": expected a tar of samples, found a" in str(error)
        return
    marked = cut >= -(-ends(dialect)[-1] // 512) * 512 + 512  # one block of zeros is a mark
    between = not marked and cut in boundaries(dialect)
    found = [item for item in items if isinstance(item, Sample)]
    assert found[:kept] == whole[:kept], cut
    # Behind a whole member a cut cannot be told from a tar without end mark: a note, no loss.
    for one in found[kept:]:
        assert between and (one.key, one.picture) == (whole[kept].key, whole[kept].picture)
    drops = [item for item in items if isinstance(item, Dropped)]
    noted = [item.reason for item in items if isinstance(item, Note) and item.key == ""]
    assert [(item.stage, item.reason) for item in drops] == [("read", "truncated")] * (
        not marked and not between
    ), cut
    assert noted == ["no_end_mark"] * between and (not drops or items[-1] is drops[0])


@pytest.mark.parametrize("dialect", WHOLE)
def test_a_tar_cut_at_any_block_keeps_what_is_whole(read, dialect):
    for cut in range(0, len(WHOLE[dialect]) + 1, 512):
        if cut:
            check_cut(read, dialect, cut)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_tar_cut_at_any_byte_keeps_what_is_whole(read, data):
    dialect = data.draw(st.sampled_from(sorted(WHOLE)))
    check_cut(read, dialect, data.draw(st.integers(1, ends(dialect)[-1] + 1024)))


CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(WHOLE)), CHANGES, st.booleans(), st.floats(0, 1))
def test_a_tar_changed_anywhere_is_samples_and_reasons(read, dialect, changes, mend, length):
    """`mend`: with the checksums set right again, so that what was changed is believed."""
    whole = WHOLE[dialect][: ends(dialect)[-1] + 1024]
    data = bytearray(whole)
    for place, byte in changes:
        at = int(place * len(data))
        data[at] = byte
        block = data[at // 512 * 512 :][:512]
        if mend and len(block) == 512:
            block[148:156] = b" " * 8
            data[at // 512 * 512 :][:512] = block
            start = at // 512 * 512
            data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    del data[max(1, int(length * len(data))) :]
    try:
        items = read(bytes(data))
    except SourceError as error:
        assert "expected a tar of samples" in str(error)
        return
    assert {item.reason for item in items if isinstance(item, Dropped)} <= set(DROP_REASONS)
    assert {item.reason for item in items if isinstance(item, Note)} <= set(NOTE_REASONS)
    assert items
