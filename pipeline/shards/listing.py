"""Lists of paths, brace ranges, globs and folders -> `Shard` records in order; shard ids.

A spec that names an existing file is that file; only else are braces expanded and globs matched, so
that files with unusual names can be given. A shard id consists of the file's stem, for people, and
a hash of its canonical URL, because two folders may both contain a 00000.tar.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from braceexpand import braceexpand

from chiasm.pipeline.errors import SourceError, UnreachableError, UsageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import (
    Folder,
    base_name,
    canonical_url,
    display_name,
    glob,
    is_folder,
    is_remote,
    map_concurrent,
    stat,
)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")

# A longer stem would make file names that no file system takes; the hash keeps the id unique.
_MAX_STEM = 120


def list_shards(
    specs: Sequence[str], stdin: Iterable[str] | None = None, *, allow_query: bool = False
) -> list[Shard]:
    """Every shard that the specs name, each once, in their order; sorted inside a glob or folder.

    A spec is a path or URL of a shard, a brace range (`{00000..00012}`, `{a,b}`), a glob, a folder
    (its *.tar, *.tar.gz, *.tgz and *.tar.zst), or `-` for one spec a line of `stdin`. Raises
    SourceError where a spec matches nothing, UsageError for a malformed one.

    allow_query: take HTTP URLs with any query. Ledgers keep URLs, so that without it one whose
    query may hold credentials is refused.
    """
    given = _with_stdin(specs, stdin)
    urls = dict.fromkeys(url for spec in given for url in _expand(spec, allow_query))
    return map_concurrent(stat_shard, list(urls))


def shard_id(url: str) -> str:
    """`<stem>-<10 hex digits>` for a canonical URL: the digits are blake2b of 5 bytes over the URL,
    the stem has `_` for all but ASCII letters, digits, dot, dash and underscore."""
    base = base_name(url)
    suffix = next((s for s in sorted(TAR_SUFFIXES, key=len)[::-1] if base.lower().endswith(s)), "")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", base[: len(base) - len(suffix)])[:_MAX_STEM]
    return f"{stem}-{hashlib.blake2b(url.encode(), digest_size=5).hexdigest()}"


def _with_stdin(specs: Sequence[str], stdin: Iterable[str] | None) -> Iterator[str]:
    for spec in specs:
        if spec != "-":
            yield spec
        elif stdin is None:
            raise UsageError("-", expected="shards on standard input", found="no standard input")
        else:
            # A list of Windows may begin with a byte order mark, which is none of its first line.
            yield from filter(None, (line.removeprefix("\ufeff").strip() for line in stdin))


def _expand(spec: str, allow_query: bool) -> Iterator[str]:
    """One spec -> canonical URLs of files."""
    url = canonical_url(spec, allow_query=allow_query)
    plain = not re.search(r"[{*?\[]", spec)
    if plain and is_remote(url) and url.lower().endswith(TAR_SUFFIXES):
        yield url  # a request for each of thousands of names in a store would take minutes
    elif is_folder(url):
        yield from _in_folder(url)
    elif "{" in spec and not _is_file(url):
        for expanded in _braces(spec):
            yield from _expand(expanded, allow_query)
    elif re.search(r"[*?\[]", spec) and not _is_file(url):
        yield from _matching(spec, allow_query)
    else:
        yield url


def _in_folder(url: str) -> list[str]:
    folder = Folder(url)
    names = [n for n in folder.list() if n.lower().endswith(TAR_SUFFIXES) and not n.startswith(".")]
    if not names:
        raise SourceError(
            display_name(url),
            expected="a folder with shards (" + ", ".join(f"*{s}" for s in TAR_SUFFIXES) + ")",
            found=f"{len(folder.list())} other files",
            do="quote a glob such as 'folder/**/*.tar' for folders in folders",
        )
    return [canonical_url(folder.url_of(name)) for name in names]


def _matching(pattern: str, allow_query: bool) -> list[str]:
    matched = glob(pattern, allow_query=allow_query)
    # A store's matches are objects already, and checking each would be a request.
    files = matched if is_remote(pattern) else [url for url in matched if not is_folder(url)]
    if not files:
        found = f"{len(matched)} folders only" if matched else "none"
        raise SourceError(
            display_name(pattern), expected="shards that match", found=found, do="check the path"
        )
    return files


def _braces(spec: str) -> Iterator[str]:
    try:
        expanded = braceexpand(spec)
        first = next(expanded)
    except ValueError as error:
        found = str(error).partition(": ")[0]  # then it repeats the spec
        raise UsageError(
            display_name(spec), expected="a range such as {00000..00012}", found=found
        ) from error
    if first == spec:
        raise SourceError(
            display_name(spec), expected="a shard or a range of shards", found="nothing there"
        )
    yield first
    yield from expanded


def _is_file(url: str) -> bool:
    try:
        stat(url)
    except UnreachableError:
        raise
    except SourceError:
        return False
    return True


def stat_shard(url: str) -> Shard:
    """The record of one shard, by its canonical URL; SourceError where it cannot be found."""
    found = stat(url)
    return Shard(url, shard_id(url), found.size, found.version)
