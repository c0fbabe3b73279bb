"""Files of this machine, object stores and web servers, by URL.

Shards are read by URL (`stat`, `open_stream`, `read_range`, `glob`). A collection is a `Folder`, in
which a file gets its final name only once it is whole.
"""

from chiasm.pipeline.storage.abandoned import is_abandoned, remove_abandoned
from chiasm.pipeline.storage.backend import Backend, PendingFile, Stat, Stream
from chiasm.pipeline.storage.credentials import require_no_credentials
from chiasm.pipeline.storage.folder import Folder
from chiasm.pipeline.storage.local import LocalFiles
from chiasm.pipeline.storage.prefixes import (
    below,
    folder_url,
    folder_urls,
    has_wildcard,
    replace_prefix,
    url_matcher,
)
from chiasm.pipeline.storage.temporaries import (
    RUN_ID,
    is_temporary,
    run_of_temporary,
    target_of_temporary,
)
from chiasm.pipeline.storage.urls import (
    base_name,
    canonical_url,
    display_name,
    glob,
    is_folder,
    is_remote,
    map_concurrent,
    open_stream,
    read_range,
    require_writable,
    stat,
    stat_or_none,
)

__all__ = [
    "RUN_ID",
    "Backend",
    "Folder",
    "LocalFiles",
    "PendingFile",
    "Stat",
    "Stream",
    "base_name",
    "below",
    "canonical_url",
    "display_name",
    "folder_url",
    "folder_urls",
    "glob",
    "has_wildcard",
    "is_abandoned",
    "is_folder",
    "is_remote",
    "is_temporary",
    "map_concurrent",
    "open_stream",
    "read_range",
    "remove_abandoned",
    "replace_prefix",
    "require_no_credentials",
    "require_writable",
    "run_of_temporary",
    "stat",
    "stat_or_none",
    "target_of_temporary",
    "url_matcher",
]
