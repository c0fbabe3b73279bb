"""Images a second on an accelerator, `pipeline/` alone, against the image tower's bare forward.

    python -m benchmarks.accelerator [--device cuda] [--models NAME...] [--samples N] [--batch B]

No Ray, no FAISS: `embed_shard` from a shard on disk to its Parquet file, for CLIPs ViT-B/32 and
ViT-L/14 with random weights, pictures of 640 x 480 without captions; in the same run the image
tower on tensors that lie on the device, and what all cores decode with nothing else to do. Which of
the two is less is the limit. Writes benchmarks/results/accelerator.json for a CUDA device only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare import decode, forward, samples_of
from benchmarks.machine import CORES, keep, machine, table
from benchmarks.made_shards import CACHE, make_shards
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from tests.support.random_models import clip_folder

MODELS: dict[str, dict[str, Any]] = {
    "ViT-B/32": {"vision": {"patch_size": 32}},
    "ViT-L/14": {
        "tower": {"num_attention_heads": 16},
        "vision": {
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
        },
        "width": 768,
    },
}


def ours(model: Path, shard: Path, device: str, batch: int) -> dict[str, Any]:
    """One shard, opened to committed, with the model loaded and warm."""
    encoder = load_encoder(f"hf:{model}", EncoderSettings(device=device))
    settings = EmbedSettings(batch=BatchSettings(size=batch, decode_threads=CORES, queue=4 * batch))
    (source,) = list_shards([str(shard)])
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(place)
        embed_shard(source, encoder, folder, settings, run_id="warm", limit=batch)
        began = time.perf_counter()
        entry = embed_shard(source, encoder, folder, settings, run_id="benchmark")
        seconds = time.perf_counter() - began
    return {"images_per_second": round(entry.rows / seconds, 1), "busy": entry.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("accelerator: expected a CUDA device, found none: try --device cpu --samples 64")
    (shard,) = make_shards(1, given.samples, words=0)
    few = samples_of(str(shard), min(given.samples, 2048))
    figures: dict[str, Any] = {"on": machine(), "decode": decode(few), "models": {}}
    if given.device == "cuda":
        figures["device"] = torch.cuda.get_device_name()
    for name in given.models:
        folder = CACHE / name.replace("/", "-").lower()
        if not (folder / "config.json").exists():
            clip_folder(folder, **MODELS[name])
        rounds = []
        for _ in range(given.rounds):
            bare = forward(str(folder), few, given.batch, given.device, images_only=True)
            rounds.append(
                {"bare": bare["pairs_per_second"], **ours(folder, shard, given.device, given.batch)}
            )
        figures["models"][name] = {"precision": bare["precision"], "rounds": rounds}
        if given.device == "cuda":
            keep("accelerator", figures)
    print(table(("images/s", "all cores"), list(figures["decode"].items())))
    print(
        table(
            ("images/s", "ours", "bare forward"),
            [
                (name, each["images_per_second"], each["bare"])
                for name, model_figures in figures["models"].items()
                for each in model_figures["rounds"]
            ],
        )
    )


if __name__ == "__main__":
    main()
