"""Does today's code keep a collection that an earlier commit made?

    python -m benchmarks.compatibility [--commit 3f015cd] [--samples 500]

Exports the commit with `git archive`. The commit's code draws shards of scenes, embeds all but the
last with its `pocket`, builds the index and answers a few queries. Today's code then answers the
same queries with those weights, checks the collection, embeds its shards again and adds the last
shard. Prints a table of what held; exits with 1 if something did not.

    python -m benchmarks.compatibility --fixture tests/data/collection-schema-1

makes the small collection that the tests read, and the weights that made it: a small model that the
commit's code trains in minutes and takes for its own. Its shards bear the URLs of a bucket, so
that shard ids and editions are the same on every machine.

    python -m benchmarks.compatibility --two-tower-fixture tests/data/two-tower-6

makes another: two towers of random weights, the model that the commit trains on them, and a
collection by it. The model names its towers by paths from the folder that they all are in.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent
COMMIT = "3f015cd"  # the last one before `chiasm` became the name to import
SAMPLES_PER_SHARD = 100
BUCKET = "s3://bucket/schema-1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
QUERIES: tuple[dict[str, str], ...] = (
    {"text": "a red balloon on the beach", "column": "image"},
    {"text": "a white flower in a meadow", "column": "text"},
    {"text": "草地上的花", "column": "joint"},
    {"text": "a checked circle in a green field", "column": "image", "rerank": "vectors:8"},
    {"text": "a small yellow balloon", "column": "image", "rerank": "match:5"},
)
TOWER_QUERIES: tuple[dict[str, str], ...] = (
    {"text": "red and blue", "column": "image"},
    {"text": "a picture of white beside pink", "column": "text"},
    {"text": "green and black", "column": "joint"},
)
K = 3
VECTORS = ["image", "text", "joint"]
VECTORS_APART = 2e-3  # by the rounding of float16, as in tests/test_compatibility.py
DRAW = """
import json, sys
from itertools import islice
from pipeline.scenes.samples import samples
from pipeline.scenes.world import gallery
from pipeline.shards import write_shard

folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
drawn = list(samples(gallery(count, 3), 3))
for sample in drawn:  # all facts of a scene would take more room than its picture
    sample["json"] = {name: sample["json"][name] for name in ("things", "background")}
drawn[1]["png"] = b"not a picture"
del drawn[2]["txt"], drawn[2]["json"]
for number, start in enumerate(range(0, count, size)):
    write_shard(f"{folder}/scenes-{number:05d}.tar", drawn[start : start + size])
"""


TRAIN = """
import sys
from pathlib import Path
from pipeline.model.config import FusionConfig, ImageConfig, ModelConfig, TextConfig
from pipeline.model.feed import FeedSettings
from pipeline.model.train import train
from pipeline.model.training import TrainSettings

train(
    TrainSettings(
        steps=300, fusion_steps=400, fusion_batch=16, rate=2e-3, corpus=600, calibrated=64,
        evaluate_every=1000, gallery=24, feed=FeedSettings(batch=64, side=36, context=48),
        model=ModelConfig(
            ImageConfig(side=36, stem=(16, 32), width=64, depth=2, heads=2),
            TextConfig(vocabulary=600, context=48, width=64, depth=1, heads=2),
            dim=64,
            fusion=FusionConfig(width=32, depth=1, heads=2),
        ),
    ),
    Path(sys.argv[1]), device="cpu", precision="float32", workers=0,
)
"""
TRAIN_TOWERS = """
import inspect, sys
from pathlib import Path
sys.path.append(sys.argv[1])
import tiny_towers
from pipeline.encoders import EncoderSettings
from pipeline.shards import list_shards
from pipeline.two_tower.learn import LearnSettings
from pipeline.two_tower.network import TwoTowerConfig
from pipeline.two_tower.train import TwoTowerSettings, train_two_tower

