"""How near the pipeline comes to the limit of the machine, stage by stage, and beside the peer.

    python -m benchmarks.throughput [--parts PART...] [--rounds R] [--no-json]
                                    [--encoder NAME=ENCODER ...]

Parts, each ours (`chiasm embed`: Ray, Parquet and all) against a bare limit of the same run:

    encode   CLIP ViT-B/32 with random weights, 4,000 pairs in 4 shards; the limits are both towers
             alone on tensors (bare.py forward), by one caller whose operators have all cores, and
             by as many callers as there are cores, each with operators of one thread
    peer     the same against clip-retrieval, which embeds the same shards with the same weights
    others   the same with pocket, SigLIP-B/16 with random weights, and what --encoder names, such
             as two-tower=two-tower:DIR; the limits are their own forward passes (bare.py encode)
    overhead processor time of embedding with an encoder that costs nothing, less that of decoding
             the same pictures, both in one process
    decode   an encoder that costs nothing, all 4 shards a round; the limit is the same decode
             function alone on bytes in memory, over all cores, in threads or processes, whichever
             is faster
    pocket   the encoder that ships; the share of each stage, of processor time when it runs alone
             and of busy time in the run, where threads also wait for a core
    stages   each stage alone, in one thread
    lanes    CLIP ViT-B/32 with 1, 2, 4 and 8 lanes in one process: seconds to the first batch and
             to the last, memory beyond the model

All have all cores of the machine. Contenders take turns within a round, since machines drift;
ratios are medians over rounds. Shards (640 x 480, 16 tokens, --samples in each) and models are made
by code and kept in benchmarks/.cache. Writes benchmarks/results/throughput.json and prints tables;
a part that is not run keeps its figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import free_encoder, peer_clip_retrieval
from benchmarks.bare import samples_of
from benchmarks.machine import CORES, RESULTS, bare, chiasm, keep, machine, table
from benchmarks.made_shards import CACHE, make_shards
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.images import decode as decode_picture
from chiasm.pipeline.lanes import set_operator_threads
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from tests.support.random_models import clip_folder, siglip_folder

BARE_PAIRS = 512  # enough for the rate of a forward, which no input changes
OVERHEAD_PAIRS = 1000
BATCH = 32  # of the preset `laptop`


def clip() -> Path:
    """A CLIP ViT-B/32 with random weights, made once."""
    folder = CACHE / "clip-vit-b-32"
    if not (folder / "config.json").exists():
        clip_folder(folder, vision={"patch_size": 32})
    return folder


def siglip() -> Path:
    """A SigLIP B/16 with random weights, made once."""
    folder = CACHE / "siglip-b-16"
    if not (folder / "config.json").exists():
        siglip_folder(folder)
    return folder


def ours(shards: list[Path], encoder: str) -> dict[str, Any]:
    """One run of `chiasm embed`, one worker on all cores; `start` is what its pairs a second leave
    out: starting Ray, loading the model, ending."""
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        summary = chiasm(
            "embed",
            *shards,
            "--to",
            Path(place) / "c",
            "--encoder",
            encoder,
            "--set",
            f"workers.cpus={CORES}",
        )
        wall = time.monotonic() - began
    if summary["dropped"]:
        raise ChiasmError("made shards", expected="no drops", found=str(summary["reasons"]))
    rate = summary["pairs_per_second"]
    stages = {name: spent for name, spent in summary["seconds"].items() if name != "total"}
    return {
        "pairs_per_second": rate,
        "start": round(wall - summary["rows"] / rate, 1),
        "busy": {name: round(1e3 * spent / summary["rows"], 3) for name, spent in stages.items()},
    }


def against_forward(model: Path, shards: list[Path], rounds: int) -> dict[str, Any]:
    """Ours and the towers alone, on the same shards."""
    contenders = [
        ("ours", lambda: ours(shards, f"hf:{model}")),
        *limits("forward", str(model), shards[0]),
    ]
    return compared(contenders, rounds)


def against_peer(model: Path, shards: list[Path], rounds: int) -> dict[str, Any]:
    contenders: list[tuple[str, Callable[[], Any]]] = [
        ("ours", lambda: ours(shards, f"hf:{model}")),
        ("peer", lambda: peer_run(shards, model)),
    ]
    return compared(contenders, rounds)


def others(encoders: dict[str, str], shards: list[Path], rounds: int) -> dict[str, Any]:
    """Ours and the forward passes alone, of each encoder."""
    return {
        name: compared(
            [
                ("ours", functools.partial(ours, shards, encoder)),
                *limits("encode", encoder, shards[0]),
            ],
            rounds,
        )
        for name, encoder in encoders.items()
    }


def limits(kind: str, name: str, shard: Path) -> list[tuple[str, Callable[[], Any]]]:
    """One caller with all cores, and one a core."""
    call = functools.partial(
        bare, kind, name, shard, "--pairs", str(BARE_PAIRS), "--batch", str(BATCH)
    )
    return [("one caller", call), ("callers", lambda: call("--callers", str(CORES)))]


def compared(contenders: list[tuple[str, Callable[[], Any]]], rounds: int) -> dict[str, Any]:
    """Each round of each, the median of each, and the median ratio of ours to each other one."""
    found = [in_turn(contenders, number) for number in range(rounds)]
    names = [name for name, _ in contenders]
    rates = {name: median([each[name]["pairs_per_second"] for each in found]) for name in names}
    ratios = {f"ours / {name}": ratio(found, "ours", name) for name in names if name != "ours"}
    return {"rounds": found, "median": rates, **ratios}


def overhead(shard: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of processor time a pair, in alternating rounds. Pictures are decoded alone by
    as many threads as there are lanes: cores that share caches slow each other down."""
    samples = samples_of(str(shard), OVERHEAD_PAIRS)
    (source,) = list_shards([str(shard)])
    encoder = free_encoder.FreeEncoder()
    settings, side = EmbedSettings(), encoder.modalities["image"].side

    def decode_some(core: int) -> None:
        set_operator_threads(1)
        for sample in samples[core::CORES]:
            picture = decode_picture(sample.picture or b"", settings.decode, side)
            encoder.preprocess("image", picture.pixels)

    def decode() -> None:
        with ThreadPoolExecutor(CORES) as threads:
            list(threads.map(decode_some, range(CORES)))

    def embed(place: str) -> None:
        embed_shard(
            source, encoder, Folder(place), settings, run_id="benchmark", limit=len(samples)
        )

    found = []
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as place:
            spent = {
                "decode": processor_time(decode),
                "embed": processor_time(lambda place=place: embed(place)),
            }
        if number:  # the first one imports, and takes memory
            found.append(
                {name: round(1e3 * each / len(samples), 4) for name, each in spent.items()}
            )
    beyond = [each["embed"] - each["decode"] for each in found]
    return {"rounds": found, "milliseconds of processor time a pair": median(beyond)}


