"""S3 and what speaks its language, by s3fs: its session, credentials and loop; requests as S3 has
them.

s3fs's own files know no ETag, tell a broken upload only to `Exception`, and try again by rules of
their own. Here every request is one attempt, each range is compared with its `Content-Range`, and
what goes up in parts is aborted whatever ends it. Keys are taken as they are: no escapes, double
slashes kept.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnected
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync
from s3fs import S3FileSystem

from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import (
    ByteRange,
    Listing,
    byte_range,
    one_line,
    require_trusted,
    silence_loop,
)
from chiasm.pipeline.storage.retry import (
    AlreadyExists,
    Cancelled,
    NotFound,
    PastEnd,
    Refused,
    RetrySettings,
    StoreError,
    TransientError,
    retry,
)

PART = 32 << 20  # bytes of a part; more for what would need over MOST_PARTS of them
MOST_PARTS = 10_000
PARTS_AT_ONCE = 4  # so an upload takes PART * PARTS_AT_ONCE bytes of memory

Parts = list[dict[str, Any]]

# Codes of S3 that a status below 500 does not say it of: they pass.
_PASSING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}


# How a page of a listing tells where the next one begins -> how that is asked for.
_NEXT_PAGE = {
    "NextContinuationToken": "ContinuationToken",
    "NextKeyMarker": "KeyMarker",
    "NextUploadIdMarker": "UploadIdMarker",
}

_BROKEN = (
    HTTPClientError,
    NotConnected,
    ResponseParserError,
    FlexibleChecksumError,
    aiohttp.ClientError,
)


class Unsupported(Refused):
    """501: the store does not know what was asked for."""


class S3Store:
    """Buckets. Credentials and endpoint by boto's own means: environment, profile, role.

    A new name is put by If-None-Match. A store that answers it with 501 is asked for the name
    before: there, of two writers of one moment both may think that they won."""

    def __init__(self, retries: RetrySettings) -> None:
        self.retries = retries
        self.fs = S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "retries": {"mode": "standard", "total_max_attempts": 1},
                "connect_timeout": min(10.0, retries.timeout),
                "read_timeout": retries.timeout,
                "max_pool_connections": 64,
            },
        )
        silence_loop(self.fs.loop)

    def head(self, path: str) -> Stat:
        """By its first byte: the length in a HEAD may lie, the total of a range is told apart."""
        try:
            piece = self.get(path, 0, 1)
        except PastEnd:
            return Stat(0, _etag(self._call("head_object", path)))
        return Stat(piece.total, piece.version or "")

    def get(self, path: str, start: int, size: int) -> ByteRange:
        asked = f"bytes={start}" if start < 0 else f"bytes={start}-{start + size - 1}"
        answer = self._call("get_object", path, Range=asked)
        data, told_range = answer["Body"], answer.get("ContentRange")
        if told_range is None and not data:
            raise PastEnd(0)  # what some answer instead of 416 where the object is empty
        return byte_range(data, told_range, start, size, _etag(answer))

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        bucket, _, prefix = folder.partition("/")
        asked = {"Bucket": bucket, "Prefix": prefix} | ({} if deep else {"Delimiter": "/"})
        files: list[str] = []
        folders: list[str] = []
        for page in self._pages("list_objects_v2", asked):
            files += [f"{bucket}/{entry['Key']}" for entry in page.get("Contents", ())]
            folders += [f"{bucket}/{e['Prefix'][:-1]}" for e in page.get("CommonPrefixes", ())]
        return Listing(sorted(files), sorted(folders))

    def is_folder(self, path: str) -> bool:
        bucket, _, key = path.rstrip("/").partition("/")
        prefix = f"{key}/" if key else ""
        found = self._ask("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        return bool(found.get("Contents")) or not key

    def put(self, path: str, data: bytes, *, new: str = "") -> None:
        try:
            self._call_new("put_object", path, new, Body=data, **_marked(new))
        except AlreadyExists:
            # An attempt before may have done it, and only its answer been lost.
            if self._mark_of(path) != new:
                raise

    def send(self, path: str, file: IO[bytes], size: int, *, new: str = "") -> None:
        """In parts, each tried again by itself; aborted on whatever is raised meanwhile, also by a
        signal. Where it is not known whether the last step was done, its mark tells."""
        mark, stop = new or secrets.token_hex(8), threading.Event()
        begun = retry(
            lambda: self._call("create_multipart_upload", path, **_marked(mark)),
            self.retries,
        )
        upload = begun["UploadId"]
        try:
            parts = self._send_parts(path, upload, file, size, stop)
            retry(lambda: self._complete(path, upload, parts, mark, new), self.retries)
        except BaseException:
            stop.set()
            # A store out of reach must not hide why this ends; a sweep aborts what is left.
            with suppress(StoreError):
                retry(lambda: self._abort(path, upload), self.retries)
            raise

    def _send_parts(
        self, path: str, upload: str, file: IO[bytes], size: int, stop: threading.Event
    ) -> Parts:
        each = max(PART, -(-size // MOST_PARTS))
        reading = threading.Lock()

        def part(number: int) -> dict[str, Any]:
            if stop.is_set():
                raise Cancelled
            with reading:
                file.seek((number - 1) * each)
                data = file.read(each)
            told = {"UploadId": upload, "PartNumber": number, "Body": data}
            sent = retry(lambda: self._call("upload_part", path, **told), self.retries, stop)
            return {"PartNumber": number, "ETag": sent["ETag"]}

        # Parts in flight have ended when the `with` has: none arrives after an abort.
        with ThreadPoolExecutor(PARTS_AT_ONCE, "chiasm-send") as sending:
            try:
                return list(sending.map(part, range(1, -(-size // each) + 1)))
            except BaseException:
                stop.set()
                raise

    def _complete(self, path: str, upload: str, parts: Parts, mark: str, new: str) -> None:
        told = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        try:
            self._call_new("complete_multipart_upload", path, new, **told)
        except (NotFound, AlreadyExists):
            if self._mark_of(path) != mark:
                raise

    def _mark_of(self, path: str) -> str:
        return self._call("head_object", path).get("Metadata", {}).get("chiasm", "")

    def remove(self, path: str) -> None:
        self._call("delete_object", path)

    def end_uploads(self, folder: str, dead: Callable[[str], bool]) -> Sequence[str]:
        bucket, _, prefix = folder.partition("/")
        pages = self._pages("list_multipart_uploads", {"Bucket": bucket, "Prefix": prefix})
        lying = [
            (entry["Key"], entry["UploadId"])
            for page in pages
            for entry in page.get("Uploads", ())
            if entry["Key"].startswith(prefix)  # not every store heeds the prefix
        ]
        ended = [(key, upload) for key, upload in lying if dead(f"s3://{bucket}/{key}")]
        for key, upload in ended:
            retry(partial(self._abort, f"{bucket}/{key}", upload), self.retries)
        return [f"s3://{bucket}/{key}" for key, _ in ended]

    def _abort(self, path: str, upload: str) -> None:
        try:
            self._call("abort_multipart_upload", path, UploadId=upload)
        except NotFound:
            return  # completed or aborted already

    def _call_new(self, method: str, path: str, new: str, **told: Any) -> None:
        """Standing where `new` is told and something bears the name."""
        if not new:
            self._call(method, path, **told)
            return
        try:
            self._call(method, path, IfNoneMatch="*", **told)
        except Unsupported:
            if self._stands(path):
                raise AlreadyExists(path) from None
            self._call(method, path, **told)

    def _stands(self, path: str) -> bool:
        try:
            self._call("head_object", path)
        except NotFound:
            return False
        return True

    def _call(self, method: str, path: str, **told: Any) -> dict[str, Any]:
        return self._ask(method, **_named(path), **told)

    def _ask(self, method: str, **told: Any) -> dict[str, Any]:
        """Not by `fs.call_s3`, which waits for longer after a failure than we would."""

        async def ask() -> dict[str, Any]:
            await self.fs.set_session()
            call = getattr(await self.fs.get_s3(told["Bucket"]), method)
            answer = await call(**self.fs._get_s3_method_kwargs(call, **told))
            if "Body" in answer:
                async with answer["Body"] as body:
                    answer["Body"] = await body.read()
            return answer

        with _told():
            found: Any = sync(self.fs.loop, ask)
        return found

    def _pages(self, method: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Pages of a listing: each is tried again by itself, or a long one would never end."""
        page: dict[str, Any] = {"IsTruncated": True}
        while page.get("IsTruncated"):
            page = retry(lambda: self._ask(method, **asked), self.retries)
            yield page
            asked.update({of: page[told] for told, of in _NEXT_PAGE.items() if told in page})


