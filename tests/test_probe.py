"""A model at fault is found when it is loaded, by one pair, in one line that says what helps."""

from __future__ import annotations

import numpy as np
import pytest
from fake_encoder import FakeEncoder, FakeMatcher

from chiasm.pipeline.encoders import (
    ENCODERS,
    Encoded,
    Input,
    load_encoder,
    load_matcher,
    unit,
)
from chiasm.pipeline.encoders.probe import TEXTS
from chiasm.pipeline.errors import EncoderError, Undecodable, UsageError

TRIAL = "encoder fake: expected unit vectors for two texts and two pictures, as a trial, found "


def line_of(monkeypatch, encoder, load=load_encoder) -> str:
    monkeypatch.setitem(ENCODERS, "theirs", lambda model, settings: encoder)
    with pytest.raises(EncoderError) as caught:
        load("theirs")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Odd(FakeEncoder):
    """Vectors by a test's function of the right ones; column: only of that one."""

    def __init__(self, change, column: str = "", precision: str = "float32") -> None:
        super().__init__(precision=precision)
        self.change, self.column = change, column

    def encode(self, modality, items):
        made = super().encode(modality, items)
        odd = self.column in ("", modality)
        return Encoded(self.change(made.vectors)) if odd else made

    def encode_joint(self, parts):
        joint = super().encode_joint(parts)
        return self.change(joint) if self.column == "joint" else joint


def refuse(vectors):
    raise ValueError("such inputs\nare refused")


ADVICE = "; check that all files are of one model and that its libraries fit it"


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (Odd(refuse), f"image: ValueError: such inputs{ADVICE}"),
        (Odd(refuse, "text"), f"text: ValueError: such inputs{ADVICE}"),
        (Odd(refuse, "joint"), f"joint: ValueError: such inputs{ADVICE}"),
        (Odd(lambda v: v[:, :5], "text"), f"text: shape (2, 5), not (2, 8){ADVICE}"),
        (Odd(lambda v: v[:1], "joint"), f"joint: shape (1, 8), not (2, 8){ADVICE}"),
        (
            Odd(lambda v: v * np.nan, "image"),
            "image: NaN or infinity; its weights are damaged: fetch or train them again",
        ),
        (
            Odd(lambda v: v * np.inf, "text", "bfloat16"),
            "text: NaN or infinity; try --set encoder.precision=float32",
        ),
        (Odd(lambda v: v * 3, "image"), f"image: length 3{ADVICE}"),
    ],
)
def test_what_is_wrong_with_an_encoder_is_said_when_it_is_loaded(monkeypatch, encoder, said):
    assert line_of(monkeypatch, encoder) == TRIAL + said


def test_no_memory_for_the_trial_is_said_as_that(monkeypatch):
    def change(vectors):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    line = line_of(monkeypatch, Odd(change))
    assert line.endswith("; free memory, or take a smaller model or another --device")


def test_what_a_loader_raises_is_one_line(monkeypatch):
    def load(model, settings):
        raise KeyError("hidden_size")

    monkeypatch.setitem(ENCODERS, "theirs", load)
    with pytest.raises(EncoderError) as caught:
        load_encoder("theirs:x")
    line = "encoder theirs:x: expected a model that can be loaded, found KeyError: 'hidden_size'"
    assert str(caught.value) == line + ADVICE


def test_an_encoder_may_refuse_the_trial_by_its_own_word_and_may_know_other_modalities(monkeypatch):
    class Choosy(FakeEncoder):
        def preprocess(self, modality, raw):
            if modality == "image":
                raise Undecodable("corrupt", "not of my kind")
            return super().preprocess(modality, raw)

    class Sound(FakeEncoder):
        modalities = {"sound": Input(("wav",)), "text": Input()}  # noqa: RUF012

    for encoder in (Choosy(), Sound()):
        monkeypatch.setitem(ENCODERS, "theirs", lambda model, settings, made=encoder: made)
        assert load_encoder("theirs") is encoder


class OddMatcher(FakeMatcher):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def match(self, a, b, pairs):
        return self.change(super().match(a, b, pairs))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (refuse, f"ValueError: such inputs{ADVICE}"),
        (lambda s: s * np.nan, "match: NaN or infinity; its weights are damaged: fetch or tr"),
        (lambda s: s[:1], f"match: shape (1,), not (2,){ADVICE}"),
    ],
)
def test_what_is_wrong_with_a_matcher_is_said_when_it_is_loaded(monkeypatch, change, said):
    line = line_of(monkeypatch, OddMatcher(change), load_matcher)
    wanted = "matcher fake: expected scores for two texts with two pictures, as a trial, found "
    assert line.startswith(wanted + said)
    load_encoder("theirs")  # as an encoder it is sound


def test_a_model_of_two_towers_alone_says_so_itself(monkeypatch):
    class Alone(FakeMatcher):
        def match(self, a, b, pairs):
            raise UsageError("encoder fake", expected="a model that learned to match")

    monkeypatch.setitem(ENCODERS, "theirs", lambda model, settings: Alone())
    with pytest.raises(UsageError, match="expected a model that learned to match"):
        load_matcher("theirs")


def test_a_model_that_refuses_one_of_the_trial_alone_is_not_at_fault(monkeypatch):
    """It takes others: what it refuses is found sample by sample."""

    def of_first(change):
        def changed(vectors):
            made = vectors.copy()
            first = (made == FakeEncoder().encode("text", [TEXTS[0]]).vectors).all(1)
            if first.any():
                made[first] = change(made[first])
            return made

        return changed

    for change in (refuse, lambda vectors: vectors * np.nan):
        encoder = Odd(of_first(change), "text")
        monkeypatch.setitem(ENCODERS, "theirs", lambda model, settings, made=encoder: made)
        assert load_encoder("theirs") is encoder


def test_a_model_that_takes_texts_one_by_one_alone_is_at_fault(monkeypatch):
    def change(vectors):
        if len(vectors) > 1:
            raise ValueError("Asking to pad but the tokenizer does not have a padding token.")
        return vectors

    line = line_of(monkeypatch, Odd(change, "text"))
    assert line.endswith(
        'name its padding token as "pad_token" in the model\'s tokenizer_config.json'
    )


class Padded(FakeEncoder):
    """A model that does not mask its padding: vectors depend on the longest item beside them."""

    def __init__(self, modality, moved, precision="float32"):
        super().__init__(precision=precision)
        self.modality, self.moved = modality, moved

    def encode(self, modality, items):
        made = super().encode(modality, items)
        if modality != self.modality or len(items) == 1:
            return made
        return Encoded(unit(made.vectors + self.moved * np.eye(1, made.vectors.shape[1])))


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize(("precision", "moved"), [("float32", 0.01), ("bfloat16", 0.5)])
def test_vectors_that_depend_on_their_neighbours_are_refused(
    monkeypatch, modality, precision, moved
):
    line = line_of(monkeypatch, Padded(modality, moved, precision))
    assert line.startswith("encoder fake: expected vectors that depend on their item alone, found ")
    assert f"between those of the same {modality}, alone and beside another; take another" in line
    rounded = Padded(modality, moved / 50, precision)
    monkeypatch.setitem(ENCODERS, "theirs", lambda model, settings: rounded)
    assert load_encoder("theirs") is rounded


def test_texts_are_tried_as_queries_too(monkeypatch):
    class NoQueries(FakeEncoder):
        def encode_queries(self, modality, items):
            raise ValueError("no such route")

    line = line_of(monkeypatch, NoQueries())
    assert line == f"{TRIAL}text as a query: ValueError: no such route{ADVICE}"
