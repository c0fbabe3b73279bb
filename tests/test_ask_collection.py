"""Questions about a collection: answered from the pictures found, refused where nothing matches."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from chiasm.index import build_index, open_collection
from chiasm.index.ask import AskSettings, ask_collection
from chiasm.jobs.cli import ask_collection as command
from chiasm.jobs.cli.ask import ask
from chiasm.pipeline import make_collection
from chiasm.pipeline.encoders import ANSWERERS, Input, Reply
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.scenes.samples import samples
from chiasm.pipeline.scenes.world import stream
from chiasm.pipeline.shards import write_shard

ROWS = 240
ALWAYS = AskSettings(k=3, false_alarms=None)


class Brightness:
    """Answers with the mean of the picture's pixels, and fails on dark ones."""

    name, fingerprint, precision, device = "brightness", "0" * 32, "float32", "cpu"
    tasks, languages = frozenset({"ask"}), ("en", "zh")

    def __init__(self, darkest=0.0):
        self.darkest, self.modalities, self.requests = darkest, {"image": Input(side=72)}, []

    def preprocess(self, modality, raw):
        return np.asarray(raw)

    def cost(self, modality, item):
        return item.size

    def answer(self, requests, settings):
        self.requests += [(request.text, request.language) for request in requests]
        means = [float(request.image.mean()) for request in requests]
        if min(means) < self.darkest:
            raise RuntimeError("too dark")
        return [Reply(f"{mean:.0f}", confidence=0.5) for mean in means]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    shard = folder / "scenes-00000.tar"
    write_shard(shard, samples(itertools.islice(stream(3), ROWS), seed=3, side=72))
    make_collection(shard, folder / "c", "pocket")
    build_index(str(folder / "c"))
    return folder / "c"


def brightness_of(result):
    return f"{np.asarray(Image.open(io.BytesIO(result.picture())).convert('RGB')).mean():.0f}"


def test_the_answer_is_that_of_the_first_picture_and_all_are_named(collection):
    with_settings = open_collection(collection)
    answerer = Brightness()
    found = ask_collection(with_settings, answerer, "a red boat", ALWAYS)
    expected = with_settings.search("a red boat", k=3)
    assert [source.result.id for source in found.sources] == [result.id for result in expected]
    said = [brightness_of(result) for result in expected]
    assert [source.answer for source in found.sources] == said
    assert (found.answer, found.refused) == (said[0], False)
    assert answerer.requests == [("a red boat", "en")] * 3
    fields = json.loads(json.dumps(found.as_json()))
    assert fields["answer"] == said[0] and [s["answer"] for s in fields["sources"]] == said
    assert [s["id"] for s in fields["sources"]] == [result.id for result in expected]


def test_what_is_searched_for_need_not_be_the_question(collection):
    searcher, answerer = open_collection(collection), Brightness()
    houses = "caption ILIKE '%house%'"
    about = AskSettings(k=2, about="a blue house", false_alarms=None, where=houses)
    found = ask_collection(searcher, answerer, "is it dark?", about)
    expected = searcher.search("a blue house", k=2, where=houses)
    assert [source.result.id for source in found.sources] == [result.id for result in expected]
    assert answerer.requests == [("is it dark?", "en")] * 2


def test_a_source_that_fails_costs_no_other_its_answer(collection):
    searcher = open_collection(collection)
    means = [float(brightness_of(result)) for result in searcher.search("a boat", k=3)]
    found = ask_collection(searcher, Brightness(max(means[0], min(means)) + 1), "a boat", ALWAYS)
    answered = [mean > max(means[0], min(means)) + 1 for mean in means]
    assert not answered[0]
    assert [source.answer is not None for source in found.sources] == answered
    assert "too dark" in (found.sources[0].reason or "")
    first = next((source.answer for source in found.sources if source.answer), None)
    assert found.answer == first


def test_nothing_is_answered_where_nothing_matches(collection):
    searcher, answerer = open_collection(collection), Brightness()
    there = searcher.search("a boat", k=1)[0].caption
    settings = AskSettings(false_alarms=0.05)
    found = ask_collection(searcher, answerer, there, settings)
    assert not found.refused and found.answer is not None
    before = len(answerer.requests)
    refused = ask_collection(searcher, answerer, "a submarine with seven dragons", settings)
    assert refused.refused and refused.answer is None and refused.sources == ()
    assert len(answerer.requests) == before and refused.as_json()["p_absent"] > 0.05


def test_a_model_that_answers_no_questions_is_refused(collection):
    answerer = Brightness()
    answerer.tasks = frozenset({"caption"})
    with pytest.raises(UsageError, match="expected one that can ask, found one that can caption"):
        ask_collection(open_collection(collection), answerer, "a boat", ALWAYS)


def test_the_command_prints_the_answer_and_its_sources(collection, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(ANSWERERS, "bright", lambda model, settings: Brightness())
    sheet = tmp_path / "asked.png"
    ask(str(collection), ["a red boat"], model="bright", k=2, sheet=str(sheet))
    lines = capsys.readouterr().out.splitlines()
    expected = open_collection(collection).search("a red boat", k=2)
    assert lines[0] == brightness_of(expected[0]) and len(lines) == 3
    for line, result in zip(lines[1:], expected, strict=True):
        assert f"{brightness_of(result)} (0.50)  {result.key}  {result.id}" in line
    assert sheet.read_bytes().startswith(b"\x89PNG")
    ask(str(collection), ["is it red?"], model="bright", about="a submarine with seven dragons")
    assert capsys.readouterr().out.startswith("nothing here matches (at a false-alarm rate of 5 %)")
    ask(str(collection), ["红色的船"], model="bright", as_json=True, false_alarms=1)
    fields = json.loads(capsys.readouterr().out)
    assert fields["model"] == "brightness" and len(fields["sources"]) == 5


def test_options_of_a_collection_beside_a_picture_are_refused(tmp_path):
    with pytest.raises(UsageError, match="ask --about: expected a collection, found a picture"):
        ask("boat.png", ["what is it?"], about="a boat")
    assert not command.is_collection(str(tmp_path))
    assert not command.is_collection("https://example.org/boat.png")
