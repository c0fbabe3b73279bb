"""Inputs of the fuzz targets: seeds made by code, and mutations that keep an input's structure.

Random bytes end at the first checksum or brace. So tars get mutated headers with right checksums,
packed ones are unpacked first, and JSON is mutated as a tree. A mutation depends on its arguments
alone: `rng` draws, and `mutate_bytes` changes plain bytes (the engine's own mutation, or
`change_bytes`).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pyarrow as pa

MutateBytes = Callable[[bytes], bytes]

BLOCK = tarfile.BLOCKSIZE
_MOST_UNPACKED = 1 << 16  # of a packed input that is mutated as a tar

# Where a number or a text turns into something else: limits of types, of formats, of parsers.
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 511, 512, 513, 4300, 65535, 65536, 1 << 31, 1 << 32, 1 << 53),
    *((1 << 53) + 1, (1 << 63) - 1, 1 << 63, -(1 << 63) - 1, 1 << 64, 10**400, -(10**25)),
    *(0.0, -0.0, 0.5, 1e308, -1e-300, float("inf"), float("-inf"), float("nan")),
)
TEXTS = (
    *("", "a", "0", "-1", "nan", "1e9", "schema", "a.jpg", "../../up", "/etc/passwd", "a/b", "\\"),
    *("\0", "\n", "\x1b[31m", "\u202e", "\ufeff", "\ufffd", "\U0001f408", "e\u0301", "\ud800"),
    *("\udcff", "x" * 300, "file:///a", "s3://b/c", "{}", "[]", "null", "²", "٣"),
)


def change_bytes(rng: Random, data: bytes) -> bytes:
    """A few random changes of plain bytes, for where there is no engine."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.randint(1, 8))
        piece = bytes(changed[start:end])
        drawn = (b"", rng.randbytes(rng.randint(1, 8)), piece * 2, bytes(len(piece)), piece[::-1])
        changed[start:end] = rng.choice(drawn)
    return bytes(changed)


# --- tars -----------------------------------------------------------------------------------------

