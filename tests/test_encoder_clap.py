"""CLAP models: against the model called directly and its own feature extractor; from shards of
sounds to search by words and by sounds."""

from __future__ import annotations

import json
import shutil
import sys

import commands
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from random_models import clap_folder, clip_folder
from tiny_sounds import RATE, encoded, make_sounds, some_samples, tone

from chiasm.index import Query, Recorder, Term, build_index, open_collection, replay
from chiasm.index.verify import check
from chiasm.jobs.cli.search import search
from chiasm.jobs.config import compose
from chiasm.pipeline.collection import embeddings, read_entry
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.encoders.clap import Features
from chiasm.pipeline.errors import ChiasmError, EncoderError, UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.sounds import SoundSettings, decode
from chiasm.pipeline.sounds.decode import _stream_class
from chiasm.pipeline.storage import Folder

FLOAT32 = EncoderSettings(precision="float32", device="cpu")
KINDS = {"one piece": False, "fused": True}
LENGTH = RATE  # samples that the tiny models take
COUNT = 20
CUT, SILENT, TEXT_ALONE = 3, 6, 9  # samples of the shard that are odd

commands.preload("chiasm.pipeline.encoders.clap", "soundfile")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: clap_folder(base / kind, fused=fused) for kind, fused in KINDS.items()}


@pytest.fixture(scope="module")
def encoders(folders):
    return {kind: load_encoder(f"hf:{folder}", FLOAT32) for kind, folder in folders.items()}


def own(folder):
    """The model, its feature extractor and its tokenizer, as transformers loads them."""
    with capture_warnings():
        model = transformers.ClapModel.from_pretrained(folder, dtype=torch.float32).eval()
        extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return model, extractor, tokenizer


def sound(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, length).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_the_input_is_the_extractors_for_sounds_not_longer_than_the_model_takes(
    folders, tmp_path, kind, padding
):
    folder = shutil.copytree(folders[kind], tmp_path / "model")
    edit_json(folder / "preprocessor_config.json", padding=padding)
    encoder, (_, extractor, _) = load_encoder(f"hf:{folder}", FLOAT32), own(folder)
    longest = LENGTH + 319 if kind == "fused" else LENGTH  # a hop more is still a whole sound
    for length in (1, 255, 700, LENGTH // 3, LENGTH // 2 + 1, LENGTH - 1, LENGTH, longest):
        samples = sound(length, length)
        wanted = extractor(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0]
        found = encoder.preprocess("sound", samples)
        assert found.mel.shape == wanted.shape and not found.is_long
        np.testing.assert_allclose(found.mel, wanted, atol=1e-5)


def test_of_a_longer_sound_it_is_the_middle(folders, encoders):
    _, extractor, _ = own(folders["one piece"])
    samples = sound(3 * LENGTH + 7)
    found = encoders["one piece"].preprocess("sound", samples)
    middle = samples[LENGTH + 3 : 2 * LENGTH + 3]
    wanted = extractor(middle, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    np.testing.assert_allclose(found.mel, wanted, atol=1e-5)
    assert found.is_long


def test_a_longer_sound_is_fused_of_pieces_that_chance_can_choose(folders, encoders, monkeypatch):
    _, extractor, _ = own(folders["fused"])
    samples = sound(4 * LENGTH)
    found = encoders["fused"].preprocess("sound", samples)
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
        made = extractor(samples, sampling_rate=RATE, return_tensors="np")
    np.testing.assert_allclose(found.mel, made["input_features"][0], atol=1e-5)
    assert found.is_long and made["is_longer"][0][0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_does_not_depend_on_chance_or_on_the_batch(encoders, kind):
    encoder = encoders[kind]
    assert encoder.dims == {"sound": 24, "text": 24, "joint": 24}
    samples = [sound(n, n) for n in (4000, 3 * LENGTH, 800)]
    items = [encoder.preprocess("sound", one) for one in samples]
    again = [encoder.preprocess("sound", one) for one in samples]
    together = encoder.encode("sound", items).vectors
    for number in range(len(items)):
        alone = encoder.encode("sound", again[number : number + 1]).vectors
        np.testing.assert_allclose(together[number], alone[0], atol=1e-6)


def test_captions_are_cut_to_what_the_model_takes_and_counted(encoders):
    encoder = encoders["one piece"]
    made = encoder.encode("text", ["short", "x" * 36, "x" * 80, "\ud83d"])
    assert made.tokens_cut.tolist() == [0, 1, 45, 0]
    same = encoder.encode("text", ["x" * 35, "x" * 80])
    np.testing.assert_allclose(same.vectors[0], same.vectors[1], atol=1e-6)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "line"),
    [
        ("preprocessor_config.json", {"feature_size": 32}, "expected 64 bands, as config.json say"),
        ("preprocessor_config.json", {"max_length_s": 600}, "as a trial"),
    ],
)
def test_a_folder_of_files_that_do_not_go_together_is_refused(
    folders, tmp_path, file, changes, line
):
    folder = shutil.copytree(folders["one piece"], tmp_path / "model")
    edit_json(folder / file, **changes)
    with pytest.raises(EncoderError, match=line) as refused:
        load_encoder(f"hf:{folder}", FLOAT32)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "config.json"])
