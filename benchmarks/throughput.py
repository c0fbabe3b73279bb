"""How near the pipeline comes to the limit of the machine, stage by stage, and beside the peer.

    python -m benchmarks.throughput [--parts PART...] [--rounds R] [--no-peer] [--no-json]

Parts, each ours (`chiasm embed`: Ray, Parquet and all) against a bare limit of the same run:

    encode   CLIP ViT-B/32 with random weights, 4,000 pairs in 4 shards; the limit is both towers
             alone on tensors (bare.py forward); clip-retrieval embeds the same shards with the
             same weights
    small    the same with a model of a quarter of the arithmetic: what a processor with fast
             bfloat16, which does the first one four times as fast, leaves to the rest
    decode   an encoder that costs nothing, all 4 shards a round; the limit is the same decode
             function alone on bytes in memory, over all cores, in threads or processes, whichever
             is faster
    pocket   the encoder that ships; the share of each stage, of processor time when it runs alone
             and of busy time in the run, where threads also wait for a core
    stages   each stage alone, in one thread

All have all cores of the machine. Contenders take turns within a round, since machines drift;
ratios are medians over rounds. Shards (640 x 480, 16 tokens, --samples in each) and models are made
by code and kept in benchmarks/.cache. Writes benchmarks/results/throughput.json and prints tables;
a part that is not run keeps its figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import peer_clip_retrieval
from benchmarks.machine import CORES, RESULTS, bare, chiasm, keep, machine, table
from benchmarks.made_shards import CACHE, make_shards
from chiasm.pipeline.errors import ChiasmError
from tests.support.random_models import clip_folder

QUARTER = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
BARE_PAIRS = 512  # enough for the rate of a forward, which no input changes


def clip(name: str, tower: dict[str, int] | None = None) -> Path:
    """A CLIP of 32 px patches with random weights, made once."""
    folder = CACHE / name
    if not (folder / "config.json").exists():
        clip_folder(folder, tower=tower, vision={"patch_size": 32})
    return folder


def ours(shards: list[Path], encoder: str) -> dict[str, Any]:
    """One run of `chiasm embed`, one worker on all cores; `start` is what its pairs a second leave
    out: starting Ray, loading the model, ending."""
    cores = [f"workers.cpus={CORES}", f"batch.decode_threads={CORES}"]
    sets = [word for setting in cores for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        summary = chiasm("embed", *shards, "--to", Path(place) / "c", "--encoder", encoder, *sets)
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


def against_forward(model: Path, shards: list[Path], rounds: int, peer: bool) -> dict[str, Any]:
    """Ours, the towers alone and, where asked, the peer, on the same shards."""
    contenders: list[tuple[str, Callable[[], Any]]] = [
        ("ours", lambda: ours(shards, f"hf:{model}")),
        ("bare", lambda: bare("forward", model, shards[0], "--pairs", str(BARE_PAIRS))),
    ]
    if peer:
        contenders.append(("peer", lambda: peer_run(shards, model)))
    found = [in_turn(contenders, number) for number in range(rounds)]
    figures = {"rounds": found, "ours / bare": ratio(found, "ours", "bare")}
    return figures | ({"ours / peer": ratio(found, "ours", "peer")} if peer else {})


def peer_run(shards: list[Path], model: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        return asdict(peer_clip_retrieval.run(shards, model, Path(place) / "out", cores=CORES))


def against_decode(shards: list[Path], rounds: int) -> dict[str, Any]:
    contenders: list[tuple[str, Callable[[], Any]]] = [
        ("ours", lambda: ours(shards, "free")),
        ("bare", lambda: decode_limit(shards[0])),
    ]
    found = [in_turn(contenders, number) for number in range(rounds)]
    return {"rounds": found, "ours / bare": ratio(found, "ours", "bare")}


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
    rows: list[tuple[object, ...]] = []
    for part in ("encode", "small", "decode", "pocket"):
        rounds = figures[part]["rounds"] if part in figures else []
        for name in rounds[0] if rounds else ():
            rates = [each[name]["pairs_per_second"] for each in rounds]
            rows.append((f"{part}, {name}", median(rates), min(rates), max(rates)))
    ratios = [
        (f"{part}, {name}", figure)
        for part, measured in figures.items()
        for name, figure in measured.items()
        if " / " in name
    ]
    parts = [
        table(("pairs/s", "median", "least", "most"), rows),
        table(("median over rounds", "ratio"), ratios),
    ]
    for name, measured in figures.get("pocket", {}).items():
        if name.startswith("shares"):
            parts.append(table((f"pocket, {name}", ""), list(measured.items())))
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


PARTS = ("stages", "decode", "pocket", "small", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000, help="in each of the 4 shards")
    parser.add_argument("--no-peer", action="store_true", help="without clip-retrieval")
    parser.add_argument("--no-json", action="store_true", help="leave the results file alone")
    given = parser.parse_args()
    path = RESULTS / "throughput.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    shards = make_shards(4, given.samples)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "stages": lambda: {
            "free": bare("stages", "free", shards[0], "--pairs", "250"),
            "pocket": bare("stages", "pocket", shards[0], "--pairs", "250"),
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
            figures[part] = {"on": {**machine(), "pairs": 4 * given.samples}, **runs[part]()}
            if not given.no_json:
                keep("throughput", figures)
    except ChiasmError as error:
        sys.exit(str(error))
    print(format_tables(figures))


if __name__ == "__main__":
    main()
