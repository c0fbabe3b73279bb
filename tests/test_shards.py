"""Lists of shards, their ids, one member again, and the writer."""

import gzip
import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from chiasm.pipeline.errors import SourceError, UsageError
from chiasm.pipeline.records import Place
from chiasm.pipeline.shards import (
    list_shards,
    read_member,
    shard_id,
    split_member_name,
    write_shard,
)
from chiasm.pipeline.storage import canonical_url


@pytest.fixture
def data(tmp_path):
    """Files of the kinds that lists must tell apart; each shard holds its own name."""
    names = ["a-00.tar", "a-01.tar", "a-02.tar.gz", "a-03.tgz", "a-04.tar.zst", "B.TAR"]
    names += [
        "notes.txt",
        ".hidden.tar",
        "sub/c.tar",
        "sub/deep/d.tar",
        "odd{1,2}[x].tar",
        "e/x.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(data, *specs, stdin=None):
    base = canonical_url(str(data)) + "/"
    return [shard.url.removeprefix(base) for shard in list_shards(specs, stdin)]


FOLDER = ["B.TAR", "a-00.tar", "a-01.tar", "a-02.tar.gz", "a-03.tgz", "a-04.tar.zst"]
ODD = "odd%7B1%2C2%7D%5Bx%5D.tar"


def test_every_way_to_name_shards(data):
    assert names(data, f"{data}/a-01.tar", f"file://{data}/a-00.tar") == ["a-01.tar", "a-00.tar"]
    assert names(data, f"{data}/a-{{00..01}}.tar") == ["a-00.tar", "a-01.tar"]
    assert names(data, f"{data}/{{sub/c,a-00}}.tar") == ["sub/c.tar", "a-00.tar"]
    assert names(data, f"{data}/a-*.tar") == ["a-00.tar", "a-01.tar"]
    assert names(data, f"{data}/sub/**/*.tar") == ["sub/c.tar", "sub/deep/d.tar"]
    assert names(data, f"{data}/{{a-0[01],sub/*}}.tar") == ["a-00.tar", "a-01.tar", "sub/c.tar"]
    assert names(data, str(data)) == [*FOLDER, ODD]
    assert names(data, f"{data}/") == names(data, f"{data}/{{,sub/..}}") == [*FOLDER, ODD]


def test_a_file_that_exists_is_taken_as_it_stands(data):
    assert names(data, f"{data}/odd{{1,2}}[x].tar") == [ODD]
    assert names(data, f"{data}/notes.txt") == ["notes.txt"]  # what it is, reading will tell


def test_no_shard_twice_and_the_given_order(data):
    (data / "link.tar").symlink_to("a-01.tar")
    specs = [f"{data}/a-01.tar", f"{data}/link.tar", f"{data}/sub/../a-01.tar", f"{data}/a-0?.tar"]
    assert names(data, *specs) == ["a-01.tar", "a-00.tar"]


def test_a_dash_reads_specs_from_stdin(data):
    stdin = io.StringIO(f"\n{data}/sub/c.tar\n  {data}/a-{{00,01}}.tar  \n\n")
    assert names(data, f"{data}/a-01.tar", "-", stdin=stdin) == [
        "a-01.tar",
        "sub/c.tar",
        "a-00.tar",
    ]
    with pytest.raises(UsageError, match="expected shards on standard input"):
        list_shards(["-"])


def test_size_and_version_tell_a_changed_shard(data):
    [before] = list_shards([f"{data}/a-00.tar"])
    assert before.size == 8 and before.version == str((data / "a-00.tar").stat().st_mtime_ns)
    (data / "a-00.tar").write_bytes(b"changed")
    [after] = list_shards([f"{data}/a-00.tar"])
    assert (after.url, after.id) == (before.url, before.id)
    assert (after.size, after.version) != (before.size, before.version)


@pytest.mark.parametrize(
    "spec, error, text",
    [
        ("no.tar", SourceError, "/no.tar: expected a file to read, found nothing there; check"),
        ("a-{00..03}.tar", SourceError, "/a-02.tar: expected a file to read, found nothing there"),
        ("x*.tar", SourceError, "/x*.tar: expected shards that match, found none; check the path"),
        ("s?b", SourceError, "/s?b: expected shards that match, found 1 folders only"),
        ("e", SourceError, "/e: expected a folder with shards (*.tar, *.tar.gz, *.tgz, *.tar.zst)"),
        ("e", SourceError, "found 1 other files; quote a glob such as 'folder/**/*.tar'"),
        ("{x}.tar", SourceError, "/{x}.tar: expected a shard or a range of shards, found nothing"),
        (
            "{x.tar",
            UsageError,
            "/{x.tar: expected a range such as {00000..00012}, found Unbalanced",
        ),
    ],
)
def test_a_spec_that_names_nothing_says_so(data, spec, error, text):
    with pytest.raises(error) as caught:
        list_shards([f"{data}/{spec}"])
    assert text in str(caught.value)


def test_shard_ids_are_stable():
    # Changing these would re-embed every collection.
    for url in ("file:///data/00000.tar", "file:///other/00000.tar"):
        assert shard_id(url) == f"00000-{hashlib.blake2b(url.encode(), digest_size=5).hexdigest()}"
    assert shard_id("file:///d/a.b_c-1.tar.gz").startswith("a.b_c-1-")
    assert shard_id("file:///d/%E5%9B%BE%20x.TAR.ZST").startswith("__x-")
    assert shard_id("file:///d/x.tgz").startswith("x-") and shard_id("file:///d/x").startswith("x-")


STEMS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1)


