"""What `chiasm embed --encoder fake --set batch.size=8` leaves where nobody disturbs it."""

from __future__ import annotations

from fake_encoder import FakeEncoder

from pipeline.batches import BatchSettings
from pipeline.collection import Identity, establish
from pipeline.embed import EmbedSettings, embed_shard
from pipeline.records import Shard
from pipeline.runs import Run
from pipeline.storage import Folder

SETTINGS = EmbedSettings(batch=BatchSettings(size=8))


def embed(shards: list[Shard], to: str) -> Folder:
    """Embed the shards one after another in this process."""
    folder, encoder = Folder(to), FakeEncoder()
    with Run(folder, "embed", {}) as run:
        establish(folder, Identity.of(encoder), run.id)
        for shard in shards:
            run.hold([shard.id])
            embed_shard(shard, encoder, folder, SETTINGS, run_id=run.id)
        run.finish("done", {})
    return folder
