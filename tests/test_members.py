"""Members of modalities beyond pictures and texts: the catalog places them, and a hit reads them
back from its shard."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_encoder import WIDTH, embed_arrays
from conftest import jpeg, make_shard, noise
from fake_encoder import DIM, FakeEncoder

from chiasm.index import Query, Result, build_index, open_collection
from chiasm.index.build import build
from chiasm.index.segments import copied_columns
from chiasm.index.verify import check
from chiasm.index.verify.index import check_index
from chiasm.pipeline.collection import Collection, Identity, create_or_check
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import Input
from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.records import COLUMNS
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.verify import check_shards

AXES = np.eye(4, 6, dtype=np.float32) + 0.1
ARRAYS = [AXES[0], AXES[1], None, b"no array", AXES[3]]  # kept: all but the fourth
PLACE = ("member", "offset", "size")


def hits_of(path: Path, width: int = WIDTH) -> dict[str, Result]:
    """Every row that has a text, by key, from a search by a vector: no encoder is loaded."""
    query = Query(vector=np.arange(1.0, width + 1), column="text", k=100)
    (answer,) = open_collection(path).search_many([query])
    as_json = json.loads(json.dumps(answer.as_json()))["results"]
    for hit, record in zip(answer, as_json, strict=True):
        assert record == {**hit.as_json(), "reranked": False}
    return {hit.key: hit for hit in answer}


def findings(path: Path) -> list[str]:
    """Where the live generation differs from the Parquet files."""
    return [str(finding) for finding in check_index(Collection.open(str(path)), Counter())]


def members_of(path: Path, extension: str) -> dict[str, tuple[bytes, dict]]:
    """What the tar itself says: by key, a member's bytes, and its name, offset and size."""
    found = {}
    with tarfile.open(path) as tar:
        for info in tar:
            file, (key, _, end) = tar.extractfile(info), info.name.partition(".")
            assert file is not None
            if end == extension:
                offset = None if path.suffix == ".gz" else info.offset_data
                found[key] = (
                    file.read(),
                    dict(zip(PLACE, (info.name, offset, info.size), strict=True)),
                )
    return found


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_hit_reads_its_member_as_the_tar_has_it(tmp_path, name):
    embed_arrays(tmp_path, ARRAYS, name)
    build_index(tmp_path / "c", columns=["text"])  # the places do not need the vectors
    hits, truth = hits_of(tmp_path / "c"), members_of(tmp_path / name, "npy")
    assert sorted(hits) == ["00000", "00001", "00002", "00004"]
    for key in ("00000", "00001", "00004"):
        hit, (data, place) = hits[key], truth[key]
        assert hit.data("array") == data
        assert np.load(io.BytesIO(hit.data("array"))).tolist() == ARRAYS[int(key)].tolist()
        assert list(hit.members) == ["array"]
        assert hit.members["array"].sha256 == hashlib.sha256(data).hexdigest()
        assert hit.as_json()["members"] == {"array": place}
        assert hit.place is hit.sha256 is None
        assert [hit.as_json()[name] for name in PLACE] == [None] * 3


def test_a_row_without_a_member_says_so(tmp_path):
    embed_arrays(tmp_path, ARRAYS)
    build_index(tmp_path / "c")
    hits = hits_of(tmp_path / "c")
    alone, other = hits["00002"], hits["00000"]
    assert alone.members == {} and "members" not in alone.as_json()
    for hit, modality, message in [
        (alone, "array", "expected a member of array, found a row without it"),
        (alone, "wave", "expected a member of wave, found none"),
        (other, "wave", "expected a member of wave, found only array"),
        (other, "text", "expected a member of text, found only array; its texts are in captions"),
        (alone, "text", "expected a member of text, found none; its texts are in captions"),
        (other, "image", "expected a picture, found a row without a picture"),
    ]:
        with pytest.raises(SourceError) as error:
            hit.data(modality)
        assert str(error.value) == f"{hit.id}: {message}"


def test_a_changed_or_missing_shard_gives_no_wrong_member(tmp_path):
    embed_arrays(tmp_path, ARRAYS)
    build_index(tmp_path / "c")
    hit, shard = hits_of(tmp_path / "c")["00001"], tmp_path / "a.tar"
    end = hit.members["array"].place.offset + hit.members["array"].place.size
    data = shard.read_bytes()
    shard.write_bytes(data[: end - 1] + b"X" + data[end:])
    with pytest.raises(SourceError, match=r"expected the bytes of 00001\.npy that were embedded"):
        hit.data("array")
    shard.unlink()
    with pytest.raises(SourceError, match="expected a file to read, found nothing there"):
        hit.data("array")