small = {"dim": 64, "image_hidden": 16, "text_hidden": 16, "word_hidden": 16}
TwoTowerConfig.dim = small["dim"]
fields = inspect.signature(TwoTowerConfig).parameters.values()
TwoTowerConfig.__init__.__defaults__ = tuple(
    small.get(one.name, one.default) for one in fields if one.default is not one.empty
)
image = tiny_towers.image_folder(Path("towers/image"))
text = tiny_towers.text_folder(Path("towers/text"))
tiny_towers.make_pairs(Path("pairs.tar"), 120, 1)
tiny_towers.make_pairs(Path("shard-00000.tar"), 12, 2)
train_two_tower(
    TwoTowerSettings(
        str(image), str(text), fusion=None, encoder=EncoderSettings("float32", "cpu"),
        learn=LearnSettings(steps=40, fusion_steps=20, batch=64, warmup=5, checkpoint_every=15),
    ),
    list_shards(["pairs.tar"], None), Path("trained"), lambda line: None,
)
"""
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class Version:
    """A tree of chiasm's code, how its command is started, and the name by which it loads the
    weights of the commit's `pocket`."""

    def __init__(self, tree: Path, module: str, encoder: str = "pocket", **variables: str) -> None:
        self.tree, self.module, self.encoder = tree, module, encoder
        self.folder = tree  # where its commands run
        self.environment = {
            **os.environ,
            **variables,
            "PYTHONPATH": str(tree),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def python(self, *arguments: object, expected: Sequence[int] = (0,)) -> str:
        """Standard output of `python ARGUMENTS`; RuntimeError for another exit code."""
        ran = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode not in expected:
            output = f"{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
            raise RuntimeError(f"{arguments}: exit code {ran.returncode}\n{output}")
        return ran.stdout

    def chiasm(self, *arguments: object, expected: Sequence[int] = (0,)) -> str:
        return self.python("-m", self.module, *arguments, expected=expected)

    def embed(self, shards: Sequence[str], collection: Path) -> dict[str, Any]:
        # float32: bfloat16 is rounded otherwise on another processor
        options = ("--encoder", self.encoder, "--set", "encoder.precision=float32")
        options += ("--max-loss", "1", "--json")
        return json.loads(self.chiasm("embed", *shards, "--to", collection, *options))

    def answers(
        self, collection: Path, queries: Sequence[dict[str, str]] = QUERIES
    ) -> list[list[dict[str, Any]]]:
        """The first K results of each query, each an id and a score, best first."""
        answers = []
        for query in queries:
            options = ["--column", query["column"], "-k", str(K), "--json"]
            if "rerank" in query:
                options += ["--rerank", query["rerank"]]
            if self.module != "jobs":  # the commit had no such option
                options += ["--encoder", self.encoder]
            found = json.loads(self.chiasm("search", collection, query["text"], *options))
            answers.append([{"id": hit["id"], "score": hit["score"]} for hit in found["results"]])
        return answers


def export(commit: str, target: Path) -> Path:
    """The files of a commit of this repository below `target`."""
    target.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)
    return target


def parquet_files(collection: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in collection.glob("embeddings/*.parquet")}


def rows_apart(one: Path, other: Path) -> float:
    """The largest difference of two collections' vectors; infinite where anything else differs, but
    for the edition and the encoder's name, which another reading and another name change."""
    largest = 0.0
    for path in one.glob("embeddings/*.parquet"):
        files = [path, other / "embeddings" / path.name]
        tables = [pq.read_table(file).replace_schema_metadata(None) for file in files]
        footers = [json.loads(pq.read_metadata(file).metadata[b"chiasm"]) for file in files]
        for footer in footers:
            del footer["edition"], footer["encoder"]
        if footers[0] != footers[1] or not tables[0].drop(VECTORS).equals(tables[1].drop(VECTORS)):
            return math.inf
        for column in VECTORS:
            ours, theirs = (table[column].to_pylist() for table in tables)
            for a, b in zip(ours, theirs, strict=True):
                if (a is None) != (b is None):
                    return math.inf
                if a is not None:
                    largest = max(largest, *(abs(x - y) for x, y in zip(a, b, strict=True)))
    return largest


def same_answers(
    before: list[list[dict[str, Any]]], after: list[list[dict[str, Any]]]
) -> tuple[bool, float]:
    """Whether all ids are the same in the same order, and the largest difference of two scores."""
    same = [[hit["id"] for hit in hits] for hits in before] == [
        [hit["id"] for hit in hits] for hits in after
    ]
    pairs = [
        (one, other)
        for old, new in zip(before, after, strict=True)
        for one, other in zip(old, new, strict=False)
    ]
    return same, max(abs(one["score"] - other["score"]) for one, other in pairs)


def checked(version: Version, collection: Path, *options: object) -> tuple[bool, str]:
    """Whether `check` finds nothing, and how much it has looked at."""
    found = json.loads(version.chiasm("check", collection, "--json", *options, expected=(0, 1)))
    return found["ok"], ", ".join(f"{count} {what}" for what, count in found["checked"].items())


def compare(commit: str, samples: int, folder: Path) -> list[tuple[str, bool, str]]:
    """(What is promised, whether it held, the figures) for every promise."""
    old = Version(export(commit, folder / "old"), "jobs")
    new = Version(ROOT, "chiasm", f"pocket:{old.tree / 'pipeline' / 'pocket'}")
    named = ("--encoder", new.encoder)
    (folder / "shards").mkdir()
    old.python("-c", DRAW, folder / "shards", samples, SAMPLES_PER_SHARD)
    *shards, added = sorted(map(str, (folder / "shards").glob("*.tar")))
    collection = folder / "collection"
    made = old.embed(shards, collection)
    old.chiasm("index", "build", collection)
    before, files = old.answers(collection), parquet_files(collection)

    rows: list[tuple[str, bool, str]] = []
    same, apart = same_answers(before, new.answers(collection))
    figures = f"{len(QUERIES)} queries, {sum(map(len, before))} hits, scores apart by {apart:.1e}"
    rows.append(("search gives the same ids and scores", same and apart < 1e-4, figures))

    rows.append(("check finds nothing", *checked(new, collection, "--reencode", 20, *named)))

    again = new.embed(shards, collection)
    nothing = (again["shards"]["done"], again["rows"]) == (0, made["rows"])
    unchanged = parquet_files(collection) == files
    figures = f"{again['shards']['skipped']} shards skipped, {again['shards']['done']} embedded"
    rows.append(("embed again embeds nothing anew", nothing and unchanged, figures))

    fresh = folder / "fresh"
    new.embed(shards, fresh)
    apart = rows_apart(fresh, collection)
    rows.append(("embedded anew: the same rows", apart < VECTORS_APART, f"apart by {apart:.1e}"))

    more = new.embed([added], collection)
    new.chiasm("index", "build", collection, *named)
    options = ("-k", made["rows"] + more["rows"], "--json", *named)
    found = json.loads(new.chiasm("search", collection, "a flower", *options))
    stem = Path(added).stem
    from_added = sum(hit["shard"].startswith(stem) for hit in found["results"])
    kept = from_added == more["rows"] and len(found["results"]) == made["rows"] + more["rows"]
    figures = f"{from_added} of its {more['rows']} rows among {len(found['results'])} found"
    rows.append(("a shard is added and indexed", kept, figures))

    rows.append(("check finds nothing after that", *checked(new, collection)))

    try:
        old.answers(collection)
        rows.append((f"{commit} reads it still", True, f"{len(QUERIES)} queries"))
    except RuntimeError as error:
        rows.append((f"{commit} reads it still", False, str(error).splitlines()[-1]))
    return rows