def processor_time(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peer_run(shards: list[Path], model: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        return asdict(peer_clip_retrieval.run(shards, model, Path(place) / "out", cores=CORES))


def by_lanes(shard: Path, count: int) -> dict[str, Any]:
    pairs = str(LANE_PAIRS)
    options = ("--pairs", pairs, "--batch", str(BATCH), "--callers", str(count))
    return bare("lanes", f"hf:{clip()}", shard, *options)


def against_decode(shards: list[Path], rounds: int) -> dict[str, Any]:
    contenders: list[tuple[str, Callable[[], Any]]] = [
        ("ours", lambda: ours(shards, "free")),
        ("bare", lambda: decode_limit(shards[0])),
    ]
    return compared(contenders, rounds)


def decode_limit(shard: Path) -> dict[str, Any]:
    rates = bare("decode", shard)
    return {"pairs_per_second": max(rates.values()), **rates}


def pocket(shards: list[Path], rounds: int) -> dict[str, Any]:
    found = [in_turn([("ours", lambda: ours(shards, "pocket"))], n) for n in range(rounds)]
    alone = [bare("stages", "pocket", shards[0], "--pairs", "250") for _ in range(rounds)]
    return {
        "rounds": found,
        "shares of processor time, alone": shares([each["milliseconds"] for each in alone]),
        "shares of busy time": shares([each["ours"]["busy"] for each in found]),
    }


def shares(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The share of each stage, medians over rounds."""
    parts = [{name: spent / sum(each.values()) for name, spent in each.items()} for each in rounds]
    return {name: median([each[name] for each in parts]) for name in parts[0]}


def in_turn(contenders: list[tuple[str, Callable[[], Any]]], number: int) -> dict[str, Any]:
    """Each once; another one first every round."""
    turned = contenders[number % len(contenders) :] + contenders[: number % len(contenders)]
    results = {}
    for name, run in turned:
        results[name] = run()
        print(f"  {name}: {results[name]['pairs_per_second']} pairs/s", file=sys.stderr, flush=True)
    return results


def ratio(rounds: list[dict[str, Any]], above: str, below: str) -> float:
    rates = [(each[above]["pairs_per_second"], each[below]["pairs_per_second"]) for each in rounds]
    return median([over / under for over, under in rates])


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def format_tables(figures: dict[str, Any]) -> str:
    """The tables of what was measured."""
    compared_parts = {
        part: figures[part] for part in ("encode", "peer", "decode") if part in figures
    }
    compared_parts |= {
        name: each for name, each in figures.get("others", {}).items() if name != "on"
    }
    rows: list[tuple[object, ...]] = []
    ratios: list[tuple[object, ...]] = []
    for part, measured in compared_parts.items():
        for name in measured["rounds"][0]:
            rates = [each[name]["pairs_per_second"] for each in measured["rounds"]]
            rows.append((f"{part}, {name}", median(rates), min(rates), max(rates)))
        ratios += [(f"{part}, {name}", value) for name, value in measured.items() if " / " in name]
    parts = [
        table(("pairs/s", "median", "least", "most"), rows),
        table(("median over rounds", "ratio"), ratios),
    ]
    for name, measured in figures.get("pocket", {}).items():
        if name.startswith("shares"):
            parts.append(table((f"pocket, {name}", ""), list(measured.items())))
    if "overhead" in figures:
        spent = [(name, f) for name, f in figures["overhead"].items() if "time" in name]
        parts.append(table(("beside decoding", ""), spent))
    if "lanes" in figures:
        parts.append(
            table(
                ("lanes", "first batch, s", "all, s", "memory, MB"),
                [tuple(run.values()) for run in figures["lanes"]["runs"]],
            )
        )
    if "stages" in figures:
        stages = {name: measured for name, measured in figures["stages"].items() if name != "on"}
        names = list(next(iter(stages.values()))["milliseconds"])
        parts.append(
            table(
                ("alone, ms a pair", *names),
                [
                    (name, *(measured["milliseconds"][s] for s in names))
                    for name, measured in stages.items()
                ],
            )
        )
    return "\n\n".join(parts)


LANES, LANE_PAIRS = (1, 2, 4, 8), 512
PARTS = ("lanes", "stages", "overhead", "decode", "pocket", "others", "encode", "peer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000, help="in each of the 4 shards")
    parser.add_argument("--no-json", action="store_true", help="leave the results file alone")
    parser.add_argument("--encoder", action="append", default=[], metavar="NAME=ENCODER")
    given = parser.parse_args()
    named = dict(each.split("=", 1) for each in given.encoder)
    path = RESULTS / "throughput.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    shards = make_shards(4, given.samples)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "stages": lambda: {
            "free": bare("stages", "free", shards[0], "--pairs", "250"),
            "pocket": bare("stages", "pocket", shards[0], "--pairs", "250"),
            "ViT-B/32": bare("stages", f"hf:{clip()}", shards[0], "--pairs", "128"),
        },
        "lanes": lambda: {"runs": [by_lanes(shards[0], count) for count in LANES]},
        "decode": lambda: against_decode(shards, given.rounds),
        "pocket": lambda: pocket(shards, given.rounds),
        "overhead": lambda: overhead(shards[0], given.rounds),
        "others": lambda: others(
            {"pocket": "pocket", "SigLIP-B/16": f"hf:{siglip()}", **named}, shards, given.rounds
        ),
        "encode": lambda: against_forward(clip(), shards, given.rounds),
        "peer": lambda: against_peer(clip(), shards, given.rounds),
    }
    try:
        for part in given.parts:
            print(part, file=sys.stderr, flush=True)
            figures[part] = {"on": {**machine(), "pairs": 4 * given.samples}, **runs[part]()}
            if not given.no_json:
                keep("throughput", figures)
    except ChiasmError as error:
        sys.exit(str(error))
    print(format_tables(figures))


if __name__ == "__main__":
    main()
