"""Late interaction over drawn scenes: recall and cost of a search against exact MaxSim.

    python -m benchmarks.late_interaction --scenes 10000 --queries 300

Scenes are drawn, embedded and indexed as `chiasm embed` and `chiasm index build` do it, by two
encoders that give a vector for each token: a ColPali of a few thousand random weights in its own
format, and the towers of `pocket`, whose tokens are learned by late interaction. Queries are
captions that no row has. Exact MaxSim scores every row, its tokens in memory as float32; all of
it on one thread. `by_tokens` is the search of an encoded query, `whole` encodes it too; `single`
searches by one vector a row, MUVERA's, as they are stored. Prints JSON and writes
benchmarks/results/late_interaction.json.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from benchmarks.machine import RESULTS, ROOT, machine, table, tell_and_keep
from chiasm.index import IndexSettings, Query, Searcher, build_index, open_collection
from chiasm.index.query import late_interaction, search_filtered
from chiasm.index.query.late_interaction import max_sim, proposing, search_tokens, token_index
from chiasm.pipeline.encoders import (
    BaseEncoder,
    Encoded,
    Encoder,
    EncoderSettings,
    Ragged,
    load_encoder,
    register_encoder,
)
from chiasm.pipeline.encoders.multi_vector import DIMS
from chiasm.pipeline.encoders.muvera import Muvera
from chiasm.pipeline.encoders.pocket import PocketEncoder
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.model.tokenizer import PAD
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import Scene, stream
from chiasm.pipeline.shards import write_shard

sys.path.append(str(ROOT / "tests" / "support"))

FLOAT32 = EncoderSettings(precision="float32", device="cpu", threads=1)
SHARDS, K = 4, 10
NAMES = ("colpali", "pocket")
DEPTHS = (10, 25, 50, 100, 200, 300, 400)


class PocketTokens(BaseEncoder):
    """Pocket's patches and the tokens of its texts as its fusion projects them, unit vectors."""

    def __init__(self) -> None:
        self._pocket: PocketEncoder = load_encoder("pocket", FLOAT32)  # type: ignore[assignment]
        network = self._pocket.network
        assert network.fusion is not None
        self._project = network.fusion.project
        self.name, self.precision, self.device = "pocket-tokens", "float32", "cpu"
        self.modalities, self.preprocessing = self._pocket.modalities, {"tokens": "pocket"}
        self.fingerprint = self._pocket.fingerprint[::-1]
        self.dims = dict.fromkeys((IMAGE, TEXT), DIMS)
        width = network.fusion.project(1, torch.zeros(1, 1, network.config.image.width)).shape[2]
        self.token_dims = dict.fromkeys((IMAGE, TEXT), width)
        self._single = Muvera(width, DIMS)

    def preprocess(self, modality: str, raw: Any) -> Any:
        return self._pocket.preprocess(modality, raw)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        tokens = self._tokens(modality, items)
        return Encoded(self._single.documents(tokens), tokens)

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        tokens = self._tokens(modality, items)
        return Encoded(self._single.queries(tokens), tokens)

    @torch.inference_mode()
    def _tokens(self, modality: str, items: Sequence[Any]) -> Ragged:
        network = self._pocket.network
        if modality == IMAGE:
            made, _ = network.encode_image(torch.from_numpy(np.stack(items)))
            kept = torch.ones(made.shape[:2], dtype=torch.bool)
        else:
            context = network.config.text.context
            ids = torch.from_numpy(self._pocket.tokenizer.batch(items, context))
            made, kept = network.encode_text(ids)[0], ids != PAD
        made = functional.normalize(self._project(int(modality == IMAGE), made).float(), dim=-1)
        return Ragged(made[kept].numpy(), kept.sum(1).numpy())


def write_scenes(folder: Path, count: int, seed: int) -> list[Scene]:
    """Shards of scenes, half of them twins of others, each with a caption."""
    scenes = list(itertools.islice(stream(seed, twins=0.5), count))
    rng = random.Random(f"{seed} rows")

    def sample(number: int) -> dict[str, Any]:
        data = io.BytesIO()
        picture(scenes[number]).save(data, "PNG", compress_level=1)
        text = caption(scenes[number], rng)
        return {"__key__": f"{number:06d}", "png": data.getvalue(), "txt": text.encode()}

    for shard in range(SHARDS):
        write_shard(folder / f"scenes-{shard}.tar", map(sample, range(shard, count, SHARDS)))
    return scenes


def caption(scene: Scene, rng: random.Random) -> str:
    return render_caption(plan(scene, rng, complete=False), rng, rng.choice(["en", "zh"]))


def measured(call: Callable[[int], Any], count: int) -> tuple[list[Any], dict[str, float]]:
    """What the calls return, and their milliseconds: of the CPU in the mean, of the wall clock at
    the median and at the 99th percentile."""
    call(0)
    walls, found = [], []
    began = time.process_time()
    for number in range(count):
        started = time.perf_counter()
        found.append(call(number))
        walls.append(1e3 * (time.perf_counter() - started))
    cpu = 1e3 * (time.process_time() - began) / count
    middle, late = np.percentile(walls, [50, 99])
    return found, {"cpu_ms": cpu, "median_ms": float(middle), "p99_ms": float(late)}


