"""Answerers by name, and batches of requests of which some fail."""

from __future__ import annotations

import pytest
from fake_answerer import FakeAnswerer

from chiasm.pipeline.encoders import (
    TASKS,
    Answerer,
    Fault,
    GenerateSettings,
    Reply,
    Request,
    Sampling,
    answer_batch,
    load_answerer,
    probe_answerer,
    require_task,
)
from chiasm.pipeline.errors import UsageError

GREEDY = GenerateSettings()


class Echo:
    """Answers with the text in capitals. Fails on any batch that has `bad` in it; `nan` has a
    confidence that is no number."""

    name, fingerprint, precision, device = "echo", "0" * 32, "float32", "cpu"
    tasks = dict.fromkeys(["ask", "translate"], ("en",))

    def __init__(self):
        self.sizes, self.modalities = [], {}

    def preprocess(self, modality, raw):
        return raw

    def cost(self, modality, item):
        return len(item)

    def answer(self, requests, settings):
        self.sizes.append(len(requests))
        if any(request.text == "bad" for request in requests):
            raise RuntimeError("no kernel for this\nsecond line")
        if any(request.text == "large" for request in requests) and len(requests) > 1:
            raise MemoryError
        score = {"nan": float("nan")}
        return [Reply(r.text.upper(), confidence=score.get(r.text, 0.5)) for r in requests]


def ask(text):
    return Request("ask", text=text, image=0)


def test_an_answer_without_words_is_a_fault_and_a_drawing_needs_none():
    replies = answer_batch(Echo(), [ask("a"), ask(" \n")], GREEDY)
    assert isinstance(replies[0], Reply) and isinstance(replies[1], Fault)
    assert str(replies[1]) == "no_words: the model ended its answer before the first word"
    drawing = Echo()
    drawing.tasks = {"imagine": ()}
    (reply,) = answer_batch(drawing, [Request("imagine", text="")], GREEDY)
    assert isinstance(reply, Reply)
    silent = FakeAnswerer()
    silent._reply = lambda request: Reply("")
    probe_answerer(silent, "ask", "en")  # of its first tokens some models make no words


def test_what_fails_alone_is_a_fault_and_costs_no_other_its_reply():
    texts = ["a", "bad", "c", "large", "nan", "f", "g"]
    answers = answer_batch(Echo(), list(map(ask, texts)), GREEDY)
    replies = [answer.text for answer in answers if isinstance(answer, Reply)]
    assert replies == ["A", "C", "LARGE", "F", "G"]
    refused, not_finite = answers[1], answers[4]
    assert isinstance(refused, Fault) and isinstance(not_finite, Fault)
    assert str(refused) == "refused: ask: RuntimeError: no kernel for this"
    assert not_finite.reason == "not_finite"


def test_a_batch_without_faults_is_one_call():
    echo = Echo()
    assert isinstance(echo, Answerer)
    assert [reply.text for reply in answer_batch(echo, [ask("a"), ask("b")], GREEDY)] == ["A", "B"]
    assert echo.sizes == [2]
    assert answer_batch(echo, [], GREEDY) == []


def test_replies_that_are_too_few_are_a_fault():
    echo = Echo()
    echo.answer = lambda requests, settings: []
    (fault,) = answer_batch(echo, [ask("a")], GREEDY)
    assert str(fault) == "refused: 0 replies for 1 requests"


def test_a_task_or_a_language_that_the_model_lacks_is_one_line():
    with pytest.raises(UsageError) as refused:
        answer_batch(Echo(), [ask("a"), Request("caption", image=0)], GREEDY)
    assert str(refused.value) == (
        "model echo: expected one that can caption, found one that can ask, translate; "
        "take another model"
    )
    with pytest.raises(UsageError, match="expected one that can judge sentiment, found one"):
        require_task(Echo(), "sentiment")
    with pytest.raises(UsageError, match="in zh, found one for en"):
        require_task(Echo(), "ask", "zh")


def test_the_shipped_model_has_every_task_in_both_languages():
    tasks = load_answerer("pocket").tasks
    assert tasks.keys() == TASKS.keys()
    assert {task: set(languages) for task, languages in tasks.items() if task != "imagine"} == {
        task: {"en", "zh"} for task in TASKS if task != "imagine"
    }


def test_another_family_is_refused_by_name():
    with pytest.raises(UsageError, match="expected one of pocket, hf:ID_OR_DIR"):
        load_answerer("st:some/model")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: GenerateSettings(beams=0), "beams: expected 1 or more, found 0"),
        (lambda: GenerateSettings(max_tokens=0), "max_tokens: expected 1 or more, found 0"),
        (lambda: GenerateSettings(beams=257), "beams: expected at most 256, found 257"),
        *(
            (
                lambda value=value: Sampling(temperature=value),
                f"temperature: expected a finite number, 0.001 or more, found {value:g}",
            )
            for value in (0, 1e-320, float("inf"), float("nan"))
        ),
        (lambda: Sampling(seed=2**63), f"seed: expected an integer of 64 bits, found {2**63}"),
        (lambda: Sampling(top_p=1.5), "top_p: expected above 0, at most 1, found 1.5"),
        (
            lambda: GenerateSettings(beams=2, sampling=Sampling()),
            "beams: expected 1 with sampling, found 2",
        ),
        (lambda: GenerateSettings(candidates=0), "candidates: expected 1 or more, found 0"),
        (
            lambda: GenerateSettings(candidates=2),
            "candidates: expected 1 without sampling, found 2",
        ),
        (
            lambda: GenerateSettings(sampling=Sampling(), candidates=257),
            "candidates: expected at most 256, found 257",
        ),
    ],
)
def test_settings_out_of_bounds_are_refused(make, line):
    with pytest.raises(UsageError) as refused:
        make()
    assert str(refused.value) == line
