"""The demo, small: from facts to figures, and again."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from chiasm.index.faiss_runtime import load_faiss
from chiasm.jobs.demo import make_shards, read_rows, run_demo
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.scenes.claims import holds

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, ray_session):
    to = tmp_path_factory.mktemp("demo")
    return to, run_demo(3, 60, to)


def test_the_figures_have_the_promised_shape(demo):
    to, found = demo
    record = json.loads(json.dumps(found.as_json()))
    assert record["rows"] == 60
    assert record["collection"] == str(to / "collection")
    for direction, languages in (("text_to_image", {"en", "zh"}), ("image_to_text", {"en"})):
        assert set(record["recall"][direction]) == languages
        for recall in record["recall"][direction].values():
            assert set(recall) == {"r1", "r5", "r10"}
            assert 0 <= recall["r1"] <= recall["r5"] <= recall["r10"] <= 1
    stages = {"shards", "embed", "index", "questions", "recall", "answers"}
    assert set(record["seconds"]) == stages
    assert record["answers"]["of"] == len(found.answered) == 15


def test_recall_is_what_brute_force_over_the_vectors_finds(demo):
    to, found = demo
    rows, images = read_rows(to / "collection")
    from chiasm.pipeline.collection import embeddings
    from chiasm.pipeline.storage import Folder

    texts = np.concatenate(
        [f.vectors("text")[0] for f in embeddings(Folder(str(to / "collection")))]
    )
    scores = images.astype(np.float32) @ texts.astype(np.float32).T
    best = scores.argmax(axis=1)
    right = [holds(rows[at].claims, row.scene) for row, at in zip(rows, best, strict=True)]
    assert found.recall["image_to_text"]["en"]["r1"] == pytest.approx(np.mean(right), abs=2 / 60)


def test_most_questions_about_the_pictures_found_are_answered_rightly(demo):
    _, found = demo
    assert sum(item.right for item in found.answered) >= 12
    assert all(item.wanted for item in found.answered)


def test_the_sheet_shows_three_questions(demo):
    _, found = demo
    with Image.open(found.sheet) as sheet:
        assert sheet.width > 800
        assert sheet.height > 800
    assert len(found.questions) == 3
    assert all(len(answer) == len(right) == 5 for answer, right in found.questions)


def test_again_nothing_is_drawn_or_embedded_anew(tmp_path):
    found = run_demo(3, 20, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    before |= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    again = run_demo(3, 20, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.recall == found.recall


def test_another_world_in_the_same_folder_is_refused(demo):
    to, _ = demo
    with pytest.raises(UsageError, match=r"choose another folder with --to"):
        make_shards(to, 4, 60)


def test_too_few_scenes_for_twins_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--samples: expected at least 4"):
        make_shards(tmp_path, 1, 3)


def test_a_missing_faiss_is_told_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    load_faiss.cache_clear()
    try:
        with pytest.raises(ChiasmError, match=r"pip install 'chiasm\[cpu\]'"):
            run_demo(3, 60, tmp_path / "demo")
    finally:
        load_faiss.cache_clear()
    assert list(tmp_path.iterdir()) == []
