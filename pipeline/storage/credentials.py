"""URLs that hold credentials are refused: ledgers, footers and indexes keep URLs.

Every store, CDN and forge signs URLs by parameters of its own, and new ones come. So a query is
taken only where each of its names is known to choose a file or its form, and to grant nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_plus

from chiasm.pipeline.errors import UsageError

HARMLESS = {
    "download": "a file in place of a page about it: Hugging Face, Zenodo, Nextcloud",
    "dl": "the same: Dropbox",
    "raw": "the same: GitHub, Gitea",
    "ref": "a branch, tag or commit: GitLab, GitHub",
    "rev": "the same",
    "revision": "the same: Hugging Face",
    "version": "a version of a file: Kaggle, Dataverse",
    "versionid": "a version of an object: S3",
    "generation": "a version of an object: Google",
    "format": "the form in which a file is sent",
}

_WEB = re.compile(r"https?://[^?#]*\?([^#]*)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,40}")


def credentials_error(url: str, do: str) -> UsageError:
    expected = "a URL that may be written into ledgers"
    return UsageError(url, expected=expected, found="credentials in it", do=do)


def require_harmless_query(url: str) -> None:
    """UsageError for a URL of a web server whose query has a parameter that is not known to be
    harmless. Names of parameters are told, values are not."""
    unknown = [name for _, name, harmless in _parameters(url) if not harmless]
    if unknown:
        names = dict.fromkeys(name if _NAME.fullmatch(name) else "***" for name in unknown)
        raise UsageError(
            url.partition("?")[0],
            expected="a URL that may be written into ledgers",
            found=f"a query that may hold credentials ({', '.join(names)})",
            do="name the object by s3:// or gs://; or, if this is no secret, give --allow-query "
            "(list_shards: allow_query=True)",
        )


def hide_query(url: str) -> str:
    """A web server's URL for messages: `***` for values that may be credentials, no fragment."""
    if not _WEB.match(url):
        return url
    parts = [
        text if harmless else "***" if "=" not in text else f"{text.partition('=')[0]}=***"
        for text, _, harmless in _parameters(url)
    ]
    return f"{url.partition('?')[0]}?{'&'.join(parts)}"


def _parameters(url: str) -> Iterator[tuple[str, str, bool]]:
    """(text, name, whether it is harmless) of each parameter of a URL. A part without `=` has no
    name: it may be a token as it stands."""
    found = _WEB.match(url)
    # Some servers separate parameters by `;`.
    for text in filter(None, re.split("[&;]", found[1] if found else "")):
        name, equals, value = text.partition("=")
        name = unquote_plus(name) if equals else ""
        media = name == "alt" and value == "media"  # Google: the file in place of its record
        # `?raw` and `?download`, as forges also have them.
        harmless = media or (name or text).lower() in HARMLESS
        yield text, name, harmless
