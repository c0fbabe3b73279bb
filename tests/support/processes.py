"""A function in several real processes that train together, over gloo."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def in_processes(count: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of `count` processes of one group, by rank; args and
    results by pickle. folder: an empty one."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(rank, count, folder, results, function, args))
        for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    for rank in range(count):
        assert not isinstance(found[rank], Exception), "".join(found[rank].__notes__)
    return [found[rank] for rank in range(count)]


def _work(
    rank: int, count: int, folder: Path, results: Any, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    try:
        results.put((rank, function(*args)))
    except Exception as error:  # noqa: BLE001 - passed on to the test
        failure = RuntimeError(str(error))
        failure.add_note(traceback.format_exc())
        results.put((rank, failure))
    distributed.destroy_process_group()
