"""The Ray actor: one process, one model in memory, shards one after the other.

It is sent a recipe, not built objects. Only shard names come in and ledger entries go out; pixels
and vectors never leave the process.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from dataclasses import dataclass, replace

import pyarrow as pa
import ray

from chiasm.jobs.cluster.logs import Line, LogBuffer
from chiasm.pipeline.collection import (
    THIS_MACHINE,
    Identity,
    LedgerEntry,
    ProcessId,
    Tally,
    stat_files,
)
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.tasks import Files

LOG = logging.getLogger(__name__)

# glibc's names for them, and what they are set to. A batch's pixels and the activations of a layer
# are freed at once: they would go back to the system and be faulted in again for the next, a fifth
# of the time of a ViT-B/32 with a threshold of 4 MB. 32 MB is the greatest threshold that glibc
# takes. Each arena of glibc, about one a thread, may keep as much as the other says.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _FROM_HEAP = 256 << 20, 32 << 20

# chiasm.pipeline.collection.runs waits for three of these before it sweeps
DRIVER_CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class Report:
    """What a worker says between outcomes: samples and dropped of the shard at work so far, and the
    log lines since the last report."""

    shard_id: str = ""
    samples: int = 0
    dropped: int = 0
    log_lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """What a worker says when its model is in memory: the encoder's identity, and the log lines
    since the last report."""

    identity: Identity
    log_lines: tuple[Line, ...]


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to know."""

    encoder: str
    compute: EncoderSettings
    collection: str
    run_id: str
    embedding: EmbedSettings
    driver: ProcessId

    @classmethod
    def of_this_driver(
        cls,
        encoder: str,
        compute: EncoderSettings,
        collection: str,
        run_id: str,
        embedding: EmbedSettings,
    ) -> Recipe:
        driver = THIS_MACHINE.this_process()
        return cls(encoder, compute, collection, run_id, embedding, driver)


class EmbedWorker:
    """`load` once, then `embed` shard by shard; `progress` answers in between, from its own
    thread."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.encoder: Encoder | None = None
        self._report = Report()
        self._log_lines = LogBuffer()
        self._log_lines.install()
        _keep_freed_memory()
        threading.Thread(target=self._exit_with_driver, name="driver watch", daemon=True).start()

    def load(self, precision: str | None = None) -> Loaded:
        """Put the model in memory, in the precision that the collection turned out to have.

        Raises EncoderError, UsageError."""
        compute = self.recipe.compute
        if precision is not None:
            compute = replace(compute, precision=precision)
        self.encoder = load_encoder(self.recipe.encoder, compute)
        LOG.info("loaded encoder %s on %s", self.encoder.name, self.encoder.device)
        # Its first array costs pyarrow a search for pandas: a second, beside decode threads.
        pa.array([""])
        identity = Identity.of(self.encoder, compute)
        return Loaded(identity, tuple(self._log_lines.drain()))

    def embed(self, shard: Shard, limit: int | None) -> tuple[LedgerEntry, Files]:
        """Embed one shard; returns its ledger entry, and its files as they are then. See
        `chiasm.pipeline.embed.embed_shard` for what it raises."""
        if self.encoder is None:
            raise RuntimeError("embed before load")
        self._report = Report(shard.id)
        folder = Folder(self.recipe.collection)
        entry = embed_shard(
            shard,
            self.encoder,
            folder,
            self.recipe.embedding,
            run_id=self.recipe.run_id,
            limit=limit,
            operator_threads=self.recipe.compute.threads or 1,
            watch=self._watch,
        )
        return entry, stat_files(folder, shard.id)

    @ray.method(concurrency_group="control")
    def progress(self) -> Report:
        """How far the shard at work is, and the log lines since the last call."""
        return replace(self._report, log_lines=tuple(self._log_lines.drain()))

    def _watch(self, tally: Tally) -> None:
        self._report = replace(self._report, samples=tally.samples, dropped=tally.dropped_count)

    def _exit_with_driver(self) -> None:
        """End this process when its driver is gone. Ray does so too, but only after some seconds,
        in which a worker would go on writing in the name of a dead run. On another machine than the
        driver's only Ray knows."""
        if THIS_MACHINE.alive(self.recipe.driver) is None:
            return
        while THIS_MACHINE.alive(self.recipe.driver) is not False:
            time.sleep(DRIVER_CHECK_SECONDS)
        os._exit(1)


def _keep_freed_memory() -> None:
    """Have the allocator keep freed memory for the next batch, where it has such an option."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _FROM_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
