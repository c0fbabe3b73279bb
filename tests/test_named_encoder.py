"""`--encoder`: where the weights are that made a collection. Wrong ones are refused by name."""

from __future__ import annotations

import re

import pytest
from fake_encoder import FakeEncoder
from tiny_collection import make_collection

from chiasm.index import IndexSettings, Query, Recorder, build_index, open_collection, replay
from chiasm.index.verify import check
from chiasm.jobs.build_index import build_on_cluster
from chiasm.jobs.cli.ask import ask
from chiasm.jobs.cli.check import check as check_command
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.encoders.registry import ENCODERS
from chiasm.pipeline.errors import ChiasmError, CollectionError, EncoderError, UsageError

TUNED = IndexSettings(exact_below=1, recall=0.8)
HERE, ELSEWHERE = FakeEncoder().fingerprint[:12], "ffffffffffff"


class Replaced(FakeEncoder):
    """What has the name of the collection's encoder now."""

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = "f" * 32


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The models that were loaded: `fake` is another one now, `fake:old` is the one before."""
    names: list[str] = []

    def load(model, settings):
        names.append(model)
        if model == "gone":
            raise EncoderError("fake:gone", expected="a model", found="none")
        return FakeEncoder() if model == "old" else Replaced()

    monkeypatch.setitem(ENCODERS, "fake", load)
    return names


@pytest.fixture
def made(tmp_path, loaded):
    path = tmp_path / "c"
    make_collection(path, (300, 60))
    build_index(path, columns=["image"], settings=TUNED, encoder="fake:old")
    assert loaded == ["old"]
    loaded.clear()
    return path


def test_the_named_one_encodes_the_queries(made, loaded):
    open_collection(made, encoder="fake:old").search("a boat")
    assert loaded == ["old"]
    with pytest.raises(CollectionError) as refused:
        open_collection(made).search("a boat")
    assert str(refused.value).endswith(
        f"expected encoder fake ({HERE}), found another of that name ({ELSEWHERE}); name the "
        "weights that made it, as in --encoder fake:DIR, or embed the shards into another "
        "collection"
    )


@pytest.mark.parametrize(
    ("name", "error", "line"),
    [
        ("fake:new", CollectionError, rf"expected encoder fake \({HERE}\), found fake:new \(fff"),
        ("fake:gone", EncoderError, "fake:gone: expected a model, found none"),
        ("nosuch:x", UsageError, "encoder 'nosuch:x': expected one of "),
    ],
)
def test_a_wrong_one_is_refused_everywhere(made, tmp_path, name, error, line):
    receipt = tmp_path / "r.json"
    recorder = Recorder(open_collection(made, encoder="fake:old"))
    recorder.search([Query("a boat")])
    recorder.write(str(receipt))
    assert replay(str(receipt), encoder="fake:old").changes == []
    before = (made / "index" / "CURRENT").read_bytes()
    for refused in (
        lambda: open_collection(made, encoder=name).search("a boat"),
        lambda: build_index(made, columns=["image"], settings=TUNED, encoder=name),
        lambda: build_index(made, settings=IndexSettings(tune=False), encoder=name),
        lambda: build_on_cluster(
            made, address=None, workers=WorkerSettings(), settings=TUNED, encoder=name
        ),
        lambda: replay(str(receipt), encoder=name),
        lambda: check(made, reencode=1, encoder=name),
        lambda: ask(str(made), ["is there a boat?"], "pocket", encoder=name),
    ):
        with pytest.raises(error, match=line):
            refused()
    assert (made / "index" / "CURRENT").read_bytes() == before


def test_a_build_that_could_not_encode_is_not_gone_on_with(made, loaded, caplog):
    summary = build_index(made, columns=["image"], settings=TUNED)
    assert "another of that name" in caplog.text
    assert "the encoder could not be loaded" in summary.reports["image"].source
    loaded.clear()
    summary = build_index(made, columns=["image"], settings=TUNED, encoder="fake:old")
    assert loaded == ["old"]
    assert "the encoder could not be loaded" not in summary.reports["image"].source


def test_a_replay_says_what_to_name(made, tmp_path):
    receipt = tmp_path / "r.json"
    recorder = Recorder(open_collection(made, encoder="fake:old"))
    recorder.search([Query("a boat")])
    recorder.write(str(receipt))
    [change] = replay(str(receipt)).changes
    assert re.search(r"the encoder is another: .* as in --encoder fake:DIR", change)


def test_check_needs_rows_to_encode_and_advises_the_named_one(made, tmp_path):
    with pytest.raises(UsageError, match="check --encoder: expected --reencode N with it"):
        check_command(str(made), encoder="fake:old")
    next((made / "ledger").iterdir()).unlink()
    fixes = [finding.fix for finding in check(made, reencode=1, encoder="fake:old").findings]
    assert any(fix.endswith("--encoder fake:old") for fix in fixes)


def test_a_question_is_refused_before_its_model_is_loaded(made):
    with pytest.raises(ChiasmError, match="found another of that name"):
        ask(str(made), ["is there a boat?"], "hf:/no/such/model")


@pytest.mark.parametrize("family", ["pocket", "two-tower", "joint"])
def test_a_model_of_our_own_is_a_folder_of_this_machine(family, tmp_path, monkeypatch):
    with pytest.raises(EncoderError) as refused:
        load_encoder(f"{family}:s3://bucket/model")
    assert str(refused.value) == (
        f"encoder {family}: expected a folder after the colon, found a URL; copy the folder to "
        "this machine, and name the copy"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EncoderError, match=rf"model folder {tmp_path}/model: expected"):
        load_encoder(f"{family}:~/model")
