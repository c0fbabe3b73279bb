"""Folders as prefixes of URLs: what is below one, and the URL of the same name below another.

A name is escaped differently by each scheme: percent-encoded in `file://` and `http(s)://`, not at
all in object stores. Between two URLs of one kind the rest is taken as it is, else by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from glob import escape
from pathlib import Path
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes, urlsplit

from chiasm.pipeline.storage.urls import canonical_url, display_name

_WILDCARD = re.compile(r"[*?\[]")


def folder_url(path_or_url: str, *, allow_query: bool = False) -> str:
    """The canonical URL of a folder, a bucket or a file, without a slash at its end. allow_query:
    see `canonical_url`."""
    return canonical_url(path_or_url, allow_query=allow_query).rstrip("/")


def folder_urls(path_or_url: str) -> list[str]:
    """The same, and for a path of this machine also with symbolic links left as they are: of a
    folder that was moved away, a link may have its old name now. Any query: the URLs are only
    compared with those of a collection."""
    url = folder_url(path_or_url, allow_query=True)
    if not url.startswith("file:"):
        return [url]
    plain = Path(os.path.abspath(os.path.expanduser(display_name(path_or_url)))).as_uri()
    return list(dict.fromkeys([url, plain.rstrip("/")]))


def below(url: str, folder: str) -> bool:
    """Whether `url` is the URL `folder` or below it."""
    return url == folder or url.startswith(f"{folder}/")


def replace_prefix(url: str, folder: str, target: str) -> str:
    """The canonical URL below `target` of what is at `url` below `folder`. A query that `url` has
    was allowed when it was embedded, and stays."""
    rest = url[len(folder) + 1 :]
    if not rest:
        return canonical_url(target, allow_query=True)
    if _kind(url) != _kind(target):
        rest = _escape(_unescape(rest, _kind(url)), _kind(target))
    return canonical_url(f"{target}/{rest}", allow_query=True)


def has_wildcard(path_or_url: str) -> bool:
    """Whether it can be read as a glob."""
    return _WILDCARD.search(path_or_url) is not None


def url_matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a canonical URL matches a glob (`*`, `?`, `[...]`, `**`) of paths or URLs, wherever
    its file is by now."""
    from fsspec.utils import glob_translate  # 80 ms, for globs alone

    fixed, rest = pattern[: (cut := _fixed_length(pattern))], pattern[cut:]
    names = [display_name(url) for url in folder_urls(fixed or os.curdir)]
    patterns = [re.compile(glob_translate(f"{escape(name)}/{rest}")) for name in names]
    return lambda url: any(regex.fullmatch(display_name(url)) for regex in patterns)


def _fixed_length(pattern: str) -> int:
    """How long the part before the first name with a wildcard is, its slash included."""
    found = _WILDCARD.search(pattern)
    return pattern.rfind("/", 0, found.start() if found else None) + 1


def _kind(url: str) -> str:
    scheme = url.partition("://")[0]
    return {"file": "file", "http": "web", "https": "web"}.get(scheme, "store")


def _unescape(rest: str, kind: str) -> str:
    if kind == "file":
        return os.fsdecode(unquote_to_bytes(rest))
    return unquote(urlsplit(rest).path) if kind == "web" else rest


def _escape(name: str, kind: str) -> str:
    if kind == "file":
        return quote_from_bytes(os.fsencode(name))
    return quote(name, errors="surrogateescape") if kind == "web" else name
