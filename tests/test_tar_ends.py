"""What zeros in a tar mean: its end, another archive that was joined to it, or members that are
lost; wherever a compressed shard is cut, what is missing is told."""

import gzip
import io
import tarfile
from collections import Counter

import pyarrow as pa
import pytest
from conftest import dropped, notes, samples
from tars import tar_bytes

from chiasm.pipeline.embed_summary import reading_hints
from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Dropped, Note
from chiasm.pipeline.shards import NOTE_REASONS, ReadSettings, list_shards, read_samples

RECORD = tarfile.RECORDSIZE


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """read(bytes of a shard) -> all that read_samples yields."""
    path = tmp_path_factory.mktemp("ends") / "a.tar"

    def run(data: bytes):
        path.write_bytes(data)
        [shard] = list_shards([str(path)])
        items = list(read_samples(shard, ReadSettings()))
        assert {i.reason for i in items if isinstance(i, Note)} <= set(NOTE_REASONS)
        return items

    return run


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKS = [bytes, gzip.compress, zstd]
JPEG = b"\xff\xd8\xff" + b"J" * 2500 + b"\xff\xd9"


def members(*numbers: int) -> dict[str, bytes]:
    return {f"{n:04d}.{ext}": data for n in numbers
            for ext, data in (("jpg", JPEG), ("txt", b"caption %d" % n * 60))}  # fmt: skip


def tar(*numbers: int) -> bytes:
    return tar_bytes(members(*numbers))


def bare(*numbers: int) -> bytes:
    """As programs write it that fill no record."""
    data = tar(*numbers)
    return data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512 + 1024)