class Bench:
    """One collection of scenes, opened, with queries and their exact answers."""

    def __init__(self, path: Path, encoder: Encoder, texts: Sequence[str]) -> None:
        self.searcher: Searcher = open_collection(path)
        self.searcher._encoder = encoder
        self.texts, self.encoder = texts, encoder
        items = [encoder.preprocess(TEXT, text) for text in texts]
        encoded = [encoder.encode_queries(TEXT, [item]) for item in items]
        self.singles = np.concatenate([one.vectors for one in encoded])
        self.tokens = [one.tokens.values for one in encoded if one.tokens is not None]
        rows = self.searcher.tokens(IMAGE, range(len(self.searcher)))
        self.lengths, self.values = rows.lengths, rows.values.astype(np.float32)

    def exact(self, number: int) -> np.ndarray:
        """MaxSim of a query with every row."""
        query, lengths = self.tokens[number], self.lengths
        if (lengths == lengths[0]).all():  # faster where rows have as many tokens
            products = query @ self.values.T
            return products.reshape(len(query), -1, lengths[0]).max(axis=2).sum(axis=0)
        return max_sim(query, self.values, lengths)

    def by_tokens(self, number: int) -> list[int]:
        (hits,), _ = search_tokens([[(1.0, self.tokens[number])]], K, self.searcher, IMAGE, None)
        return [hit.position for hit in hits]

    def whole(self, number: int) -> list[int]:
        (answer,) = self.searcher.search_many([Query(self.texts[number], k=K)])
        return [result.hit.position for result in answer]

    def single(self, number: int) -> list[int]:
        _, positions = self.searcher.search_vectors(self.singles[number : number + 1], K)
        return positions[0].tolist()

    def depths(self, best: Sequence[np.ndarray]) -> dict[str, float]:
        """The share of MaxSim's best rows among the first N that are proposed, by N."""
        opened = token_index(self.searcher, IMAGE)
        found = {str(depth): 0.0 for depth in DEPTHS}
        for tokens, rows in zip(self.tokens, best, strict=True):
            xq = proposing([(1.0, tokens)], opened.proposals)[None]
            _, positions = search_filtered(opened.index, xq, max(DEPTHS), 0, None)
            for depth in DEPTHS:
                found[str(depth)] += recall(rows, positions[0, :depth]) / len(best)
        return found


def recall(best: np.ndarray, found: Sequence[int] | np.ndarray) -> float:
    return len(set(best.tolist()) & set(np.asarray(found).tolist())) / len(best)


def measure(path: Path, encoder: Encoder, texts: Sequence[str]) -> dict[str, Any]:
    """All figures of one collection."""
    bench = Bench(path, encoder, texts)
    count = len(texts)
    record: dict[str, Any] = {"rows": len(bench.searcher), "queries": count}
    record["tokens_per_row"] = float(bench.lengths.mean())
    record["bytes_per_row"] = 2 * bench.values.size / len(bench.lengths)
    scores, record["exact"] = measured(bench.exact, count)
    best = [np.lexsort((np.arange(len(one)), -one))[:K] for one in scores]
    for name in ("by_tokens", "whole", "single"):
        found, record[name] = measured(getattr(bench, name), count)
        pairs = zip(best, found, strict=True)
        record[name]["recall"] = float(np.mean([recall(a, b) for a, b in pairs]))
    record["share_of_exact_cpu"] = record["by_tokens"]["cpu_ms"] / record["exact"]["cpu_ms"]
    record["proposed"] = bench.depths(best)
    return record


def encoder_of(name: str, folder: Path) -> Encoder:
    if name == "pocket":
        register_encoder("pocket-tokens", lambda model, settings: PocketTokens())
        return load_encoder("pocket-tokens", FLOAT32)
    from tiny_multi_vector import colpali_folder

    return load_encoder(f"st:{colpali_folder(folder / 'model')}", FLOAT32)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens-of", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--to", type=Path, default=RESULTS / "late_interaction.json")
    given = parser.parse_args()
    record: dict[str, Any] = {"machine": machine(), "load": os.getloadavg()[0], "k": K}
    record |= {"seed": given.seed, "candidates": late_interaction.CANDIDATES, "dims": DIMS}
    with tempfile.TemporaryDirectory() as work, threadpool_limits(1):
        torch.set_num_threads(1)
        folder = Path(work)
        scenes = write_scenes(folder, given.scenes, given.seed)
        rng = random.Random(f"{given.seed} queries")
        texts = [caption(scene, rng) for scene in rng.sample(scenes, given.queries)]
        for name in given.tokens_of:
            encoder = encoder_of(name, folder)
            path = folder / name / "collection"
            shards = sorted(folder.glob("scenes-*.tar"))
            make_collection(shards, path, encoder)
            settings = IndexSettings(tune=False)
            started = time.perf_counter()
            build_index(path, settings=settings, columns=[IMAGE])
            built = time.perf_counter() - started
            record[name] = measure(path, encoder, texts) | {"build_seconds": built}
    tell_and_keep(record, given.to)
    ways = ("exact", "by_tokens", "whole", "single")
    cells = [
        [name, way, *(f"{record[name][way].get(key, 1):.3f}"
                      for key in ("recall", "cpu_ms", "median_ms", "p99_ms"))]
        for name in given.tokens_of for way in ways
    ]  # fmt: skip
    print(table(["tokens of", "way", "recall@10", "CPU ms", "median ms", "p99 ms"], cells))


if __name__ == "__main__":
    main()
