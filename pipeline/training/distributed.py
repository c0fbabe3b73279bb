"""Data parallel training: each process has its own batches, gradients are averaged over all.

Synchronous, over the process group of torch.distributed that the caller has set up
(`jobs/train_model.py` does by Ray Train). Weights start equal and gradients are averaged, so
weights stay equal. A single process does the same without communication.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def rank_and_world_size() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) where no process group is set up."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over all processes, in one all-reduce."""
    _, count = rank_and_world_size()
    if count == 1:
        return
    gradients = [item.grad for item in parameters if item.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= count
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def wait_for_all() -> None:
    """Block until every process has called this."""
    if rank_and_world_size()[1] > 1:
        distributed.barrier()
