"""`chiasm train --preset two-tower`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from chiasm.jobs.cli.train_request import TrainRequest, tell
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import ReadSettings, list_shards
from chiasm.pipeline.training.progress import format_progress
from chiasm.pipeline.training.two_tower.loop import TwoTowerSettings, train_two_tower
from chiasm.pipeline.training.two_tower.trainer import TrainSettings


def run(request: TrainRequest) -> None:
    """Train, and say in a few lines what came of it."""
    request.require_none_of(
        "two-tower", "towers", "fusion_steps", "gallery", "processes", "address"
    )
    settings = settings_of(request)
    shards = list_shards(list(request.shards), sys.stdin)
    if not shards:
        raise UsageError("SHARDS", expected="at least one shard", found="none")
    report = train_two_tower(
        settings, shards, request.to, lambda record: tell(format_progress(record))
    )
    for line in told(report):
        print(line)
    print(f"{request.to}: trained; use it with --encoder two-tower:{request.to}", flush=True)
    require_whole(report, len(shards))


def require_whole(report: dict[str, Any], shards: int) -> None:
    """ChiasmError where a shard was cut or damaged."""
    damaged = report["damaged"]
    if damaged:
        raise ChiasmError(
            f"{len(damaged)} of {shards} shards",
            expected="whole tar files",
            found=f"cut or damaged {', '.join(damaged[:5])}: learned from what came before",
            do="fetch them again and train into another folder; chiasm embed tells which and where",
        )


def settings_of(request: TrainRequest) -> TwoTowerSettings:
    """The preset with what was asked for; UsageError without two towers and shards."""
    if not request.image_encoder or not request.text_encoder or not request.shards:
        raise UsageError(
            "--preset two-tower",
            expected="--image-encoder DIR --text-encoder DIR SHARDS...",
            do="see chiasm train --help",
        )
    preset = TwoTowerSettings(request.image_encoder, request.text_encoder)
    fusion, learn = preset.fusion, replace(TrainSettings(), seed=request.seed)
    if request.how is not None and fusion is not None:
        fusion = replace(fusion, fusion=request.how)
    if request.steps is not None:
        learn = replace(learn, steps=request.steps)
    return replace(
        preset,
        fusion=fusion,
        train=learn,
        read=ReadSettings(caption_field=request.caption_field or ""),
        encoder=EncoderSettings(precision=request.precision, device=request.device),
    )


def told(report: dict[str, Any]) -> list[str]:
    """The report in lines for a person."""
    lost, seconds = report["lost"], report["seconds_of_this_run"]
    why = f" ({', '.join(f'{count:,} {reason}' for reason, count in lost.items())})" if lost else ""
    lines = [
        f"{report['pairs']:,} pairs, {sum(lost.values()):,} samples lost{why}; this run: features "
        f"{seconds['features']:.0f} s, learning {seconds['learning']:.0f} s"
    ]
    if not report["queries"]:
        return [*lines, "one caption a picture: the mean ships, and nothing was left to judge by"]
    lines.append(
        f"on {report['held_out']:,} pictures held out, {report['queries']:,} queries, R@1 and R@10:"
    )
    lines += [
        f"  {name:<7}{report[name]['r1']:7.3f}{report[name]['r10']:7.3f}"
        for name in ("image", "text", "mean", "fusion")
        if name in report
    ]
    if "fusion" in report:
        ships = report["fusion_ships"]
        lines.append(
            "the fusion beats the mean and ships"
            if ships
            else "the fusion does not beat the mean for certain: the mean ships"
        )
    matching = report["matching"]
    lines.append(
        f"pictures alone, first 20 matched again: R@1 {matching['r1_before']:.3f} -> "
        f"{matching['r1_after']:.3f}"
    )
    return lines
