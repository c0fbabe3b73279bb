"""How well the decoder writes about pictures held out, by task, with standard errors.

An answer, a translation or a label is right where it is the one that json has, but for case, width
and a full stop (`same_answer`). A caption is one of many that would do, so that of captions the
cross entropy of what people wrote is given instead, in nats a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.scenes.questions import same_answer
from chiasm.pipeline.training.joint.data import Samples, decoder_rows, examples_of
from chiasm.pipeline.training.joint.evaluate import gallery_rows
from chiasm.pipeline.training.paired import named_share
from chiasm.pipeline.training.pocket.evaluate_tasks import EncodedBlock, write_texts
from chiasm.pipeline.training.pocket.objective import decoder_losses
from chiasm.pipeline.training.pocket.targets import UNKNOWN
from chiasm.pipeline.training.pocket.task_data import TaskBatch, TaskRows

BLOCK = 128  # examples of one forward pass


@torch.inference_mode()
def decoder_figures(
    network: JointNetwork, samples: Samples, tasks: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By task: `examples`, and `right` with `right_error` or `nats_per_token`. Tasks without an
    example among the pictures held out are left out."""
    rows, found = gallery_rows(samples), {}
    for task in tasks:
        drawn = [
            (number, example)
            for number, row in enumerate(rows)
            for example in examples_of(samples, row, task, network.config)
        ]
        blocks = list(_blocks(network, samples, rows, task, drawn))
        if not blocks:
            continue
        found[task] = {"examples": len(drawn)}
        if task == "caption":
            found[task] |= _cross_entropy(network, blocks)
        else:
            written = [text for block in blocks for text in _written(network, samples, block)]
            right = [same_answer(a, b.target) for a, (_, b) in zip(written, drawn, strict=True)]
            owner = np.array([number for number, _ in drawn])
            found[task] |= named_share("right", np.array(right), owner)
    return found


def _blocks(
    network: JointNetwork,
    samples: Samples,
    rows: np.ndarray,
    task: str,
    drawn: Sequence[tuple[int, Example]],
) -> Iterator[TaskBatch]:
    """Examples of one task, BLOCK at a time, each with the pictures of these alone."""
    for start in range(0, len(drawn), BLOCK):
        some = drawn[start : start + BLOCK]
        numbers, at = np.unique([number for number, _ in some], return_inverse=True)
        placed = [(int(place), example) for place, (_, example) in zip(at, some, strict=True)]
        of_task = decoder_rows(samples, placed, task, network.config)
        yield TaskBatch(samples.images(rows[numbers]).numpy(), {task: of_task})


def _cross_entropy(network: JointNetwork, blocks: Sequence[TaskBatch]) -> dict[str, float]:
    tokens = [int((_only(block).targets != UNKNOWN).sum()) for block in blocks]
    means = [float(torch.stack([*decoder_losses(network, b).values()]).sum()) for b in blocks]
    return {"nats_per_token": round(float(np.average(means, weights=tokens)), 4)}


def _written(network: JointNetwork, samples: Samples, block: TaskBatch) -> list[str]:
    """What the decoder writes, greedily, for the examples of a block."""
    device, rows = network.log_scale.device, _only(block)
    text = None
    if rows.sources is not None:
        text = network.text_modality(torch.from_numpy(rows.sources).to(device))
    encoded = EncodedBlock(
        image=network.image_modality(torch.from_numpy(block.pixels).to(device)),
        rows=torch.from_numpy(rows.pictures).to(device),
        text=text,
        prefixes=torch.from_numpy(rows.inputs[:, 0]).to(device),
        steps=rows.targets.shape[1],  # what is longer than the longest right answer is wrong
    )
    assert samples.tokenizer is not None
    return write_texts(network, samples.tokenizer, [encoded])


def _only(block: TaskBatch) -> TaskRows:
    (rows,) = block.tasks.values()
    return rows