@given(st.lists(STEMS, min_size=2, unique=True))
def test_shard_ids_are_unique_and_fit_for_file_names(stems):
    urls = [canonical_url(f"/d/{stem}.tar") for stem in stems]
    ids = [shard_id(url) for url in dict.fromkeys(urls)]
    assert len(set(ids)) == len(ids)
    for name in ids:
        assert name.isascii() and "/" not in name and len(name) < 200
        assert name.replace("-", "").replace(".", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "name, split",
    [
        ("a.jpg", ("a", "jpg")),
        ("d.1/a.b.JPG", ("d.1/a", "b.jpg")),
        ("./a.jpg", ("./a", "jpg")),
        ("a.", ("a", "")),
        ("a/.jpg", None),  # hidden; webdataset takes it for a member of `a/`
        ("a", None),
        (".jpg", None),
        ("__meta__/a.jpg", None),
        ("__a.b__", None),
        ("__a.jpg", ("__a", "jpg")),
    ],
)
def test_names_split_where_webdataset_splits_them(name, split):
    assert split_member_name(name) == split


def test_what_is_written_is_read_by_webdataset(tmp_path):
    samples = [
        {"__key__": f"train/{n:03}", "jpg": bytes([n] * n), "txt": f"第 {n}", "json": {"n": n}}
        for n in range(3)
    ]
    shard = write_shard(tmp_path / "new" / "a.tar", samples)
    with open(tmp_path / "new" / "a.tar", "rb") as stream:
        read = list(group_by_keys(tar_file_expander([{"url": "a", "stream": stream}])))
    assert [(s["__key__"], s["jpg"], s["txt"].decode()) for s in read] == [
        (s["__key__"], s["jpg"], s["txt"]) for s in samples
    ]
    again = write_shard(tmp_path / "b.tar", samples)
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "new" / "a.tar").read_bytes()
    assert shard.size == again.size and shard.id != again.id


@pytest.mark.parametrize("key", ["a.b", "d/a.b", "__a__/b", ""])
def test_a_key_that_would_read_back_as_another_is_refused(tmp_path, key):
    samples = [{"__key__": "good", "txt": "x"}, {"__key__": key, "txt": "x"}]
    with pytest.raises(ValueError, match="expected no dot"):
        write_shard(tmp_path / "a.tar", samples)
    assert list(tmp_path.iterdir()) == []


def test_a_member_is_read_again(tmp_path):
    members = {f"{n}.bin": bytes([n]) * (n * 700) for n in range(5)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
        offsets = {info.name: info.offset_data for info in tar}
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    for name, content in members.items():
        plain = Place(name, offsets[name], len(content))
        assert read_member(canonical_url(str(tmp_path / "a.tar")), plain) == content
        streamed = Place(name, None, len(content))
        assert read_member(canonical_url(str(tmp_path / "a.tar.gz")), streamed) == content


def test_a_member_that_is_gone_is_an_error(tmp_path):
    write_shard(tmp_path / "a.tar", [{"__key__": "a", "txt": "x" * 2000}])
    url = canonical_url(str(tmp_path / "a.tar"))
    with pytest.raises(
        SourceError, match=r"a\.tar: expected the member b\.txt, found no such member"
    ):
        read_member(url, Place("b.txt", None, 2000))
    with pytest.raises(SourceError, match="expected 9999999 bytes from byte 512 on"):
        read_member(url, Place("a.txt", 512, 9999999))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1500])
    with pytest.raises(SourceError, match="found a shard that is truncated before it"):
        read_member(canonical_url(str(tmp_path / "cut.tar")), Place("a.txt", None, 2000))
