"""Several processes that learn one model: each from its own batches, by the mean of all gradients.

Synchronous data parallelism over torch.distributed, whoever set that up (`jobs/train_model.py` does
by Ray Train). Weights begin alike, gradients are averaged, so weights stay alike; a single process
is the same thing without the talking.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def rank_and_world_size() -> tuple[int, int]:
    """(rank, how many): this process among those that learn together, (0, 1) for one alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def average_gradients(learned: Sequence[Tensor]) -> None:
    """Put in place of each gradient the mean over all processes; one exchange for all of them."""
    _, count = rank_and_world_size()
    if count == 1:
        return
    gradients = [each.grad for each in learned if each.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= count
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def wait_for_all() -> None:
    """Until every process is here."""
    if rank_and_world_size()[1] > 1:
        distributed.barrier()
