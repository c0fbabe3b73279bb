"""Files of web servers: the backend of `http://` and `https://`, read only."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, quote, unquote, urlsplit

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.credentials import credentials_error, hide_query
from chiasm.pipeline.storage.object_store import ReadableStore
from chiasm.pipeline.storage.remote import ReadableFiles
from chiasm.pipeline.storage.store_errors import one_line_message
from chiasm.pipeline.storage.uploads import PendingObject


class WebFiles(ReadableFiles[ReadableStore]):
    """The backend of `http://` and `https://`: read only, no listings. A query string is part of
    the URL."""

    def canonical(self, url: str) -> str:
        rest = url.partition("://")[2].partition("?")[0].rpartition("@")[2]
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UsageError(
                f"{self.scheme}://{rest}",
                expected=f"{self.scheme}://host/path",
                found=f"no URL ({one_line_message(error)})",
            ) from None
        if not _has_port(parts):
            raise UsageError(
                f"{self.scheme}://{rest}",
                expected=f"{self.scheme}://host/path",
                found="no URL (its port is no number from 0 to 65535)",
            )
        plain = f"{self.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if "@" in parts.netloc:
            raise credentials_error(plain, "put them into ~/.netrc")
        if not parts.netloc:
            raise UsageError(plain, expected=f"{self.scheme}://host/path", found="no host")
        netloc = _escape(parts.netloc).lower()
        return _escape(parts._replace(scheme=self.scheme, netloc=netloc, fragment="").geturl())

    def display_name(self, url: str) -> str:
        return hide_query(url)

    def base_name(self, url: str) -> str:
        return unquote(urlsplit(url).path.rpartition("/")[2])

    def path(self, url: str) -> str:
        return url

    def is_folder(self, url: str) -> bool:
        if urlsplit(url).path.endswith("/"):
            raise self._listing_error(url)
        return False

    def glob(self, pattern: str) -> Sequence[str]:
        url = self.canonical(pattern)
        if not re.search(r"[*\[]", urlsplit(url).path):  # a `?` begins the query
            return [url]
        raise self._listing_error(pattern)

    def list(self, url: str) -> Sequence[str]:
        raise self._listing_error(url)

    def list_stats(self, url: str) -> dict[str, Stat]:
        raise self._listing_error(url)

    def folders(self, url: str) -> Sequence[str]:
        raise self._listing_error(url)

    def create(self, url: str, run_id: str) -> PendingObject:
        raise self.read_only_error(url)

    def remove(self, url: str) -> None:
        raise self.read_only_error(url)

    def remove_folder(self, url: str, is_ours: Callable[[str], bool]) -> None:
        raise self.read_only_error(url)

    def abort_uploads(self, url: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        raise self.read_only_error(url)

    def _listing_error(self, url: str) -> UsageError:
        return UsageError(
            self.display_name(url),
            expected="the URL of a file, or a range such as {00000..00012}",
            found=f"a folder or a pattern, and {self.scheme}:// has no listing",
        )

    def read_only_error(self, url: str) -> UsageError:
        """That of whatever would write."""
        return UsageError(
            self.display_name(url),
            expected="a URL that can be written to",
            found=f"{self.scheme}://",
            do="name a folder or s3://bucket/prefix",
        )


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is one, or there is none."""
    try:
        _ = parts.port
    except ValueError:
        return False
    return True


def _escape(url: str) -> str:
    """A URL with escapes for characters that a request cannot hold, and for bytes of a command line
    that are no UTF-8; existing escapes stay."""
    return quote(url, safe="!#$%&'()*+,/:;=?@[]~{}", errors="surrogateescape")
