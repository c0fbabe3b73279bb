"""Pictures with captions as one piece of HTML that needs nothing beside it, for notebooks.

Whatever a caption holds is escaped, and pictures are small JPEGs inside the page (`data:` URIs), so
that a saved notebook shows them without the shards.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

MAX_CAPTION = 200  # characters shown of a caption
JPEG_QUALITY = 80

_TILE = (
    '<div style="width:{side}px"><div style="width:{side}px;height:{side}px;display:flex;'
    'align-items:center;justify-content:center;background:#efeeeb">{picture}</div>'
    '<div style="font-size:12px;color:#84807a">{label}</div>'
    '<div style="font-size:13px" title="{hint}">{caption}</div></div>'
)


@dataclass(frozen=True, slots=True)
class Tile:
    """picture: an RGB thumbnail, or why there is none. hint: shown when the mouse rests on it."""

    picture: Image.Image | str
    label: str
    caption: str
    hint: str


def gallery(title: str, tiles: Sequence[Tile], side: int, *, left_out: int = 0) -> str:
    """The tiles in rows below their title. side: of a thumbnail, in pixels. left_out: how many more
    there are, said at the end."""
    visible = "".join(_tile(tile, side) for tile in tiles)
    rest = f"<div>... and {left_out:,} more</div>" if left_out else ""
    return (
        f"<div><div><b>{html.escape(title)}</b></div>"
        f'<div style="display:flex;flex-wrap:wrap;gap:12px">{visible}</div>{rest}</div>'
    )


def _tile(tile: Tile, side: int) -> str:
    caption = tile.caption
    if len(caption) > MAX_CAPTION:
        caption = caption[: MAX_CAPTION - 1] + "…"
    return _TILE.format(
        side=side,
        picture=_picture(tile.picture),
        label=html.escape(tile.label),
        caption=html.escape(caption),
        hint=html.escape(tile.hint),
    )


def _picture(picture: Image.Image | str) -> str:
    if isinstance(picture, str):
        style = "font-size:12px;color:#84807a;padding:12px;overflow-wrap:anywhere"
        return f'<span style="{style}">{html.escape(picture)}</span>'
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="">'