def place(data: bytes, name: str) -> tuple[int, int, int]:
    """The offsets of a member's header, its first byte and what follows it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        info = archive.getmember(name)
    return info.offset, info.offset_data, info.offset_data + -(-info.size // 512) * 512


def zeroed(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(end - start) + data[end:]


def keys(items) -> list[str]:
    return [s.key for s in samples(items) if s.picture and s.captions]


# --- joined ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("write", [tar, bare])
def test_joined_tars_give_all_their_rows(read, pack, write):
    parts = [write(0, 1), write(2), write(3, 4)]
    for data in (b"".join(map(pack, parts)), pack(b"".join(parts))):
        items = read(data)
        assert keys(items) == [f"{n:04d}" for n in range(5)] and dropped(items) == []
        assert notes(items) == [("", "archives_joined")]
    offsets = [s.sources["image"].place.offset for s in samples(items)]
    assert pack is not bytes or [data[at : at + 3] for at in offsets] == [JPEG[:3]] * 5


def test_what_one_archive_says_of_all_its_members_is_not_said_of_the_next(read):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT,
                      pax_headers={"path": "x.jpg"}) as archive:  # fmt: skip
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    assert keys(read(buffer.getvalue() + tar(1, 2))) == ["0001", "0002"]


def test_an_empty_tar_before_another_hides_nothing(read):
    items = read(bytes(RECORD) + tar(0, 1))
    assert keys(items) == ["0000", "0001"] and notes(items) == [("", "archives_joined")]


def test_members_apart_are_found_across_joined_tars(read):
    names = members(0, 1, 2)
    halves = [tar_bytes({n: d for n, d in names.items() if n.endswith(e)}) for e in ("jpg", "txt")]
    for pack in PACKS:
        assert keys(read(pack(halves[0] + halves[1]))) == ["0000", "0001", "0002"]


def test_of_very_many_joined_tars_few_are_told(read):
    items = read(b"".join(tar(n) for n in range(50)))
    assert len(keys(items)) == 50
    assert items[-1] == Note(
        "", "archives_joined",
        "others begin at byte " + ", ".join(str(n * RECORD) for n in range(1, 6)))  # fmt: skip


# --- lost -----------------------------------------------------------------------------------------

WHOLE = tar(*range(6))
HOLES = {
    "a header": (place(WHOLE, "0002.jpg")[0], place(WHOLE, "0002.jpg")[1]),
    "the header of a caption": place(WHOLE, "0002.txt")[:2],
    "the last header": place(WHOLE, "0005.txt")[:2],
    "the last header and what follows": (place(WHOLE, "0005.txt")[0],
                                         place(WHOLE, "0005.txt")[1] + 512),
    "the first header": (0, 512),
    "a member": place(WHOLE, "0002.jpg")[::2],
    "a caption": place(WHOLE, "0002.txt")[::2],
    "a sample": (place(WHOLE, "0002.jpg")[0], place(WHOLE, "0002.txt")[2]),
    "parts of two": (place(WHOLE, "0002.jpg")[1] + 512, place(WHOLE, "0003.jpg")[1] + 512),
    "the end of a picture": (place(WHOLE, "0002.jpg")[1] + 512, place(WHOLE, "0002.txt")[0]),
    "a picture's end and a caption": (
        place(WHOLE, "0002.jpg")[1] + 512, place(WHOLE, "0002.txt")[2]),
    "the end of a caption, and more": (
        place(WHOLE, "0002.txt")[1] + 100, place(WHOLE, "0003.jpg")[1] + 512),
}  # fmt: skip


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("hole", HOLES)
def test_members_that_zeros_took_the_place_of_are_damage(read, pack, hole):
    items = read(pack(zeroed(WHOLE, *HOLES[hole])))
    found = dropped(items)
    if hole == "the end of a picture":  # no header is lost: it is the decoder that refuses it
        assert keys(items) == [f"{n:04d}" for n in range(6)] and found == []
        return
    assert len(found) == 1 and found[0][1] in ("damaged", "truncated")
    assert isinstance(items[-1], Dropped) and items[-1].detail
    gone = {
        "the first header": "0000",
        "the last header": "0005",
        "the last header and what follows": "0005",
    }.get(hole, "0002")
    before = [f"{n:04d}" for n in range(int(gone))]
    assert keys(items)[: len(before)] == before and gone not in keys(items)


def test_a_hole_with_a_header_behind_it_is_read_over(read):
    for hole in ("a member", "a caption", "a sample"):
        items = read(zeroed(WHOLE, *HOLES[hole]))
        assert keys(items) == ["0000", "0001", "0003", "0004", "0005"]
        assert dropped(items) == [("", "damaged")] and "zeros in place of members" in str(items[-1])


def test_a_shard_whose_middle_was_never_fetched_is_damage(read):
    whole = tar(*range(40))
    for start in range(512, len(whole) // 2, 4096):
        items = read(zeroed(whole, start, start + (len(whole) // 3) // 4096 * 4096))
        assert [reason for _, reason in dropped(items)] in (["damaged"], ["truncated"]), start


def test_the_beginning_that_was_never_fetched_is_damage(read):
    for end in (4096, 5000, 6144):
        items = read(zeroed(WHOLE, 0, end))
        assert dropped(items) == [("", "damaged")] and "0000" not in keys(items)
    with pytest.raises(SourceError, match="an empty tar"):
        read(bytes(50_000))


# --- the end --------------------------------------------------------------------------------------


def test_a_download_whose_rest_is_zeros_is_told(read):
    whole = tar(*range(30))
    headers = [place(whole, name)[0] for name in members(*range(10, 14))]
    inside = Counter()
    for end in range(headers[0], headers[-1], 111):
        items = read(zeroed(whole, end, len(whole)))
        if dropped(items):
            assert [reason for _, reason in dropped(items)] in (["truncated"], ["damaged"])
            assert keys(items) == [f"{n:04d}" for n in range(len(keys(items)))]
            assert all(s.picture == JPEG for s in samples(items))
            assert not any("\0" in text for s in samples(items) for text in s.captions)
        else:  # behind a whole member: nothing is known to be missing
            assert notes(items)[-1] == ("", "zeros_after_end")
        inside[bool(dropped(items))] += 1
    assert inside[True] > 5 * inside[False] > 0


@pytest.mark.parametrize("name", ["0009.txt", "0009.jpg"])
def test_a_last_member_that_runs_out_in_zeros_is_cut(read, name):
    """However few the zeros behind it are."""
    files = members(*range(10))
    data = files[name]
    for left in (0, 1, len(data) // 2, len(data) - 40):
        rest = {n: d for n, d in files.items() if n != name}
        items = read(tar_bytes({**rest, name: data[:left].ljust(len(data), b"\0")}))
        assert dropped(items) == [("0009", "truncated")]
        assert items[-1].detail == f"{name} ends in {len(data) - left:,} zeros, and zeros follow it"
        assert "0009" not in [s.key for s in samples(items)]


def test_zeros_that_are_content_are_no_cut(read):
    texts = {n: d + b"\0" * 9 * n.endswith("txt") for n, d in members(*range(10)).items()}
    assert dropped(read(tar_bytes(texts))) == []  # every text ends so
    padded = {n: d + b"\0" * 512 * n.endswith("jpg") for n, d in members(1).items()}
    assert dropped(read(tar_bytes(dict(reversed(padded.items()))))) == []  # behind its end
    assert dropped(read(tar_bytes({"a.txt": "a é".encode("utf-16"), "a.jpg": JPEG}))) == []
    assert dropped(read(tar_bytes({"a.jpg": JPEG, "a.txt": "a cat".encode("utf-32")}))) == []
    bitmap = {"a.txt": b"x", "a.bmp": b"BM of black pixels" + bytes(3000)}
    assert dropped(read(tar_bytes(bitmap))) == []


@pytest.mark.parametrize("record", [512, RECORD, 1 << 16, 1 << 18, 1 << 20])
def test_zeros_up_to_the_end_of_a_record_are_no_news(read, record):
    data = bare(0, 1)
    assert notes(read(data + bytes(-len(data) % record))) == []


@pytest.mark.parametrize("zeros", [2 * RECORD, 100_000, (1 << 20) + RECORD, 3 << 20])
def test_more_zeros_are_noted(read, zeros):
    for pack in PACKS:
        items = read(pack(tar(0, 1) + bytes(zeros)))
        assert keys(items) == ["0000", "0001"] and notes(items) == [("", "zeros_after_end")]


def test_a_scattered_shard_whose_last_caption_is_cut_has_no_such_row(read):
    files = members(*range(10))
    names = sorted(files, key=lambda name: name.endswith("txt"))
    last = files["0009.txt"]
    cut = {name: files[name] for name in names} | {"0009.txt": last[:9].ljust(len(last), b"\0")}
    for pack in PACKS:
        items = read(pack(tar_bytes(cut)))
        assert [s.key for s in samples(items)] == [f"{n:04d}" for n in range(9)]
        assert dropped(items) == [("0009", "truncated")]


def test_a_shard_cut_inside_its_first_header_is_damaged(read):
    for data in (tar(0), tar_bytes({"d/图.jpg": b"x"}), tar_bytes({"x" * 120 + ".jpg": b"x"})):
        for end in (101, 130, 156, 200, 263, 400, 511):
            assert read(data[:end]) == [Dropped("", "read", "truncated", "truncated header")]
    for text in (b"a list of pictures", b"0000.jpg", b"{}", b"\x89PNG\r\n\0\0", b"<html>" * 80):
        with pytest.raises(SourceError, match=r"a file that begins with|a PNG"):
            read(text)


# --- compressed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_compressed_shard_cut_anywhere_is_told(read, pack):
    data = tar(*range(4))
    packed = pack(data)
    for cut in range(4, len(packed)):
        items = read(packed[:cut])
        found, noted = dropped(items), notes(items)
        assert found or noted, cut
        assert [reason for _, reason in found] in ([], ["truncated"]), cut
        if not found:  # every member had been read
            assert keys(items) == [f"{n:04d}" for n in range(4)]
            assert noted in ([("", "cut_after_end")], [("", "no_end_mark")])
        assert keys(items) == [f"{n:04d}" for n in range(len(keys(items)))]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_joined_compressed_shards_cut_anywhere_in_the_second_are_told(read, pack):
    first, second = pack(tar(0, 1)), pack(tar(2, 3))
    for cut in range(1, len(second)):
        items = read(first + second[:cut])
        assert keys(items)[:2] == ["0000", "0001"]
        if not dropped(items):  # behind a tar
            assert len(keys(items)) == 4 or not samples(items)[2:]
            assert ("", "cut_after_end") in notes(items), cut


# --- what is said ---------------------------------------------------------------------------------


def test_odd_ends_are_in_the_summary_with_what_to_do():
    notes = Counter(
        zeros_after_end=2, data_after_end=1, archives_joined=3, cut_after_end=4, no_end_mark=5
    )
    details = {"zeros_after_end": "file:///a.tar: 9 zeros follow"}
    hints = reading_hints(1000, notes, details)
    assert [hint.split(" shards ")[0] for hint in hints] == ["2", "1", "4 compressed", "3"]
    assert "(file:///a.tar: 9 zeros follow); their downloads may be cut: compare size" in hints[0]


def test_compressed_shards_alone_are_to_be_unpacked(read):
    again = tar(0, 1) + tar(0, 1)
    for pack, advice in ((bytes, False), (gzip.compress, True)):
        late = [i.detail for i in read(pack(again)) if getattr(i, "reason", "") == "late_member"]
        [hint] = reading_hints(1, Counter(late_member=2), {"late_member": late[0]})
        assert late[0].startswith("0000.jpg") and ("unpack" in hint) == advice
