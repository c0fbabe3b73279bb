"""Tars of samples, written and read whole."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import list_shards


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Shard:
    """A tar of samples, key -> extension -> bytes, in their order."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return list_shards([str(path)])[0]


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """A tar of members, name -> bytes, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_tar(path: Path) -> dict[str, dict[str, bytes]]:
    """What `write_tar` was given."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            found.setdefault(key, {})[extension] = file.read()
    return found


def json_of(captions: list[Any], **more: Any) -> bytes:
    """A json member with `captions` and more."""
    return json.dumps({"captions": captions, **more}).encode()
