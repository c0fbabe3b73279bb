"""The limits that the pipeline is held against, each measured alone on work that is in memory.

    python -m benchmarks.bare forward FOLDER SHARD [--pairs N] [--batch B] [--callers C]
    python -m benchmarks.bare encode ENCODER SHARD [--pairs N] [--batch B] [--callers C]
    python -m benchmarks.bare decode SHARD [--pairs N]
    python -m benchmarks.bare stages ENCODER SHARD [--pairs N]
    python -m benchmarks.bare lanes ENCODER SHARD [--pairs N] [--batch B] [--callers L]

`forward`: the two towers of a CLIP as transformers runs them, on tensors, texts padded to the
batch's longest; nothing of ours takes part. `encode`: an encoder of ours, joint vectors included,
on decoded pictures. Both: one caller whose operators have all cores, or C callers of the same
weights whose operators have one thread each. `decode`: our decode function and CLIP's preprocessing
over all cores, in threads and in processes by turns. `stages`: each stage of the write path alone
in one thread, seconds of processor time. `lanes`: the write path with L lanes, when its first batch
is written and how much memory it takes beyond the model. All print JSON.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from benchmarks import free_encoder
from benchmarks.machine import CORES
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import ParquetWriter
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encode_batch import encode
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.images import decode as decode_picture
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import PRECISIONS, resolve_precision
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.records import Batch, Decoded, Origin, Sample
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch

T = TypeVar("T")
TURNS = 4  # of threads and processes


def samples_of(shard: str, pairs: int) -> list[Sample]:
    (source,) = list_shards([shard])
    found = (item for item in read_samples(source, ReadSettings()) if isinstance(item, Sample))
    return list(itertools.islice(found, pairs))


@capture_warnings()
def forward(
    model: str,
    samples: Sequence[Sample],
    batch: int,
    device: str = "cpu",
    *,
    images_only: bool = False,
    callers: int = 1,
) -> dict[str, Any]:
    """Pairs a second of image forward + text forward, in the precision that `auto` takes."""
    precision = resolve_precision("auto", torch.device(device))
    torch.set_num_threads(CORES if callers == 1 else 1)
    network: Any = transformers.CLIPModel.from_pretrained(model, dtype=PRECISIONS[precision])
    network.eval().to(device)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    processor: Any = transformers.CLIPImageProcessorPil.from_pretrained(model)
    inputs = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        decoded = [decode_picture(s.picture or b"", DecodeSettings(), None).image for s in part]
        pixels = processor(decoded, return_tensors="pt")["pixel_values"]
        inputs.append([pixels.to(device, PRECISIONS[precision]), None])
        if not images_only:
            texts = tokenizer([s.captions[0] for s in part], padding="longest", return_tensors="pt")
            inputs[-1][1] = texts.to(device)
    tokens = max(texts["input_ids"].shape[1] if texts else 0 for _, texts in inputs)
    seconds = _called(functools.partial(_run, network), inputs, callers)
    rate = round(len(samples) / seconds, 3)
    return {"pairs_per_second": rate, "precision": precision, "tokens": tokens, "batch": batch}


def _called(work: Callable[[Sequence[T]], None], items: Sequence[T], callers: int) -> float:
    """Seconds in which so many callers are through with all items, each with its share of them."""
    shares = [items[number::callers] for number in range(callers)]

    def call(share: Sequence[T]) -> None:
        if callers > 1:
            torch.set_num_threads(1)  # OpenMP keeps that number for each thread
        work(share)

    with ThreadPoolExecutor(callers) as threads:
        # The first time, kernels are chosen and memory is taken.
        list(threads.map(call, [share[:1] for share in shares]))
        began = time.perf_counter()
        list(threads.map(call, shares))
        return time.perf_counter() - began


@torch.inference_mode()
def _run(network: Any, inputs: Sequence[Sequence[Any]]) -> None:
    for pixels, texts in inputs:
        network.get_image_features(pixel_values=pixels)
        if texts is not None:
            network.get_text_features(**texts)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def encode_rows(name: str, samples: Sequence[Sample], batch: int, callers: int) -> dict[str, Any]:
    """Pairs a second of an encoder's vectors, joint ones included, of decoded pictures."""
    torch.set_num_threads(CORES if callers == 1 else 1)
    encoder = load_encoder(name, EncoderSettings(threads=CORES if callers == 1 else 1))
    side, settings = encoder.modalities["image"].side, DecodeSettings()
    rows = []
    for sample in samples:
        picture = decode_picture(sample.picture or b"", settings, side).pixels
        made = {"image": encoder.preprocess("image", picture), "text": sample.captions[0]}
        rows.append(Decoded(sample.key, sample.captions, sample.json, made))
    cut = [Batch(rows[start : start + batch]) for start in range(0, len(rows), batch)]

    def work(share: Sequence[Batch]) -> None:
        for part in share:
            encode(part, encoder, Stopwatch())

    rate = round(len(samples) / _called(work, cut, callers), 3)
    return {"pairs_per_second": rate, "precision": encoder.precision, "batch": batch}


