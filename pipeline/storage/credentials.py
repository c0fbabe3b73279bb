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
_SCHEME_AT_END = re.compile(r"[a-z][a-z0-9+.-]*$", re.IGNORECASE)
_NO_QUERIES = ("s3", "gs", "hf", "file", "ray")  # a question mark is part of a key there
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,40}")
TAKEN = "a URL that may be written into ledgers"


def credentials_error(url: str, do: str) -> UsageError:
    return UsageError(url, expected=TAKEN, found="credentials in it", do=do)


def has_user(url: str) -> bool:
    """Whether a URL holds a user's name, which may be a token, or a password."""
    scheme, _, rest = url.partition("://")
    # In hf:// an @ names a revision. Only there and in a store's name can a password have a slash.
    patterns = {"hf": r"[^/]*:.*@", "s3": r"(?!arn:)[^/]*[:@]", "gs": r"[^/]*[:@]"}
    return re.match(patterns.get(scheme.lower(), r"[^/?#]*@"), rest) is not None


def require_harmless_query(
    url: str, expected: str = TAKEN, allow: str = "--allow-query (list_shards: allow_query=True)"
) -> None:
    """UsageError for a URL of a web server whose query has a parameter that is not known to be
    harmless. Names of parameters are told, values are not. allow: the option that takes it."""
    unknown = [name for _, name, harmless in _parameters(url) if not harmless]
    if unknown:
        names = dict.fromkeys(name if _NAME.fullmatch(name) else "***" for name in unknown)
        raise UsageError(
            url.partition("?")[0],
            expected=expected,
            found=f"a query that may hold credentials ({', '.join(names)})",
            do=f"name the object by s3:// or gs://; or, if this is no secret, give {allow}",
        )


def require_no_credentials(text: str, expected: str, allow: str, *, allow_query: bool) -> None:
    """UsageError for a text with a URL anywhere in it that holds a user or a password or, without
    `allow_query`, a query that may hold credentials. What comes before a URL may be an option, its
    end is unknown: so all that follows is taken for its query."""
    for found in re.finditer("://", text):
        scheme = _SCHEME_AT_END.search(text[: found.start()])
        name = scheme[0] if scheme else "https"  # a brace range of schemes
        url = name + text[found.start() :]
        if has_user(url.split()[0]):
            do = "put them where the cluster reads them: docs/operations.md"
            raise UsageError(f"{name}://***", expected=expected, found="credentials in it", do=do)
        if not allow_query and name.lower() not in _NO_QUERIES:
            require_harmless_query("https" + text[found.start() :], expected, allow)


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
