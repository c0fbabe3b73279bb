"""Late interaction from shards to answers: tokens stored, proposed and scored, edited and checked,
against MaxSim computed here over every row."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import token_encoder
from token_encoder import NAMES, WIDTH, TokenEncoder, squares, squares_shard

from chiasm.index import open_collection
from chiasm.index.build import add_to_index, build_index, compact_index
from chiasm.index.plan import IndexSettings
from chiasm.index.queries import Query, Term
from chiasm.index.query import late_interaction
from chiasm.index.query.late_interaction import max_sim
from chiasm.index.segments import rows_of_shards
from chiasm.index.verify import check
from chiasm.index.verify.tokens import fitted_columns, token_differences
from chiasm.pipeline.collection import embeddings, find_embedding, tokens_of
from chiasm.pipeline.encoders import ENCODERS
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.forget import forget
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.storage import Folder

SETTINGS = IndexSettings(tune=False)
TEXTS = ["red blue", "pink", "green white yellow", "cyan black black"]


@pytest.fixture(autouse=True)
def _token_encoder_is_known(monkeypatch):
    monkeypatch.setitem(ENCODERS, "tokens", token_encoder.load)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A collection of three shards, indexed; with its shards beside it."""
    folder = tmp_path_factory.mktemp("late")
    shards = [squares_shard(folder / f"s-{n}.tar", 120, seed=n) for n in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "tokens", token_encoder.load)
        make_collection(shards, folder / "c", "tokens")
        build_index(folder / "c", settings=SETTINGS)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "c", tmp_path / "c")


def stored(path, column="image"):
    """By id the tokens of every row that has some."""
    found = {}
    for file in embeddings(Folder(str(path))):
        table = file.read(["key", f"{column}_tokens"])
        tokens = tokens_of(table[f"{column}_tokens"])
        parts = np.split(tokens.values.astype(np.float32), np.cumsum(tokens.lengths)[:-1])
        keys = table["key"].to_pylist()
        found |= {key: part for key, part in zip(keys, parts, strict=True) if len(part)}
    return found


def exact(parts, rows):
    """Keys by their MaxSim, best first, with it."""
    scores = {
        key: sum(weight * (tokens @ row.T).max(axis=1).sum() for weight, tokens in parts)
        for key, row in rows.items()
    }
    return sorted(scores.items(), key=lambda item: -item[1])


def words(text):
    return TokenEncoder().encode_queries("text", [text]).tokens.values


def pixels(names):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(squares(names))))


def found(path, query, **options):
    (answer,) = open_collection(path, **options).search_many([query])
    return [(result.key, result.score) for result in answer]


def assert_best(answer, expected, least=1.0):
    """The answer has MaxSim's scores, and of the best rows at least that share; rows that score
    the same may stand for each other."""
    scores = dict(expected)
    for key, score in answer:
        assert score == pytest.approx(scores[key], abs=2e-3)
    wanted = expected[len(answer) - 1][1] - 1e-3
    assert sum(scores[key] >= wanted for key, _ in answer) >= least * len(answer)
    assert [score for _, score in answer] == sorted((s for _, s in answer), reverse=True)


@pytest.mark.parametrize("column", ["image", "text"])
def test_the_best_rows_are_those_of_max_sim(made, column):
    rows = stored(made / "c", column)
    for text in TEXTS:
        answer = found(made / "c", Query(text, column=column))
        assert_best(answer, exact([(1, words(text))], rows), least=0.9)


def test_pictures_words_and_weights_are_searched_together(made):
    rows = stored(made / "c")
    picture = pixels(["red", "pink", "cyan", "black"])
    encoder = TokenEncoder()
    tokens = encoder.encode_queries("image", [encoder.preprocess("image", picture)]).tokens.values
    assert_best(found(made / "c", Query(image=picture)), exact([(1, tokens)], rows), least=0.9)
    both = exact([(1, tokens), (1, words("white"))], rows)
    assert_best(found(made / "c", Query("white", picture)), both, least=0.9)
    terms = [Term("red blue", weight=2.0), Term("white", weight=-1.0)]
    weighted = exact([(2, words("red blue")), (-1, words("white"))], rows)
    assert_best(found(made / "c", Query(terms=terms)), weighted, least=0.8)


def test_filters_folding_and_more_results(made):
    rows = stored(made / "c")
    expected = exact([(1, words("red blue"))], rows)
    some = [item for item in expected if item[0] < "1-00050"]
    answer = found(made / "c", Query("red blue", where="key < '1-00050'"))
    assert_best(answer, some, least=0.9)
    assert {key for key, _ in answer} <= {key for key, _ in some}
    many = found(made / "c", Query("red blue", k=60))
    assert len(many) == 60
    assert_best(many, expected, least=0.9)
    folded = found(made / "c", Query("red blue", dedup=0.99))
    assert len(folded) == 10 and folded[0] == pytest.approx(many[0])