def decode(samples: Sequence[Sample]) -> dict[str, float]:
    """Pictures a second over all cores, in threads and in processes, of bytes that each has.

    In turns, over as many pictures as the pipeline has: of two short runs on a machine that drifts,
    the faster is the luckier one, and above any limit."""
    encoded = [sample.picture or b"" for sample in samples]
    _parts[:] = [encoded[core::CORES] for core in range(CORES)]
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(CORES, mp_context=fork) as processes:
        list(
            processes.map(decode_part, range(CORES), [8] * CORES)
        )  # forks before there are threads
        with ThreadPoolExecutor(CORES) as threads:
            list(threads.map(decode_part, range(CORES), [8] * CORES))
            spent = [(_seconds(processes), _seconds(threads)) for _ in range(TURNS)]
    in_processes, in_threads = (
        TURNS * len(encoded) / sum(each) for each in zip(*spent, strict=True)
    )
    return {"threads": round(in_threads, 2), "processes": round(in_processes, 2)}


_parts: list[list[bytes]] = []  # a child has what was there when it was forked


def _seconds(workers: Executor) -> float:
    began = time.perf_counter()
    list(workers.map(decode_part, range(CORES)))
    return time.perf_counter() - began


def decode_part(core: int, most: int | None = None) -> int:
    """Decode and preprocess a core's share of the pictures; how many these were."""
    encoder, settings = free_encoder.FreeEncoder(), DecodeSettings()
    part = _parts[core][:most]
    for data in part:
        encoder.preprocess(
            "image", decode_picture(data, settings, encoder.modalities["image"].side).pixels
        )
    return len(part)


def stages(name: str, shard: str, pairs: int, batch: int) -> dict[str, Any]:
    """Milliseconds of processor time a pair, each stage alone on all the pairs."""
    (source,) = list_shards([shard])
    encoder = load_encoder(name, EncoderSettings(threads=1))
    settings, clock = DecodeSettings(), Stopwatch()
    spent: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        made = work()
        spent[stage] = round((time.process_time() - began) / pairs * 1e3, 4)
        return made

    samples = timed("read", lambda: samples_of(shard, pairs))
    pictures = timed(
        "decode",
        lambda: [
            decode_picture(s.picture or b"", settings, encoder.modalities["image"].side)
            for s in samples
        ],
    )
    pixels = timed(
        "preprocess", lambda: [encoder.preprocess("image", each.pixels) for each in pictures]
    )
    rows = [
        Decoded(
            sample.key,
            sample.captions,
            sample.json,
            {"image": made, "text": sample.captions[0]},
            {
                "image": Origin(
                    sample.sources["image"].place, "0" * 64, (picture.width, picture.height)
                )
            },
        )
        for sample, made, picture in zip(samples, pixels, pictures, strict=True)
    ]
    cut = [Batch(rows[start : start + batch]) for start in range(0, pairs, batch)]
    encode(cut[0], encoder, Stopwatch())
    embedded = timed("encode", lambda: [encode(part, encoder, clock) for part in cut])
    with tempfile.TemporaryDirectory() as place:

        def write() -> None:
            with ParquetWriter(Folder(place), source, encoder.dims, "bare") as writer:
                for part in embedded:
                    writer.write(part)

        timed("write", write)
    return {"milliseconds": spent, "pairs": pairs}


def _memory(field: str) -> int:
    """KB of this process, as Linux has them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def lanes(name: str, shard: str, pairs: int, batch: int, count: int) -> dict[str, Any]:
    """Seconds to the first batch and to the last, and MB of memory at most beyond what there was
    before."""
    (source,) = list_shards([shard])
    encoder = load_encoder(name, EncoderSettings(threads=1))
    settings = EmbedSettings(batch=BatchSettings(size=batch, decode_threads=count))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    seen: list[float] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        embed_shard(
            source, encoder, Folder(place), settings, run_id="bare", limit=pairs,
            watch=lambda tally: seen.append(time.perf_counter() - began),
        )  # fmt: skip
    memory = _memory("VmHWM") - before
    return {
        "lanes": count,
        "first_batch": round(seen[0], 3),
        "seconds": round(seen[-1], 3),
        "megabytes": round(memory / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("limit", choices=("forward", "encode", "decode", "stages", "lanes"))
    parser.add_argument("names", nargs="+", help="FOLDER or ENCODER where one is asked for; SHARD")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--callers", type=int, default=1)
    given = parser.parse_args()
    *model, shard = given.names
    if given.limit == "stages":
        rates = stages(model[0], shard, given.pairs, given.batch)
    elif given.limit == "lanes":
        rates = lanes(model[0], shard, given.pairs, given.batch, given.callers)
    else:
        samples = samples_of(shard, given.pairs)
        if given.limit == "decode":
            rates = decode(samples)
        elif given.limit == "encode":
            rates = encode_rows(model[0], samples, given.batch, given.callers)
        else:
            rates = forward(model[0], samples, given.batch, callers=given.callers)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