def test_an_index_built_without_these_places_is_searched_as_before(tmp_path, monkeypatch):
    embed_arrays(tmp_path, ARRAYS)
    with monkeypatch.context() as patch:
        patch.setattr(build, "copied_columns", lambda columns: copied_columns(COLUMNS))
        build_index(tmp_path / "c")
    hits = hits_of(tmp_path / "c")
    assert len(hits) == 4 and findings(tmp_path / "c") == []
    for hit in hits.values():
        assert hit.members == {} and list(hit.as_json())[-1] == "size"
    with pytest.raises(SourceError, match="none in the index; an index of an earlier version lack"):
        hits["00000"].data("array")
    with pytest.raises(SourceError, match="found none; its texts are in captions"):
        hits["00000"].data("text")
    build_index(tmp_path / "c")
    assert len(hits_of(tmp_path / "c")["00000"].data("array")) > 0


@pytest.mark.parametrize("name", ["sha256", "member", "offset", "size"])
def test_check_compares_the_places_with_the_embeddings(tmp_path, name):
    _, _, file = embed_arrays(tmp_path, ARRAYS)
    build_index(tmp_path / "c")
    assert findings(tmp_path / "c") == []
    parquet = tmp_path / "c" / "embeddings" / f"{file.shard_id}.parquet"
    footer, table = pq.read_metadata(parquet).metadata[b"chiasm"], pq.read_table(parquet)
    place = table.schema.get_field_index(f"array_{name}")
    moved = pa.concat_arrays([table[place].combine_chunks()[1:], table[place].chunk(0)[:1]])
    table = table.set_column(place, table.schema.field(place), moved)
    pq.write_table(table.replace_schema_metadata({"chiasm": footer}), parquet)
    (found,) = findings(tmp_path / "c")
    assert f"column array_{name} of the catalog differs from the embeddings" in found


def rewrite(path: Path, column: str, change: Callable[[pa.ChunkedArray], pa.Array]) -> None:
    """One column of a Parquet file changed, the rest and the footer as they were."""
    footer, table = pq.read_metadata(path).metadata[b"chiasm"], pq.read_table(path)
    place = table.schema.get_field_index(column)
    table = table.set_column(place, table.schema.field(place), change(table[column]))
    pq.write_table(table.replace_schema_metadata({"chiasm": footer}), path)


def first_is_null(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays([pa.nulls(1, column.type), column.combine_chunks()[1:]])


def first_is_long(column: pa.ChunkedArray) -> pa.Array:
    long = pa.array([[np.float16(3)] * WIDTH], column.type)
    return pa.concat_arrays([long, column.combine_chunks()[1:]])


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("array", first_is_null, "array vector is null in 1 rows, the first 0"),
        ("array", first_is_long, "1 array vectors without unit norm, the first in row 0: "),
        ("joint", first_is_null, "joint vector is null in 1 rows, the first 0"),
        ("array_sha256", first_is_null, "array_sha256 is null in 1 rows, the first 0"),
        ("array_size", first_is_null, "array_size is null in 1 rows, the first 0"),
    ],
)
def test_check_reads_the_rows_of_another_modality(tmp_path, column, change, message):
    _, _, file = embed_arrays(tmp_path, ARRAYS)
    collection = Collection.open(str(tmp_path / "c"))
    assert list(check_shards(collection, Counter())) == []
    rewrite(tmp_path / "c" / "embeddings" / f"{file.shard_id}.parquet", column, change)
    (found,) = check_shards(collection, Counter())
    assert message in str(found)


