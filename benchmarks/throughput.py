"""How near the pipeline comes to the limit of the machine, stage by stage, and beside the peer.

    python benchmarks/throughput.py [--parts PART...] [--rounds R] [--no-peer] [--no-json]

Parts, each ours (`chiasm embed`: Ray, Parquet and all) against a bare limit of the same run:

    encode   CLIP ViT-B/32 with random weights, 4,000 pairs in 4 shards, a shard a round; the limit
             is both towers alone on tensors (bare.py forward); clip-retrieval embeds the same
             shard with the same weights
    small    the same with a model of a quarter of the arithmetic: what a processor with fast
             bfloat16, which does the first one four times as fast, leaves to the rest
    decode   an encoder that costs nothing, all 4 shards a round; the limit is the same decode
             function alone on bytes in memory, over all cores, in threads or processes, whichever
             is faster
    pocket   the encoder that ships, a shard a round; the share of each stage
    stages   each stage alone, in one thread

Contenders take turns within a round, since machines drift; ratios are medians over rounds. Shards
(640 x 480, 16 tokens) and models are made by code and kept in benchmarks/.cache. Writes
benchmarks/results/throughput.json and prints tables; a part that is not run keeps its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peer_clip_retrieval
from benchmarks.machine import RESULTS, bare, chiasm, keep, machine, table
from benchmarks.made_shards import CACHE, make_shards
from benchmarks.random_models import clip_folder
from pipeline.errors import ChiasmError

CORES = len(os.sched_getaffinity(0))
QUARTER = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
BARE_PAIRS = 512  # enough for the rate of a forward, which no input changes


def clip(name: str, tower: dict[str, int] | None = None) -> Path:
    """A CLIP of 32 px patches with random weights, made once."""
    folder = CACHE / name
    if not (folder / "config.json").exists():
        clip_folder(folder, tower=tower, vision={"patch_size": 32})
    return folder


def ours(shards: list[Path], encoder: str) -> dict[str, Any]:
    """One run of `chiasm embed` with its default preset; `start` is what its pairs a second leave
    out: starting Ray, loading the model, ending."""
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        told = chiasm("embed", *shards, "--to", Path(place) / "c", "--encoder", encoder)
        wall = time.monotonic() - began
    if told["dropped"]:
        raise ChiasmError("made shards", expected="no drops", found=str(told["reasons"]))
    rate = told["pairs_per_second"]
    stages = {name: spent for name, spent in told["seconds"].items() if name != "total"}
    return {
        "pairs_per_second": rate,
        "start": round(wall - told["rows"] / rate, 1),
        "busy": {name: round(1e3 * spent / told["rows"], 3) for name, spent in stages.items()},
    }


def against_forward(model: Path, shards: list[Path], rounds: int, peer: bool) -> dict[str, Any]:
    """Ours, the towers alone and, where asked, the peer, a shard a round."""
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        shard = shards[number % len(shards)]
        contenders: list[tuple[str, Callable[[], Any]]] = [
            ("ours", lambda shard=shard: ours([shard], f"hf:{model}")),
            ("bare", lambda shard=shard: bare("forward", model, shard, "--pairs", str(BARE_PAIRS))),
        ]
        if peer:
            contenders.append(("peer", lambda shard=shard: peer_run(shard, model)))
        found.append(in_turn(contenders, number))
    figures = {"rounds": found, "ours / bare": ratio(found, "ours", "bare")}
    return figures | ({"ours / peer": ratio(found, "ours", "peer")} if peer else {})


def peer_run(shard: Path, model: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        return asdict(peer_clip_retrieval.run([shard], model, Path(place) / "out", cores=CORES))


def against_decode(shards: list[Path], rounds: int) -> dict[str, Any]:
    found = []
    for number in range(rounds):
        contenders: list[tuple[str, Callable[[], Any]]] = [
            ("ours", lambda: ours(shards, "free")),
            ("bare", lambda: decode_limit(shards[0])),
        ]
        found.append(in_turn(contenders, number))
    return {"rounds": found, "ours / bare": ratio(found, "ours", "bare")}


def decode_limit(shard: Path) -> dict[str, Any]:
    told = bare("decode", shard)
    return {"pairs_per_second": max(told.values()), **told}


def pocket(shards: list[Path], rounds: int) -> dict[str, Any]:
    found = [
        in_turn([("ours", lambda n=n: ours([shards[n % len(shards)]], "pocket"))], n)
        for n in range(rounds)
    ]
    busy = [each["ours"]["busy"] for each in found]
    shares = [{stage: ms / sum(each.values()) for stage, ms in each.items()} for each in busy]
    middle = {stage: median([each[stage] for each in shares]) for stage in shares[0]}
    return {"rounds": found, "shares": middle}


def in_turn(contenders: list[tuple[str, Callable[[], Any]]], number: int) -> dict[str, Any]:
    """Each once; another one first every round."""
    turned = contenders[number % len(contenders) :] + contenders[: number % len(contenders)]
    told = {}
    for name, run in turned:
        told[name] = run()
        print(f"  {name}: {told[name]['pairs_per_second']} pairs/s", file=sys.stderr, flush=True)
    return told


def ratio(rounds: list[dict[str, Any]], above: str, below: str) -> float:
    rates = [(each[above]["pairs_per_second"], each[below]["pairs_per_second"]) for each in rounds]
    return median([over / under for over, under in rates])


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def shown(figures: dict[str, Any]) -> str:
    """The tables of what was measured."""
    rows: list[tuple[object, ...]] = []
    for part in ("encode", "small", "decode", "pocket"):
        rounds = figures[part]["rounds"] if part in figures else []
        for name in rounds[0] if rounds else ():
            rates = [each[name]["pairs_per_second"] for each in rounds]
            rows.append((f"{part}, {name}", median(rates), min(rates), max(rates)))
    ratios = [
        (f"{part}, {name}", figure)
        for part, told in figures.items()
        for name, figure in told.items()
        if " / " in name
    ]
    parts = [
        table(("pairs/s", "median", "least", "most"), rows),
        table(("median over rounds", "ratio"), ratios),
    ]
    if "pocket" in figures:
        shares = figures["pocket"]["shares"]
        parts.append(table(("pocket, share of busy time", ""), list(shares.items())))
    if "stages" in figures:
        stages = figures["stages"]
        names = list(next(iter(stages.values()))["milliseconds"])
        parts.append(
            table(
                ("alone, ms a pair", *names),
                [
                    (name, *(told["milliseconds"][s] for s in names))
                    for name, told in stages.items()
                ],
            )
        )
    return "\n\n".join(parts)


PARTS = ("stages", "decode", "pocket", "small", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--no-peer", action="store_true", help="without clip-retrieval")
    parser.add_argument("--no-json", action="store_true", help="leave the results file alone")
    given = parser.parse_args()
    path = RESULTS / "throughput.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    shards = make_shards(4, 1000)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "stages": lambda: {
            "free": bare("stages", "free", shards[0]),
            "pocket": bare("stages", "pocket", shards[0]),
            "ViT-B/32": bare("stages", f"hf:{clip('clip-vit-b-32')}", shards[0], "--pairs", "128"),
        },
        "decode": lambda: against_decode(shards, given.rounds),
        "pocket": lambda: pocket(shards, given.rounds),
        "small": lambda: against_forward(
            clip("clip-vit-s-32", QUARTER), shards, given.rounds, False
        ),
        "encode": lambda: against_forward(
            clip("clip-vit-b-32"), shards, given.rounds, not given.no_peer
        ),
    }
    try:
        for part in given.parts:
            print(part, file=sys.stderr, flush=True)
            figures[part] = {**runs[part](), **({} if part == "stages" else {"on": machine()})}
            figures["on"] = machine()
            if not given.no_json:
                keep("throughput", figures)
    except ChiasmError as error:
        sys.exit(str(error))
    print(shown(figures))


if __name__ == "__main__":
    main()