def write_fixture(commit: str, target: Path) -> None:
    """The collection of two small shards as `commit` makes it, the weights that made it, a third
    shard to add, and the answers of `commit`."""
    import boto3
    from moto.server import ThreadedMotoServer

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        old = Version(export(commit, folder / "old"), "jobs", AWS_ENDPOINT_URL=url, **CREDENTIALS)
        trained, shipped = folder / "trained", old.tree / "pipeline" / "pocket"
        old.python("-c", TRAIN, trained)
        (target / "model").mkdir()
        for name in MODEL_FILES:
            shutil.copy(trained / name, shipped / name)
            shutil.copy(trained / name, target / "model" / name)
        (folder / "shards").mkdir()
        old.python("-c", DRAW, folder / "shards", 12, 4)
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="bucket")
        paths = sorted((folder / "shards").glob("*.tar"))
        urls = [f"{BUCKET}/{path.name}" for path in paths]
        for path, address in zip(paths, urls, strict=True):
            client.put_object(
                Bucket="bucket", Key=address.removeprefix("s3://bucket/"), Body=path.read_bytes()
            )
        collection = folder / "collection"
        old.embed(urls[:-1], collection)
        old.chiasm("index", "build", collection)
        answers = old.answers(collection)
        shutil.rmtree(collection / "runs")  # names and processes of the machine that made it
        shutil.copytree(folder / "shards", target / "shards")
        shutil.copytree(collection, target / "collection")
    server.stop()
    answered = [query | {"results": hits} for query, hits in zip(QUERIES, answers, strict=True)]
    write_answers(target, commit, answered)


def write_two_tower_fixture(commit: str, target: Path) -> None:
    """Two towers, a model trained on them and a collection of one shard, as `commit` makes them,
    and its answers."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        old = Version(export(commit, folder / "old"), "jobs", "two-tower:model")
        old.folder = folder
        old.python("-c", TRAIN_TOWERS, old.tree / "tests")
        (folder / "model").mkdir()
        shutil.copy(folder / "trained" / "model.safetensors", folder / "model")
        config = (folder / "trained" / "config.json").read_text()
        (folder / "model" / "config.json").write_text(config.replace(f"{folder}/", ""))
        collection = folder / "collection"
        old.embed(["shard-00000.tar"], collection)
        old.chiasm("index", "build", collection)
        answers = old.answers(collection, TOWER_QUERIES)
        shutil.rmtree(collection / "runs")
        for name in ("model", "collection", "towers/image", "towers/text/sentences"):
            shutil.copytree(folder / name, target / name)
    answered = [
        query | {"results": hits} for query, hits in zip(TOWER_QUERIES, answers, strict=True)
    ]
    write_answers(target, commit, answered)


def write_answers(target: Path, commit: str, answered: list[dict[str, Any]]) -> None:
    content = {"commit": commit, "k": K, "answers": answered}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (target / "answers.json").write_text(text + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", default=COMMIT, help="that makes the collection")
    parser.add_argument("--samples", type=int, default=500, help="scenes, in shards of 100")
    parser.add_argument("--fixture", type=Path, help="write the tests' collection there instead")
    parser.add_argument("--two-tower-fixture", type=Path, help="the tests' two-tower model instead")
    given = parser.parse_args()
    if given.two_tower_fixture is not None:
        write_two_tower_fixture(given.commit, given.two_tower_fixture)
        return 0
    if given.fixture is not None:
        write_fixture(given.commit, given.fixture)
        return 0
    with tempfile.TemporaryDirectory(prefix="chiasm-compatibility-") as folder:
        rows = compare(given.commit, given.samples, Path(folder))
    width = max(len(what) for what, _, _ in rows)
    for what, kept, figures in rows:
        print(f"{what:{width}}  {'held' if kept else 'BROKEN':6}  {figures}")
    return 0 if all(kept for _, kept, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