def test_a_folder_without_one_of_its_files_is_refused(folders, tmp_path, name):
    folder = shutil.copytree(folders["one piece"], tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(EncoderError) as refused:
        load_encoder(f"hf:{folder}", FLOAT32)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    samples = some_samples(COUNT)
    samples[CUT]["mp3"] = samples[CUT]["mp3"][:600]
    samples[SILENT] = {"wav": encoded(np.zeros(0)), "txt": b"nothing"}
    samples[TEXT_ALONE] = {"txt": b"a text alone"}
    samples[10]["mp3"] = samples[10].pop("ogg")  # the bytes tell
    return make_sounds(tmp_path_factory.mktemp("shards") / "s-00000.tar", samples)


@pytest.fixture(scope="module")
def made(tmp_path_factory, shard, folders):
    """A collection of sounds and its index."""
    path = tmp_path_factory.mktemp("made") / "c"
    make_collection(shard, path, f"hf:{folders['one piece']}", encoding=FLOAT32)
    build_index(path)
    return path


def test_rows_are_sounds_and_texts_in_one_space(made, shard, encoders):
    entry = read_entry(Folder(str(made)), list_shards([str(shard)])[0].id)
    assert entry is not None
    assert [(one.key, one.stage, one.reason) for one in entry.dropped] == [
        (f"{CUT:05d}", "decode", "truncated"),
        (f"{SILENT:05d}", "decode", "no_samples"),
    ]
    assert [(note.key, note.reason, note.detail) for note in entry.notes] == [
        (f"{TEXT_ALONE:05d}", "no_member", "sound")
    ]
    (file,) = embeddings(Folder(str(made)))
    vectors, has = file.vectors("sound")
    keys = file.read(["key"])["key"].to_pylist()
    encoder, samples = encoders["one piece"], some_samples(COUNT)
    for number, key in enumerate(keys):
        data = next(data for name, data in samples[int(key)].items() if name != "txt")
        assert has[number] == (int(key) != TEXT_ALONE)
        if has[number]:
            item = encoder.preprocess("sound", decode(data, SoundSettings(), RATE))
            wanted = encoder.encode("sound", [item]).vectors[0]
            np.testing.assert_allclose(vectors[number], wanted, atol=1e-3)
    table = pq.read_table(made / "embeddings")
    assert table["sound_member"].null_count == table["joint"].null_count == 1
    assert table["image"].null_count == len(table)
    assert check(made, reencode=COUNT).findings == []


def test_a_changed_sound_is_a_finding(made, shard, tmp_path):
    before = shard.read_bytes()
    member = some_samples(COUNT)[0]["wav"]
    try:
        shard.write_bytes(before.replace(member[-2000:], member[-4000:-2000], 1))
        found = [str(finding) for finding in check(made, reencode=COUNT).findings]
    finally:
        shard.write_bytes(before)
    assert any("the shard holds another sound at 00000.wav" in line for line in found)


def test_sounds_find_sounds_and_texts_and_texts_find_sounds(made, encoders):
    searcher = open_collection(made)
    assert searcher.default_column == "sound"
    data = encoded(tone(150, 0.4))
    first = searcher.search(members={"sound": data}, k=1)[0]
    assert first.key == "00000" and first.score > 0.999
    assert first.data("sound") == some_samples(COUNT)[0]["wav"]
    encoder = encoders["one piece"]
    item = encoder.preprocess("sound", decode(data, SoundSettings(), RATE))
    (vector,) = encoder.encode("sound", [item]).vectors
    for column in ("sound", "text", "joint"):
        by_sound = searcher.search(members={"sound": data}, column=column, k=5)
        by_vector = searcher.search_many([Query(vector=vector, column=column, k=5)])[0]
        assert [hit.id for hit in by_sound] == [hit.id for hit in by_vector]
    by_words = searcher.search_many(["a dog", Query("a dog", column="sound")])
    assert [hit.id for hit in by_words[0]] == [hit.id for hit in by_words[1]]
    both = searcher.search("a", sound=data, column="joint", k=1)
    assert both[0].key == "00000" and str(both.query) == '"a" + sound (given as bytes)'
    terms = [Term("a", weight=0.5), Term(members={"sound": data}, weight=2)]
    (text,) = encoder.encode("text", ["a"]).vectors
    summed = Query(vector=text / 2 + 2 * vector, column="text")
    by_terms, by_sum = searcher.search_many([Query(terms=terms, column="text"), summed])
    assert [hit.id for hit in by_terms] == [hit.id for hit in by_sum]


def test_a_receipt_of_a_sound_is_replayed_without_its_file(made, tmp_path):
    path, to = tmp_path / "query.wav", tmp_path / "r.json"
    path.write_bytes(encoded(tone(240, 0.6)))
    recorder = Recorder(open_collection(made, encoding=FLOAT32))
    recorder.search([Query(members={"sound": path}, column="sound", k=3)])
    recorder.search([Query(terms=[Term(members={"sound": str(path)}, weight=2)], column="text")])
    recorder.write(str(to))
    path.unlink()
    assert replay(str(to), encoding=FLOAT32).changes == []


@pytest.mark.parametrize(
    ("query", "line"),
    [
        (
            Query(members={"sound": b"no sound"}, column="sound"),
            r"^the query's sound: expected a so",
        ),
        (
            Query(members={"sound": "/no/such.wav"}, column="sound"),
            r"^/no/such\.wav: expected a sou",
        ),
        (
            Query(members={"array": b""}, column="sound"),
            r"expected one that takes array, found one",
        ),
        (Query(image=b"", column="sound"), r"expected one that takes image, found one for sound"),
        (
            Query(members={"sound": " "}, column="sound"),
            r"expected a sound's path or URL, found an",
        ),
    ],
)
def test_what_cannot_be_searched_by_is_one_line(made, query, line):
    with pytest.raises(UsageError, match=line):
        open_collection(made).search_many([query])


def test_a_sound_is_neither_reranked_nor_calibrated():
    sound_alone = {"members": {"sound": b"x"}, "column": "sound"}
    with pytest.raises(UsageError, match="hybrid: expected words to find in captions, found no"):
        Query(**sound_alone, hybrid=True)
    assert Query(**sound_alone).kind == "mixed"
    for wrong in ({"members": ["x"]}, {"members": {"sound": 3}}, {"members": {3: "x"}}):
        with pytest.raises(TypeError, match=r"^members: expected"):
            Query(**wrong)
    with pytest.raises(UsageError, match=r"^members\['image'\]: expected that as image"):
        Query(members={"image": b"x"})
    with pytest.raises(UsageError, match=r"^term: expected some words or a picture"):
        Term("a", members={"sound": b"x"})


def test_words_beside_a_sound_are_refused_a_p_value(made):
    query = Query("a", members={"sound": b"x"}, calibrated=True, column="sound")
    with pytest.raises(UsageError, match="as captions calibrate it, found a sound"):
        open_collection(made).search_many([query])


def test_limits_of_sound_are_settings_and_part_of_the_edition(shard, folders, tmp_path):
    name, settings = f"hf:{folders['one piece']}", EmbedSettings(sound=SoundSettings(0.7))
    long = [n for n in range(COUNT) if n not in (CUT, SILENT, TEXT_ALONE) and n % 5 > 1]
    summary = make_collection(shard, tmp_path / "c", name, encoding=FLOAT32, settings=settings)
    assert summary.reasons["too_long"] == len(long)
    assert make_collection(shard, tmp_path / "c", name, settings=settings).skipped == 1
    assert make_collection(shard, tmp_path / "c", name).done == 1  # under other limits
    assert check(tmp_path / "c", reencode=COUNT).findings == []
    assert compose("laptop", ["sound.max_duration=3"]).embedding.sound.max_duration == 3


def test_the_command_line_searches_by_a_sound_and_checks(chiasm, made, tmp_path):
    path = tmp_path / "query.flac"
    path.write_bytes(encoded(tone(240, 0.6, seed=1), "FLAC"))
    ran = chiasm("search", made, "--sound", path, "-k", 1, "--sheet", tmp_path / "s.png")
    assert ran.returncode == 0 and "00001" in ran.stdout, ran.stderr
    assert ran.stdout.startswith(f"sound {path} in sound: ")
    arguments = ("a dog", "--member", f"sound=2:{path}", "--minus", "sea", "-k", 1, "--json")
    found = json.loads(chiasm("search", made, *arguments).stdout)
    assert [term.get("members") for term in found["query"]["terms"]] == [
        None, {"sound": str(path)}, None,
    ]  # fmt: skip
    assert found["query"]["column"] == "sound" and len(found["results"]) == 1
    assert found["results"][0]["members"]["sound"]["member"].startswith(found["results"][0]["key"])
    ran = chiasm("check", made, "--reencode", 5)
    assert ran.returncode == 0 and "5 members" in ran.stdout


def test_what_cannot_be_asked_for_is_refused_by_the_command(made, shard, tmp_path):
    path = tmp_path / "query.wav"
    path.write_bytes(encoded(tone(240)))
    for options, line in (
        ({"sound": [str(shard)]}, "expected a sound, found not_a_sound: archive \\(tar\\)"),
        ({"member": ["sound"]}, "--member sound: expected MODALITY=FILE, such as array=x.npy"),
        ({"member": [f"text={path}"]}, "expected that as text"),
        ({"sound": [str(path)], "receipt": str(path)}, f"--receipt: {path}.*--sound {path}"),
        ({"sound": [str(path)], "rerank": ["match:2"]}, "one that makes vectors only"),
        ({"member": ["sound=http://user:word@x/y.wav"]}, "^--member: "),
    ):
        with pytest.raises(ChiasmError, match=line) as refused:
            search(str(made), **options)
        assert "\n" not in str(refused.value)


def test_a_model_without_sound_says_so(tmp_path):
    folder = clip_folder(
        tmp_path / "clip", side=32, width=8, vision={"patch_size": 16},
        tower={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
               "num_attention_heads": 2},
    )  # fmt: skip
    encoder = load_encoder(f"hf:{folder}", FLOAT32)
    with pytest.raises(UsageError, match="expected one that takes sound, found one for image, tex"):
        encoder.encode("sound", [])


def test_without_soundfile_the_run_ends_in_one_line_and_words_are_still_searched(
    made, shard, folders, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "soundfile", None)  # an import of it fails
    _stream_class.cache_clear()
    with pytest.raises(EncoderError, match=r"pip install 'chiasm\[sound\]'$"):
        make_collection(shard, tmp_path / "c", f"hf:{folders['one piece']}", encoding=FLOAT32)
    assert not list(tmp_path.glob("c/embeddings/*"))
    assert len(open_collection(made).search("a dog", k=3)) == 3


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_the_input_at_the_extractors_own_defaults_is_the_extractors(truncation):
    """48 kHz, ten seconds, 64 bands, as LAION's models have it."""
    extractor = transformers.ClapFeatureExtractor(truncation=truncation)
    samples = sound(300_000)
    wanted = extractor(samples, sampling_rate=48_000, return_tensors="np")["input_features"][0]
    np.testing.assert_allclose(Features.of(extractor)(samples).mel, wanted, atol=1e-5)
