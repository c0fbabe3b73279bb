"""Data parallel training: each process has its own rows of a batch, and gradients are averaged.

Synchronous, over the process group of torch.distributed that the caller has set up
(`jobs/train_model.py` does by Ray Train). Weights start equal and gradients are averaged, so
weights stay equal. A single process does the same without communication.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed


def rank_and_world_size() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) where no process group is set up."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over all processes, in one all-reduce."""
    gradients = [item.grad for item in parameters if item.grad is not None]
    if rank_and_world_size()[1] == 1:
        return
    flat = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of float tensors of one shape, one a process; no gradient passes through it."""
    values, count = values.detach(), rank_and_world_size()[1]
    if count == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / count


def gather_rows(rows: Tensor) -> Tensor:
    """(B, E) of each process -> (B x processes, E), those of rank 0 first. Gradients flow back to
    the process that a row came from, from all that used it."""
    return rows if rank_and_world_size()[1] == 1 else _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        _, count = rank_and_world_size()
        parts = [torch.empty_like(rows) for _ in range(count)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        rank, count = rank_and_world_size()
        total = grad_outputs[0].clone()
        distributed.all_reduce(total)
        return total.chunk(count)[rank]


def broadcast_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of rank 0, in place; all processes give as many, of one shape."""
    if rank_and_world_size()[1] > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def wait_for_all() -> None:
    """Block until every process has called this."""
    if rank_and_world_size()[1] > 1:
        distributed.barrier()