def test_only_the_tokens_of_candidates_are_read(made, monkeypatch):
    monkeypatch.setattr(late_interaction, "CANDIDATES", 10)
    monkeypatch.setattr(late_interaction, "PER_RESULT", 2)
    searcher = open_collection(made / "c")
    taken = []
    real = type(searcher).tokens
    monkeypatch.setattr(
        "chiasm.index.query.open_index.OpenIndex.tokens",
        lambda self, column, positions: taken.extend(positions) or real(self, column, positions),
    )
    (answer,) = searcher.search_many([Query("red blue", k=5)])
    assert len(taken) == 10 and len(answer) == 5


def test_only_so_many_candidates_have_their_tokens_in_memory(made, monkeypatch):
    expected = found(made / "c", Query("red blue", k=60))
    monkeypatch.setattr(late_interaction, "BLOCK", 7)
    real, sizes = late_interaction.query_max_sim, []
    monkeypatch.setattr(
        late_interaction,
        "query_max_sim",
        lambda parts, tokens: sizes.append(len(tokens.lengths)) or real(parts, tokens),
    )
    answer = found(made / "c", Query("red blue", k=60))
    assert max(sizes) == 7 and sum(sizes) >= 60
    assert [key for key, _ in answer] == [key for key, _ in expected]
    scores = [score for _, score in expected]
    np.testing.assert_allclose([score for _, score in answer], scores, rtol=1e-5)


def test_tokens_come_in_the_order_of_their_positions(made):
    searcher = open_collection(made / "c")
    positions = [201, 5, 3, 301, 6, 0]  # 3 has no picture
    together = searcher.tokens("image", positions)
    assert together.lengths.tolist() == [4, 4, 0, 4, 4, 4]
    alone = [searcher.tokens("image", [position]).values for position in positions]
    np.testing.assert_array_equal(together.values, np.concatenate(alone))
    assert len(searcher.tokens("image", []).lengths) == 0


def test_a_batch_answers_as_its_queries_alone(made):
    searcher = open_collection(made / "c")
    queries = [Query(text) for text in TEXTS] + [Query(TEXTS[0], column="text")]
    together = [[hit.id for hit in answer] for answer in searcher.search_many(queries)]
    assert together == [[hit.id for hit in searcher.search_many([query])[0]] for query in queries]


def test_a_query_that_is_a_vector_is_searched_by_vectors(made):
    vector = TokenEncoder().encode_queries("text", ["red blue"]).vectors[0]
    (answer,) = open_collection(made / "c").search_many([Query(vector=vector)])
    assert len(answer) == 10 and set(answer[0].scores) == {"search"}


def test_calibration_is_refused_in_one_line(made):
    with pytest.raises(UsageError, match="column image, which is ranked by tokens"):
        found(made / "c", Query("red", calibrated=True))


def test_tokens_stay_in_step_with_rows_that_are_added_forgotten_and_compacted(made, copy):
    before = stored(copy)
    new = squares_shard(copy.parent / "s-9.tar", 60, seed=9)
    make_collection([new], copy, "tokens")
    add_to_index(copy, settings=SETTINGS)
    forget(Folder(str(copy)), [next(iter(embeddings(Folder(str(copy))))).shard_id])
    add_to_index(copy, settings=SETTINGS)
    rows = stored(copy)
    assert rows.keys() != before.keys()
    answers = {}
    for stage in ("edited", "compacted"):
        answers[stage] = [found(copy, Query(text)) for text in TEXTS]
        for text, answer in zip(TEXTS, answers[stage], strict=True):
            assert_best(answer, exact([(1, words(text))], rows), least=0.9)
        assert check(str(copy)).findings == []
        compact_index(copy, settings=SETTINGS)
    assert answers["edited"] == answers["compacted"]
    records = (copy / "index/segments").glob("*/segment.json")
    assert any(len(json.loads(record.read_text())["shards"]) == 3 for record in records)


def test_check_compares_tokens_with_the_embeddings(copy):
    report = check(str(copy), reencode=20)
    assert report.findings == [] and report.checked["tokens"] > 1000
    (file,) = (copy / "index/segments").glob("*/image.tokens")
    data = bytearray(file.read_bytes())
    data[100] ^= 64
    file.write_bytes(bytes(data))
    assert any("image.tokens: expected checksum" in str(one) for one in check(str(copy)).findings)