class NoJoint(FakeEncoder):
    """Pictures and texts alone: its collection is of schema 1, and the column joint is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = dict.fromkeys(("image", "text"), DIM)


def test_a_column_that_the_encoder_does_not_fill_is_no_damage(tmp_path):
    make_shard(tmp_path / "a.tar", 3)
    make_collection(tmp_path / "a.tar", tmp_path / "c", NoJoint())
    build_index(tmp_path / "c")
    assert check(tmp_path / "c").findings == []


def all_null(column: pa.ChunkedArray) -> pa.Array:
    return pa.nulls(len(column), column.type)


@pytest.mark.parametrize("column", ["array", "text"])
def test_a_column_that_is_lost_in_a_whole_collection_is_damage(tmp_path, column):
    _, _, file = embed_arrays(tmp_path, ARRAYS)
    rewrite(tmp_path / "c" / "embeddings" / f"{file.shard_id}.parquet", column, all_null)
    (found,) = check_shards(Collection.open(str(tmp_path / "c")), Counter())
    assert f"{column} vector is null in" in str(found)


@pytest.mark.parametrize("gone", [["text"], ["image", "text", "joint"]])
def test_a_column_of_pictures_or_texts_that_is_lost_in_a_shard_is_damage(tmp_path, gone):
    """In all shards, where nothing is left: some are not filled by every encoder."""
    shards = [make_shard(tmp_path / f"{n}.tar", 3, n) for n in range(2)]
    make_collection(shards, tmp_path / "c", FakeEncoder())
    files = sorted((tmp_path / "c" / "embeddings").iterdir())
    for path in files[: len(gone)]:
        for column in gone:
            rewrite(path, column, all_null)
    found = [
        str(finding) for finding in check_shards(Collection.open(str(tmp_path / "c")), Counter())
    ]
    assert len(found) == len(files[: len(gone)]) * len(gone)
    assert all("vector is null in 3 rows, the first 0" in finding for finding in found)


class PicturesAlone(FakeEncoder):
    """Pictures, and a joint vector that is made of them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = dict.fromkeys(("image", "joint"), DIM)

    @property
    def modalities(self) -> dict[str, Input]:
        return {"image": super().modalities["image"]}

    def encode_joint(self, parts):
        return parts["image"].vectors


def test_the_joint_vectors_of_an_encoder_without_texts_are_no_damage(tmp_path):
    shard = make_shard(tmp_path / "a.tar", 3)
    make_collection(shard, tmp_path / "c", PicturesAlone())
    assert list(check_shards(Collection.open(str(tmp_path / "c")), Counter())) == []


def test_a_file_without_one_of_its_columns_is_a_finding(tmp_path):
    make_collection(make_shard(tmp_path / "a.tar", 3), tmp_path / "c", FakeEncoder())
    (path,) = (tmp_path / "c" / "embeddings").iterdir()
    footer, table = pq.read_metadata(path).metadata[b"chiasm"], pq.read_table(path)
    pq.write_table(table.drop_columns("image").replace_schema_metadata({"chiasm": footer}), path)
    (found,) = check_shards(Collection.open(str(tmp_path / "c")), Counter())
    assert "column types are not those of dim 8: image" in str(found)


EXTENSIONS = {"image": "jpg", "raw": "bin", "raw_2": "aux.bin"}


class PictureAndBytes(FakeEncoder):
    """Pictures, texts, and the bytes of members, as two more modalities."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = dict.fromkeys((*self.modalities, "joint"), DIM)

    @property
    def modalities(self) -> dict[str, Input]:
        raw = {name: Input((EXTENSIONS[name],)) for name in ("raw", "raw_2")}
        return {**super().modalities, **raw}

    def preprocess(self, modality, raw):
        if modality.startswith("raw"):
            return np.frombuffer(raw, np.uint8)
        return super().preprocess(modality, raw)


def test_each_modality_of_a_row_has_its_own_member(tmp_path):
    rows = [
        ("image", "raw", "raw_2"),
        ("image", "raw"),
        ("raw", "raw_2"),
        ("image",),
        ("raw_2",),
        (),
    ]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, modalities in enumerate(rows):
            members = {EXTENSIONS[name]: noise(40, number) + name.encode() for name in modalities}
            if "image" in modalities:
                members["jpg"] = jpeg(random.Random(number))
            for extension, data in {**members, "txt": b"row %d" % number}.items():
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    encoder, folder = PictureAndBytes(), Folder(str(tmp_path / "c"))
    create_or_check(folder, Identity.of(encoder), "test")
    (shard,) = list_shards([str(path)])
    embed_shard(shard, encoder, folder, EmbedSettings(), run_id="test")
    build_index(tmp_path / "c")
    truth = {name: members_of(path, extension) for name, extension in EXTENSIONS.items()}
    hits = hits_of(tmp_path / "c", DIM)
    assert len(hits) == len(rows) and check(tmp_path / "c").findings == []
    for number, modalities in enumerate(rows):
        hit = hits[str(number)]
        for name in EXTENSIONS:
            if name in modalities:
                assert hit.data(name) == truth[name][str(number)][0]
            else:
                found = "a row without " + ("a picture" if name == "image" else "it")
                with pytest.raises(SourceError, match=f"found {found}$"):
                    hit.data(name)
        places = {name: truth[name][str(number)][1] for name in modalities}
        assert {name: hit.as_json()[name] for name in PLACE} == places.pop(
            "image", dict.fromkeys(PLACE)
        )
        assert hit.as_json().get("members", {}) == places
