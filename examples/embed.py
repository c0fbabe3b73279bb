"""Shards into a collection with an index, in one process.

    python examples/embed.py                              # 40 drawn scenes into scenes.chiasm
    python examples/embed.py 'photos/*.tar' --to photos.chiasm --encoder hf:ID_OR_FOLDER

Run it again: shards that are embedded are skipped. `chiasm embed` does the same with more workers.
"""

import argparse
from pathlib import Path

from chiasm import build_index, make_collection
from chiasm.pipeline.scenes.samples import samples
from chiasm.pipeline.scenes.world import gallery
from chiasm.pipeline.shards import write_shard

parser = argparse.ArgumentParser()
parser.add_argument("shards", nargs="*", help="WebDataset tars: paths, globs, URLs")
parser.add_argument("--to", default="scenes.chiasm", help="the collection's folder")
parser.add_argument("--encoder", default="pocket")
given = parser.parse_args()

if not given.shards:
    # A sample is {"__key__": "000000", "png": bytes, "txt": caption, "json": facts}.
    given.shards = ["scenes-00000.tar"]
    if not Path("scenes-00000.tar").exists():  # written again it would be another version
        write_shard("scenes-00000.tar", samples(gallery(40, seed=1), seed=1))

summary = make_collection(given.shards, given.to, given.encoder)
print(f"{given.to}: {summary.rows} rows of {summary.samples} samples")
for reason, count in summary.reasons.items():
    print(f"  dropped {count}: {reason}")
for failure in summary.failed:
    print(f"  {failure['shard']}: {failure['reason']}")

build_index(given.to)
