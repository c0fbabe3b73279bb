"""What `chiasm embed --encoder fake --set batch.size=8` leaves where nobody disturbs it."""

from __future__ import annotations

from fake_encoder import FakeEncoder

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import Identity, Run, create_or_check
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder

SETTINGS = EmbedSettings(batch=BatchSettings(size=8))


def embed(shards: list[Shard], to: str) -> Folder:
    """Embed the shards one after another in this process."""
    folder, encoder = Folder(to), FakeEncoder()
    with Run(folder, "embed", {}) as run:
        create_or_check(folder, Identity.of(encoder), run.id)
        for shard in shards:
            run.claim([shard.id])
            embed_shard(shard, encoder, folder, SETTINGS, run_id=run.id)
        run.finish("done", {})
    return folder