_FIELDS = {  # of a tar header: start and end
    "name": (0, 100),
    "mode": (100, 108),
    "owner": (108, 116),
    "size": (124, 136),
    "time": (136, 148),
    "type": (156, 157),
    "link": (157, 257),
    "magic": (257, 265),
    "device": (329, 337),
    "prefix": (345, 500),
    "extents": (386, 482),
    "extended": (482, 483),
    "whole size": (483, 495),
}
_LONG = (b"L", b"K")
_TYPES = b"0123456789\0gxXLKSDMNVZA "
_MAGICS = (b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\0\0\0", b"GNUtar \0")
_NAMES = (
    *(b"a.jpg", b"a.txt", b"a.json", b"b.jpg", b"a.npy", b".jpg", b"a", b"a.", b"d/", b"d.1/a.jpg"),
    *(b"__x__", b"\xff.jpg", b"../up.jpg", b"/a.jpg", b"a." + b"b." * 40 + b"jpg", b"a.\xe2\x82"),
    *(b"././@LongLink", b"GNUSparseFile.0/a.jpg", b"a.heic", b"a" * 100, b"\n.jpg", b"a.JPG"),
)
_KEYWORDS = (
    *("path", "linkpath", "size", "mtime", "uid", "gid", "hdrcharset", "comment", "charset"),
    *("GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name", "GNU.sparse.realsize"),
    *("GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.numblocks", "GNU.sparse.offset"),
    *("GNU.sparse.numbytes", "", "=", "SCHILY.xattr.x"),
)
_VALUES = (
    *(b"0", b"1", b"-1", b"-512", b"512", b"9" * 18, b"9" * 30, b"1" * 1200, b"nan", b"inf"),
    *(b"1e400", b"", b"0,512", b"0,512,1024", b"5,5,1,1", b"-1,5", b"a,b", b"BINARY", b"\xff\xfe"),
    *(
        b"ISO-IR 10646 2000 UTF-8",
        b"a.jpg",
        b"x" * 300 + b".jpg",
        b"\0",
        b"0," * 600,
        b" 7",
        b"1_0",
    ),
)
_PICTURE = bytes(range(256)) + b"picture"


def sized(number: int) -> bytes:
    """A number of a header's 12 bytes: octal or, where that does not fit, base 256."""
    if 0 <= number < 8**11:
        return b"%011o\0" % number
    return b"\x80" + (number % (1 << 88)).to_bytes(11, "big")


def header(name: bytes, size: int, kind: bytes = b"0", magic: bytes = _MAGICS[0]) -> bytes:
    """A header by hand, with its checksum."""
    block = bytearray(BLOCK)
    block[: len(name[:100])] = name[:100]
    block[100:124], block[124:136], block[136:148] = b"0000644\0" * 3, sized(size), sized(0)
    block[156:157], block[257 : 257 + len(magic)] = kind, magic
    return checked(block)


def checked(block: bytes | bytearray) -> bytes:
    """A header with the checksum that it should have, which counts its own bytes as blanks."""
    with_sum = bytearray(block)
    with_sum[148:156] = b" " * 8
    with_sum[148:156] = b"%06o\0 " % sum(with_sum)
    return bytes(with_sum)


def is_checked(block: bytes) -> bool:
    """Whether a block is a header with the right checksum, as `checked` writes it."""
    return block[154:156] == b"\0 " and block == checked(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax_record(keyword: bytes, value: bytes) -> bytes:
    """A pax record, which begins with its own length."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    while len(str(length)) + rest != length:
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def pax_header(records: dict[str, bytes], kind: bytes = b"x") -> bytes:
    data = b"".join(pax_record(name.encode(), value) for name, value in records.items())
    return header(b"PaxHeader", len(data), kind) + padded(data)


def member(name: bytes, data: bytes, **fields: Any) -> bytes:
    return header(name, len(data), **fields) + padded(data)


def sparse_member(extents: Sequence[tuple[int, int]], size: int, more: bytes = b"") -> bytes:
    """A sparse file in GNU tar's old form; more: headers of further extents."""
    stored = sum(length for _, length in extents)
    block = bytearray(header(b"a.jpg", stored, b"S", _MAGICS[1]))
    for number, (start, length) in enumerate(extents[:4]):
        block[386 + 24 * number : 410 + 24 * number] = sized(start) + sized(length)
    block[482], block[483:495] = bool(more), sized(size)
    return checked(block) + more + padded(b"s" * stored)


def _by_tarfile(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in ("a.jpg", "a.txt", "é/" * 60 + "b.jpg", "b.json"):
            content = {"jpg": _PICTURE, "json": b'{"caption": "x"}'}.get(name.split(".")[1], b"one")
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()[: 20 * BLOCK]  # two blocks are the end mark, padding up to 20


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def tars() -> list[bytes]:
    """Tars in every dialect, plain and packed, with links, sparse files and pax records."""
    end, pair = bytes(2 * BLOCK), member(b"a.jpg", _PICTURE) + member(b"a.txt", b"one")
    sparse = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"4000"}
    map_0 = {"GNU.sparse.size": b"2000", "GNU.sparse.numblocks": b"1", "GNU.sparse.offset": b"10"}
    plain = [
        pair + end,
        *map(_by_tarfile, (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
        member(b"a.jpg", _PICTURE, magic=b"", kind=b"\0") + end,
        member(b"a.jpg", _PICTURE, magic=_MAGICS[1])
        + member(b"././@LongLink", b"b.txt\0", kind=b"L") + member(b"b", b"two") + end,
        sparse_member([(0, 512), (1024, 100)], 3000) + pair + end,
        sparse_member([(0, 8)] , 64, more=(sized(9) + sized(1)) * 21 + bytes(8)) + end,
        pax_header({"path": "é.jpg".encode(), "size": b"263"}) + member(b"x", _PICTURE) + end,
        pax_header({"comment": b"c", "path": b"g.jpg"}, b"g") + pair + end,
        pax_header(sparse | {"GNU.sparse.name": b"a.jpg"})
        + member(b"x", padded(b"1\n0\n512\n") + b"s" * 512) + end,
        pax_header({"GNU.sparse.size": b"2000", "GNU.sparse.map": b"0,100,900,9"})
        + member(b"a.jpg", b"s" * 109) + end,
        pax_header({**map_0, "GNU.sparse.numbytes": b"20"}) + member(b"a.jpg", b"s" * 20) + end,
        *(header(b"a.jpg", 0, bytes([kind])) + pair + end for kind in b"1236ZV"),
        header(b"d/", 0, b"5") + member(b"a.txt", b"\xff\xfeone") + pair + end + b"more",
        pair[:-100],
        b"",
    ]  # fmt: skip
    return [
        *plain,
        gzip.compress(plain[0], mtime=0),
        zstd(plain[0]),
        gzip.compress(plain[6], mtime=0)[:-4],
    ]


def mutate_tar(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    """A tar with some changes; packed ones stay packed most of the time."""
    pack = None
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.8:
        pack, data = _gzip, _unpacked(data)
    elif data[:4] == b"\x28\xb5\x2f\xfd" and rng.random() < 0.8:
        pack, data = zstd, _unpacked_zstd(data)
    elif rng.random() < 0.05:
        pack = rng.choice((_gzip, zstd))
    for _ in range(rng.randint(1, 3)):
        change = rng.choice(_TAR_CHANGES)
        data = change(rng, data, mutate_bytes)
    return pack(data) if pack else data


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(data, _MOST_UNPACKED)
    except zlib.error:
        return data


def _unpacked_zstd(data: bytes) -> bytes:
    try:
        with pa.CompressedInputStream(pa.py_buffer(data), "zstd") as stream:
            return stream.read(_MOST_UNPACKED)
    except OSError:
        return data


def _headers(data: bytes) -> list[int]:
    """Offsets of blocks that are headers."""
    offsets = range(0, len(data) - BLOCK + 1, BLOCK)
    return [at for at in offsets if is_checked(data[at : at + BLOCK])]


def _change_field(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    at = rng.choice(_headers(data) or [-1])
    if at < 0:
        return rng.choice(tars())
    block = bytearray(data[at : at + BLOCK])
    name = rng.choice(list(_FIELDS))
    start, end = _FIELDS[name]
    block[start:end] = _value_of(rng, name, bytes(block[start:end]), mutate_bytes)
    return data[:at] + checked(block) + data[at + BLOCK :]


def _value_of(rng: Random, name: str, old: bytes, mutate_bytes: MutateBytes) -> bytes:
    """A value for a header's field, as long as the old one."""
    if rng.random() < 0.15:
        value = mutate_bytes(old)
    elif name == "type":
        value = bytes([rng.choice(_TYPES)])
    elif name == "magic":
        value = rng.choice(_MAGICS)
    elif name in ("name", "link", "prefix"):
        value = rng.choice(_NAMES)
    elif name == "extended":
        value = bytes([rng.choice((0, 1, 49))])
    else:
        numbers = [_header_number(rng) for _ in range(1 + len(old) // 12)]
        value = b"".join(numbers)
    return value[: len(old)].ljust(len(old), b"\0")


def _header_number(rng: Random) -> bytes:
    whole = [number for number in NUMBERS if isinstance(number, int)]
    drawn = rng.choice((*whole, 100, 1000, 2000, 4 << 20, 16 << 20, 1 << 30))
    odd = (b"\xff" * 12, b" " * 12, b"8" * 12, b"7" * 12, b"\x80" + b"\xff" * 11, b"-1" + bytes(10))
    return sized(drawn) if rng.random() < 0.8 else rng.choice(odd)


def _insert_member(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    at = rng.choice([*_headers(data), len(data)])
    records = {rng.choice(_KEYWORDS): rng.choice(_VALUES) for _ in range(rng.randint(1, 4))}
    content = mutate_bytes(_PICTURE[: rng.randrange(200)])
    inserted: Sequence[Callable[[], bytes]] = (
        lambda: pax_header(records, rng.choice((b"x", b"x", b"g", b"X"))),
        lambda: member(rng.choice(_NAMES), content),
        lambda: member(b"L", rng.choice(_NAMES) * rng.choice((1, 30)), kind=rng.choice(_LONG)),
        lambda: bytes(BLOCK * rng.randint(1, 3)),
        lambda: member(b"x", mutate_bytes(pax_record(b"path", b"a.jpg")), kind=b"x"),
        lambda: member(b"b.json", mutate_bytes(b'{"caption": "one", "captions": ["two", 3]}')),
        lambda: sparse_member([(rng.randrange(2000), 512)], rng.choice((600, 3000, 4 << 20))),
    )  # fmt: skip
    return data[:at] + rng.choice(inserted)() + data[at:]


def _move_blocks(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)] or [b""]
    start = rng.randrange(len(blocks))
    end = start + rng.randint(1, 3)
    taken = blocks[start:end]
    if rng.random() < 0.5:
        del blocks[start:end]
    if rng.random() < 0.7:
        blocks[(to := rng.randrange(len(blocks) + 1)) : to] = taken
    return b"".join(blocks)


def _cut(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _change_bytes_keeping_sums(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    before = _headers(data)
    changed = mutate_bytes(data)
    for at in before:
        block = changed[at : at + BLOCK]
        if len(block) == BLOCK and any(block):
            changed = changed[:at] + checked(block) + changed[at + BLOCK :]
    return changed


def _change_bytes(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    return mutate_bytes(data)


_TAR_CHANGES = (
    *(_change_field, _change_field, _change_field, _insert_member, _insert_member, _move_blocks),
    *(_change_bytes_keeping_sums, _change_bytes, _cut),
)


# --- JSON -----------------------------------------------------------------------------------------


def json_bytes(value: Any) -> bytes:
    """As chiasm writes its records: text as it is, lone surrogates too."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def json_value(rng: Random, depth: int = 0) -> Any:
    """A random value."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind >= 7:
        names = (rng.choice(("a", "b", "c", "caption", rng.choice(TEXTS))) for _ in range(3))
        return {name: json_value(rng, depth + 1) for name in names}
    if kind == 6:
        return [json_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return (None, True, False, rng.choice(NUMBERS), rng.choice(TEXTS), rng.randint(-9, 9))[kind]


def mutate_json(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    """One JSON value with changes to its tree; plain bytes where it is none."""
    try:
        tree = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return mutate_bytes(data)
    kind = rng.random()
    if kind < 0.15:
        return mutate_bytes(data)
    if kind < 0.2:
        return _odd_text(rng, data)
    try:
        for _ in range(rng.randint(1, 3)):
            tree = _changed_tree(rng, tree)
        return json_bytes(tree)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return data


def _odd_text(rng: Random, data: bytes) -> bytes:
    """JSON that no tree gives: very deep, with a mark at its start, of two values, escaped."""
    depth = rng.choice((10, 201, 990, 5000))
    pair = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nested = pair[0] * depth + b"1" + pair[1] * depth
    number = rng.choice(
        (b"1" * 5000, b"1e999", b"-0", b"1" * 400 + b".5", b"00", b"NaN", b"1E-400")
    )
    place = rng.randrange(len(data) + 1)
    escapes = (rb"\ud800", rb"\udc00\ud800", rb"\u0000", rb"\u00e9", rb"\ud83d\udc08")
    return rng.choice(
        (
            nested,
            b'{"a": ' + nested + b"}",
            b'{"a": ' + number + b"}",
            b"\xef\xbb\xbf" + data,
            data * 2,
            data.replace(b'": ', b'": ' + number + b', "x": ', 1),
            data[:place] + rng.choice(escapes) + data[place:],
            data.decode("utf-8", "replace").encode("utf-16"),
        )
    )


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of every value below a tree."""
    stack = [tree]
    while stack:
        value = stack.pop()
        items: Any = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        for key, part in items:
            yield value, key
            stack.append(part)


def _changed_tree(rng: Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.03:
        return json_value(rng)
    container, key = rng.choice(places)
    change, old = rng.randrange(8), container[key]
    if change == 0:
        del container[key]
    elif change == 1 and isinstance(container, dict):
        container[rng.choice(TEXTS)] = container.pop(key)
    elif change == 2:
        container[key] = [old] if rng.random() < 0.5 else {"a": old}
    elif change == 3:
        container[key] = rng.choice(NUMBERS)
    elif change == 4:
        container[key] = rng.choice(TEXTS)
    elif change == 5:
        other, place = rng.choice(places)
        container[key] = json.loads(json.dumps(other[place]))  # a copy: no value contains itself
    elif change == 6:
        filler = {} if isinstance(old, dict | list) else old
        many = {f"x{number}": filler for number in range(rng.choice((1, 3, 300)))}
        if isinstance(container, dict):
            container.update(many)
        else:
            container.extend(many.values())
    else:
        container[key] = json_value(rng)
    return tree


def mutate_lines(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    """Lines of JSON: one of them is mutated, doubled, left out, or new."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        lines.insert(place, json_bytes({rng.choice("abc"): json_value(rng)}))
    elif kind == 1:
        lines.insert(place, lines[rng.randrange(len(lines))])
    elif kind == 2 and len(lines) > 1:
        del lines[place]
    else:
        lines[place] = mutate_json(rng, lines[place], mutate_bytes).replace(b"\n", b" ")
    return b"\n".join(lines)


# --- URLs -----------------------------------------------------------------------------------------

_SCHEMES = (
    *(
        "file://",
        "s3://",
        "gs://",
        "hf://",
        "http://",
        "https://",
        "HTTP://",
        "S3://",
        "",
        "ftp://",
    ),
    *("file:/", "http:", "s3:///", "file://localhost", "file://host", "://", "a+b://", "hf:"),
)
_HOSTS = (
    *("bucket", "host.example", "HOST", "127.0.0.1", "[::1]", "[::1", "host:80", "host:x", "", "."),
    *(
        "user:pw@host",
        "user@host",
        "arn:aws:s3:::b",
        "é.example",
        "a" * 300,
        "host:99999999999",
        "~",
    ),
    *("datasets/a/b@main", "user:p/w@host", "\ud83d", "xn--", "ho st", "host%00", "..", "%"),
)
_PATHS = (
    *(
        "/a.tar",
        "/a b.tar",
        "/a%20b.tar",
        "/%2e%2e/a",
        "//a",
        "/../a",
        "/./a",
        "/",
        "",
        "/a/",
        "/é",
    ),
    *(
        "/*.tar",
        "/**/*.tar",
        "/a?.tar",
        "/[ab].tar",
        "/[!a].tar",
        "/[",
        "/[]",
        "/[z-a]",
        "/{00..03}",
    ),
    *(
        "/{a,b}",
        "/%",
        "/%zz",
        "/%ff",
        "/%00",
        "/\0",
        "/a\n",
        "/\x1b[0m",
        "/***",
        "/**a",
        "/a;b",
        "/+",
    ),
    *(
        "/" + "a" * 300,
        "/a" * 50,
        "/\udcff",
        "/.a.tar",
        "~",
        "~root",
        "/~/a",
        "/" + "*a" * 20,
        "/a.tar.gz",
    ),
)
_QUERIES = (
    *(
        "?",
        "?a=1",
        "?download=true",
        "?X-Amz-Signature=1",
        "?sig=1&se=2",
        "?token=",
        "?a",
        "?=",
        "?&&",
    ),
    *(
        "?a=%ff",
        "?key=1",
        "?versionId=1",
        "?a=1?b=2",
        "?password=%00",
        "?%74oken=1",
        "?Signature=1;a",
    ),
    *(
        "?" + "a=1&" * 50,
        "?é=ü",
        "?a=1#f",
        "?private_token=1",
        "?rlkey=1",
        "?q-signature=1",
        "?\udcff",
    ),
)
_FRAGMENTS = ("", "", "", "#", "#a", "#?a", "#é", "#%", "#a#b")


def url(rng: Random) -> bytes:
    parts = (_SCHEMES, _HOSTS, _PATHS, _QUERIES, _FRAGMENTS)
    drawn = [rng.choice(part) for part in parts]
    for number in (2, 3):
        if rng.random() < 0.4:
            drawn[number] += rng.choice(parts[number])
    if rng.random() < 0.5:
        drawn[3] = ""
    return "".join(drawn).encode("utf-8", "surrogatepass")


def urls() -> list[bytes]:
    """One URL for each part of the grammar."""
    drawn = [
        f"{scheme}{host}{path}{query}"
        for scheme, host, path, query in (
            *((scheme, "host", "/a.tar", "") for scheme in _SCHEMES),
            *(("s3://", host, "/a.tar", "") for host in _HOSTS),
            *(("", "folder", path, "") for path in _PATHS),
            *(("https://", "host", "/a.tar", query) for query in _QUERIES),
        )
    ]
    return [text.encode("utf-8", "surrogatepass") for text in drawn]


def mutate_url(rng: Random, data: bytes, mutate_bytes: MutateBytes) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return mutate_bytes(data)
    if kind == 1:
        return url(rng)
    place = rng.randrange(len(data) + 1)
    piece = rng.choice(rng.choice((_HOSTS, _PATHS, _QUERIES, _FRAGMENTS, TEXTS)))
    return data[:place] + piece.encode("utf-8", "surrogatepass") + data[place:]
