"""Which queries a column is tuned with; a build that is tuned, from collection to report."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from fake_encoder import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st
from tiny_collection import add_shard, make_collection

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.build import ByKey, delete_from_index, samples
from chiasm.index.build.build import Build
from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.report import Report
from chiasm.index.build.samples import CollectionView, QuerySets
from chiasm.index.sizes import UNITS, format_size
from chiasm.jobs.cli.index import build, print_summary
from chiasm.jobs.cli.index_edit import status
from chiasm.jobs.cli.reports import write_plot
from chiasm.jobs.cli.units import gigabytes, milliseconds
from chiasm.pipeline.collection import Collection, identity
from chiasm.pipeline.encoders import register_encoder
from chiasm.pipeline.errors import CollectionError, EncoderError, UsageError
from chiasm.pipeline.storage import Folder

TUNED = IndexSettings(exact_below=1, recall=0.8)


def view_of(path, column: str, queries: str = "", encoder=FakeEncoder) -> CollectionView:
    covered = CoveredShards(Collection.open(str(path)))
    return CollectionView(covered, column, covered.rows, encoder, queries)


def rows_of(vectors: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(row) for row in vectors.round(5).tolist()}


def encoded(texts: list[str]) -> set[tuple[float, ...]]:
    return rows_of(FakeEncoder().encode_queries("text", texts).vectors)


def require_disjoint(sets: QuerySets) -> None:
    for kind in sets.tune:
        used = [rows_of(some[kind].vectors) for some in (sets.tune, sets.report)]
        used.append(rows_of(sets.learn))
        assert all(used) and not (used[0] & used[1] | used[0] & used[2] | used[1] & used[2])


def test_other_captions_ask_for_what_has_a_caption_inside(tmp_path):
    stored = make_collection(tmp_path / "c", (250, 150), holes=0.1)
    numbers = [(row, n) for n, rows in ((0, 250), (1, 150)) for row in range(rows)]
    others = encoded([f"another {row} of s{n}" for row, n in numbers])
    for column in ("joint", "text"):
        sets = view_of(tmp_path / "c", column).query_sets()
        assert sets.source == "text queries: other captions of rows, encoded"
        assert rows_of(sets.tune["text"].vectors) <= others
        pictures = sets.report["picture"]
        assert rows_of(pictures.vectors) <= rows_of(stored["image"])
        assert np.isnan(pictures.own).all() == (column == "text"), "its vector has no picture"
    sets = view_of(tmp_path / "c", "image").query_sets()
    assert sets.source == "text queries: captions of rows, encoded"
    captions = [f"caption {row} of s{n}" for row, n in numbers]
    assert rows_of(sets.tune["text"].vectors) | rows_of(sets.report["text"].vectors) <= encoded(
        captions
    )
    require_disjoint(sets)
    picture = sets.tune["picture"]
    np.testing.assert_allclose(picture.own, (picture.vectors**2).sum(axis=1), rtol=1e-5)


def test_few_captions_among_many_rows_are_all_queries_each_once(tmp_path):
    make_collection(tmp_path / "c", (3000,))

    class FewCaptions(CollectionView):
        """Every fifth row has a caption, two rows each the same; `_texts` sees what was drawn."""

        def _have_text(self, rows: pa.Table) -> np.ndarray:
            super()._have_text(rows)
            return np.array([row % 5 == 0 for row in _numbers(rows)])

        def _texts(self, rows: pa.Table):
            own = [[f"of {row // 10}"] if row % 5 == 0 else [] for row in _numbers(rows)]
            place = rows.column_names.index("captions")
            return super()._texts(rows.set_column(place, "captions", pa.array(own)))

    def _numbers(rows: pa.Table) -> list[int]:
        return [int(own[0].split()[1]) for own in rows["captions"].to_pylist()]

    covered = CoveredShards(Collection.open(str(tmp_path / "c")))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LEARN", "TUNE", "REPORT"):
            patch.setattr(samples, name, 200)
        sets = FewCaptions(covered, "image", 3000, FakeEncoder).query_sets()
    assert sets.source == "text queries: captions of rows, encoded"
    used = [rows_of(some["text"].vectors) for some in (sets.tune, sets.report)]
    assert len(sets.tune["text"]) == len(sets.report["text"]) == 100
    assert used[0] | used[1] <= encoded([f"of {number}" for number in range(300)])
    assert len(used[0] | used[1]) == 200
    require_disjoint(sets)


def test_pictures_ask_where_captions_are_too_few_to_tune_with(tmp_path):
    make_collection(tmp_path / "c", (400,))

    class Few(CollectionView):
        def _texts(self, rows: pa.Table):
            vectors, has, source = super()._texts(rows)
            return vectors, has & (np.cumsum(has) <= 299), source

    covered = CoveredShards(Collection.open(str(tmp_path / "c")))
    sets = Few(covered, "image", 400, FakeEncoder).query_sets()
    assert sets.source == "picture queries: 299 different captions of rows"
    assert list(sets.tune) == ["picture"]


@pytest.mark.parametrize("pictures", [0, 299])
def test_own_vectors_stand_in_for_pictures_that_are_too_few(tmp_path, pictures):
    stored = make_collection(tmp_path / "c", (400,))

    class Few(CollectionView):
        def _pictures(self, rows: pa.Table):
            place = rows.column_names.index("image")
            kept = pa.array(np.arange(len(rows)) < pictures)
            image = pc.if_else(kept, rows["image"], pa.scalar(None, rows["image"].type))
            return super()._pictures(rows.set_column(place, "image", image))

    covered = CoveredShards(Collection.open(str(tmp_path / "c")))
    sets = Few(covered, "text", 400, FakeEncoder).query_sets()
    assert sets.source.endswith("; vectors of text stand in for pictures")
    for queries in (sets.tune["picture"], sets.report["picture"]):
        assert rows_of(queries.vectors) <= rows_of(stored["text"])
        np.testing.assert_allclose(queries.own, (queries.vectors**2).sum(axis=1), rtol=1e-5)
    require_disjoint(sets)


def test_stored_captions_are_queries_where_the_encoder_says_the_same(tmp_path, caplog):
    stored = make_collection(tmp_path / "c", (150,))

    class Same(FakeEncoder):
        def encode_queries(self, modality, items):
            found = FakeEncoder().encode(modality, items)
            rows = [int(text.split()[1]) for text in items]
            return type(found)(
                stored["text"][rows] / np.linalg.norm(stored["text"][rows], axis=1)[:, None]
            )

    sets = view_of(tmp_path / "c", "image", encoder=Same).query_sets()
    assert sets.source == "text queries: captions of rows, as they are stored"
    assert rows_of(sets.tune["text"].vectors) <= rows_of(stored["text"])
    require_disjoint(sets)

    def none() -> FakeEncoder:
        raise EncoderError("encoder fake", found="no weights")

    sets = view_of(tmp_path / "c", "image", encoder=none).query_sets()
    assert sets.source.endswith("as they are stored: the encoder could not be loaded")
    assert "encoder fake: found no weights" in caplog.text


def test_pictures_ask_where_there_are_no_texts_and_a_file_replaces_both(tmp_path):
    make_collection(tmp_path / "c", (100,))

    class OneCaption(CollectionView):
        def _texts(self, rows: pa.Table):
            one = pa.array([["own"]] * len(rows))
            number = rows.column_names.index("captions")
            return super()._texts(rows.set_column(number, "captions", one))

    covered = CoveredShards(Collection.open(str(tmp_path / "c")))
    view = OneCaption(covered, "joint", 100, FakeEncoder)
    sets = view.query_sets()
    assert sets.source == "picture queries: no other captions of rows" and list(sets.tune) == [
        "picture"
    ]
    require_disjoint(sets)
    lines = [f"query {number}" for number in range(330)]
    (tmp_path / "q.txt").write_text("\n".join(lines))
    sets = view_of(tmp_path / "c", "image", str(tmp_path / "q.txt")).query_sets()
    assert len(sets.tune["text"]) == len(sets.report["text"]) == 110
    used = np.concatenate([sets.tune["text"].vectors, sets.report["text"].vectors])
    assert rows_of(used) <= encoded(lines) and len(sets.learn) == 110 + 11


def test_a_build_is_tuned_measured_and_says_what_it_promises(tmp_path, capsys):
    register_encoder("fake", lambda model, settings: FakeEncoder(model))
    path = tmp_path / "c"
    make_collection(path, (400, 300))
    summary = build_index(str(path), columns=["image"], settings=TUNED)
    report = summary.reports["image"]
    assert report.rows == 700 and report.measured.recall.keys() == {"text", "picture", "filtered"}
    with_index = open_collection(str(path))
    manifest = with_index.generation.manifest
    plan = manifest.columns["image"]
    assert plan.nprobe == report.measured.nprobe and plan.missed > 0
    stored = (path / manifest.reports["image"].file).read_bytes()
    assert Report.from_json(stored, "r", "") == report
    print_summary(summary)
    printed = capsys.readouterr().out
    assert "promised recall@10: text " in printed and "captions of rows, encoded" in printed
    write_plot(str(tmp_path / "p.png"), summary.reports)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "lists by" in printed and "build s" in printed
    labels = [one.label for one in report.candidates]
    assert len(set(labels)) == len(labels), "trials can be told apart"
    assert json.loads(json.dumps({"seconds": summary.seconds}))["seconds"]["fit"] > 0
    _require_status_reports(path, report, tmp_path / "again.png", capsys)


def _require_status_reports(path, report, plot, capsys):
    """`index status --report` says the same as the build, also after an edit."""
    delete_from_index(str(path), lambda generation: ByKey(["s0/000001"]))
    status(str(path), with_report=True, plot=str(plot))
    printed = capsys.readouterr().out.splitlines()
    lines = [f"  {line}" for line in report.lines()]
    assert printed[-len(lines) :] == lines and printed[1].startswith("*      2  index delete of 1")
    assert len(lines) == 4 + len(report.candidates) + len(report.small_vectors)
    assert plot.read_bytes().startswith(b"\x89PNG")
    status(str(path), with_report=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["reports"]["image"] == json.loads(report.to_json())
    status(str(path), as_json=True)
    assert "reports" not in json.loads(capsys.readouterr().out)
    with pytest.raises(UsageError, match=r"^--plot .*found another one$"):
        status(str(path), plot="recall.jpg")
    (stored,) = (path / "index/trained").glob("*/image.json")
    stored.write_bytes(stored.read_bytes()[:-2])
    with pytest.raises(CollectionError, match=r"image\.json: expected blake2b .* index build"):
        status(str(path), with_report=True)
    status(str(path))  # which does not read it


def test_a_status_says_that_there_is_no_report(tmp_path, capsys):
    path = tmp_path / "c"
    make_collection(path, (5,))
    status(str(path), with_report=True)
    assert capsys.readouterr().out.startswith("no index; run chiasm index build")
    build_index(str(path), columns=["image"])
    status(str(path), with_report=True, plot=str(tmp_path / "p.png"))
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("no report: nothing was measured")
    assert printed.err.startswith("no plot: nothing") and not (tmp_path / "p.png").exists()


def test_files_that_cannot_be_used_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    path = tmp_path / "c"
    make_collection(path, (5,))
    for name, found in (("a.jpg", "another one"), ("none/a.png", f"none at {tmp_path / 'none'}")):
        with pytest.raises(UsageError, match=f"^--plot .*, found {found}$"):
            build(str(path), plot=str(tmp_path / name))
    monkeypatch.setattr(Build, "infer_schema", pytest.fail)
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    for file, found in ((few, "2"), (tmp_path / "none.txt", "No such file or directory")):
        with pytest.raises(UsageError, match=f"^--queries .*, found {found}$"):
            build(str(path), queries=str(file))
    assert not (path / "index").exists()


@pytest.mark.parametrize("text", ["", "4", "GB", "-1GB", "4 XB", "1e3GB", "4GBs", "0GB", "nan GB"])
def test_nonsense_for_a_quantity_is_one_line(text):
    with pytest.raises(UsageError, match=r"^--memory: expected a size above 0, .* found '"):
        gigabytes(text, "--memory")
    with pytest.raises(UsageError, match=r"^--latency: expected a time above 0"):
        milliseconds(text, "--latency")


@given(st.integers(1, 10**14))
def test_a_limit_of_the_size_that_is_printed_suffices(needed):
    printed = format_size(needed)
    number, unit = printed.split(" ")
    limit = IndexSettings(memory_gb=gigabytes(f"{number}{unit}", "--memory") or 0).memory_bytes
    assert needed <= limit <= 1.01 * needed + 1 and unit in UNITS and len(number) <= 4


def test_quantities_have_units():
    sizes = (0, 999, 1001, 72_100, 999_500, 4.5e9, 2e15)
    assert [*map(format_size, sizes)] == [
        *("0 B", "999 B", "1.01 KB", "72.1 KB", "1 MB", "4.5 GB", "2000 TB"),
    ]
    assert gigabytes(None, "--memory") is milliseconds(None, "--latency") is None
    assert gigabytes("4GB", "") == 4 and gigabytes("500 mb", "") == 0.5
    assert milliseconds("10ms", "") == 10 and milliseconds("0.5 s", "") == 500


@pytest.mark.parametrize("column", ["image", "joint"])
def test_a_build_whose_encoder_is_not_known_here_is_tuned_all_the_same(
    tmp_path, caplog, monkeypatch, column
):
    """The encoder is known to the process that embedded; this one has its vectors alone."""

    def unknown(name, settings):
        raise UsageError(f"encoder {name!r}", expected="one of pocket", found="")

    monkeypatch.setattr(identity, "load_encoder", unknown)
    make_collection(tmp_path, (300, 200))
    summary = build_index(tmp_path, columns=[column], settings=TUNED)
    assert "encoder 'fake': expected one of" in caplog.text
    source = summary.reports[column].source
    expected = {
        "image": "text queries: captions of rows, as they are stored: the encoder could not be",
        "joint": "picture queries: no encoder for captions",
    }
    assert source.startswith(expected[column])
    few = tmp_path / "queries.txt"
    few.write_text("\n".join(f"query {number}" for number in range(3000)))
    settings = IndexSettings(exact_below=1, recall=0.8, queries=str(few))
    with pytest.raises(EncoderError, match="encoder 'fake': expected one of"):
        build_index(tmp_path, columns=[column], settings=settings)


@pytest.mark.parametrize("settings", [TUNED, IndexSettings(vectors="int8")])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_vector_that_is_no_number_is_one_line(tmp_path, settings, value):
    path = tmp_path / "c"
    make_collection(path, (60,))
    build_index(str(path), columns=["image"], settings=IndexSettings(tune=False))
    current = (path / "index" / "CURRENT").read_bytes()
    vectors = np.zeros((50, 8), np.float32)
    vectors[:, 0] = 1
    vectors[49, 3] = value
    add_shard(Folder(str(path)), "s1", 50, dim=8, seed=1, vectors=vectors)
    with pytest.raises(CollectionError) as raised:
        build_index(str(path), columns=["image"], settings=settings)
    expected = "s1-0123456789.parquet: expected a whole Parquet file, found NaN or infinity in the "
    assert expected + "vectors of image; delete it and run" in str(raised.value)
    assert (path / "index" / "CURRENT").read_bytes() == current