def _named(path: str) -> dict[str, str]:
    bucket, _, key = path.partition("/")
    return {"Bucket": bucket, "Key": key}


def _marked(mark: str) -> dict[str, Any]:
    """Metadata by which the writer of an object knows it again."""
    return {"Metadata": {"chiasm": mark}} if mark else {}


def _etag(answer: dict[str, Any]) -> str:
    return answer.get("ETag", "").strip('"') or str(answer.get("LastModified", ""))


@contextmanager
def _told() -> Iterator[None]:
    """What boto and aiohttp raise, as StoreErrors."""
    try:
        yield
    except ClientError as error:
        raise _kind(error) from error
    except (OSError, *_BROKEN) as error:
        require_trusted(error, "AWS_CA_BUNDLE")
        raise TransientError(one_line(error)) from error
    except NoCredentialsError as error:
        do = "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (docs/operations.md)"
        raise Refused("no credentials", do) from error
    except (BotoCoreError, ValueError) as error:  # a name that no bucket has, a profile of nobody
        raise Refused(one_line(error)) from error


def _kind(error: ClientError) -> StoreError:
    answer: Any = error.response
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = answer.get("Error", {}).get("Code", "")
    if (status >= 500 and status != 501) or status in (408, 429) or code in _PASSING:
        return TransientError(f"{status} {code}")
    if code == "NoSuchBucket":
        return Refused("no such bucket", "make it, or check its name")
    if status == 404:
        return NotFound(code)
    if status == 416:
        return PastEnd()
    if status == 412:
        return AlreadyExists(code)
    told = f"{status} {one_line(error)}"
    return Unsupported(told) if status == 501 else Refused(told)