@pytest.mark.parametrize("name", ["image.tokens", "image_proposals.f16"])
def test_check_finds_tokens_of_another_embedding(copy, name):
    """Files that are whole and have their checksums, of other tokens than the embeddings'."""
    (record,) = (copy / "index/segments").glob("*/segment.json")
    file = record.parent / name
    file.write_bytes(np.roll(np.frombuffer(file.read_bytes(), "<f2"), 64).tobytes())
    findings = " ".join(map(str, check_segments_alone(copy)))
    assert ("tokens differ" if name == "image.tokens" else "not those of the fit") in findings


def check_segments_alone(path):
    """The rows of the segments compared with the embeddings, checksums left aside."""
    generation = open_collection(path).generation
    (segment,) = generation.segments
    fitted = fitted_columns(generation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chiasm.index.segments.files.is_verified", lambda file, checksum: True)
        for shard, rows in rows_of_shards(segment):
            file = find_embedding(Folder(str(path)), shard.shard)
            yield from token_differences(segment, rows, file.read(), fitted)


@pytest.mark.parametrize("vectors", ["int8", "none"])
def test_whatever_is_kept_of_the_vectors_tokens_are_searched(made, copy, vectors):
    settings = replace(SETTINGS, vectors=vectors, kind="ivf")
    build_index(copy, columns=["image"], settings=settings)
    for text in TEXTS[:2]:
        assert found(copy, Query(text)) == found(made / "c", Query(text))


def test_damaged_tokens_are_not_searched(copy):
    (file,) = (copy / "index/segments").glob("*/image.tokens")
    data = bytearray(file.read_bytes())
    data[100] ^= 64
    file.write_bytes(bytes(data))
    with pytest.raises(Exception, match=r"image\.tokens: expected checksum"):
        found(copy, Query("red"))


def test_columns_of_tokens_are_as_the_formats_say(made):
    identity = json.loads((made / "c/collection.json").read_text())
    assert identity["tokens"] == {"image": WIDTH, "text": WIDTH} and identity["schema"] == 3
    (one, *_) = sorted((made / "c/embeddings").glob("*.parquet"))
    table = pq.read_table(one)
    tokens, images = table["image_tokens"], table["image"]
    assert tokens.null_count == images.null_count > 0
    assert str(tokens.type.value_type) == f"fixed_size_list<element: halffloat not null>[{WIDTH}]"
    lengths = {len(row) for row in tokens.to_pylist() if row is not None}
    assert lengths == {4}
    footer = json.loads(pq.read_metadata(one).metadata[b"chiasm"])
    assert footer["tokens"] == identity["tokens"] and footer["schema"] == 3


def test_without_captions_rows_are_proposed_all_the_same(tmp_path):
    shard = squares_shard(tmp_path / "s.tar", 150, seed=6, holes=False, captions=False)
    make_collection([shard], tmp_path / "c", "tokens")
    build_index(tmp_path / "c", settings=SETTINGS)
    rows, picture = stored(tmp_path / "c"), pixels(["red", "pink", "cyan", "black"])
    encoder = TokenEncoder()
    tokens = encoder.encode_queries("image", [encoder.preprocess("image", picture)]).tokens.values
    assert_best(found(tmp_path / "c", Query(image=picture)), exact([(1, tokens)], rows), least=0.9)


def test_a_build_tells_what_tokens_take(copy):
    summary = build_index(copy, columns=["image"], settings=SETTINGS)
    assert summary.token_bytes == {"image": 4 * 2 * WIDTH}


def test_max_sim_is_that_of_loops():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(5, WIDTH)).astype(np.float32)
    rows = [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (1, 7, 3)]
    expected = [sum(max(float(q @ x) for x in row) for q in query) for row in rows]
    lengths = np.array([len(row) for row in rows])
    np.testing.assert_allclose(max_sim(query, np.concatenate(rows), lengths), expected, rtol=1e-5)
    assert max_sim(query, np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("fault", ["width", "none", "empty", "nan", "large"])
def test_an_encoder_with_odd_tokens_loses_the_samples_that_have_them(tmp_path, fault):
    class Odd(TokenEncoder):
        def encode(self, modality, items):
            made = super().encode(modality, items)
            tokens = made.tokens
            if modality != "image" or not any(item[0] == "red" for item in items):
                return made
            if fault == "none":
                return replace(made, tokens=None)
            if fault == "empty":
                return replace(made, tokens=replace(tokens, lengths=tokens.lengths * 0))
            values = (
                tokens.values[:, :3]
                if fault == "width"
                else tokens.values * np.float32({"nan": np.nan, "large": 1e6}[fault])
            )
            return replace(made, tokens=replace(tokens, values=values))

    shard = squares_shard(tmp_path / "s.tar", 40, seed=5, holes=False)
    summary = make_collection([shard], tmp_path / "c", Odd())
    rows = stored(tmp_path / "c")
    assert 0 < summary.dropped < 20 and len(rows) == 40 - summary.dropped
    assert NAMES[0] == "red"
