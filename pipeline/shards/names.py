"""Names of members: key and extension, and which files of a tar are none of a sample.

A member is called KEY.EXTENSION, as webdataset has it. Beside the samples lie files of desktops and
version control, and files about the data set: they are passed over, and noted.
"""

from __future__ import annotations

import re
import unicodedata

_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")

# Hidden files and folders (`._0001.jpg` of a Mac, .DS_Store, .git/), folders of desktops and
# network disks, files that they and editors leave in any folder, and texts about the data set,
# which would be read as captions.
_JUNK = re.compile(
    r"""(?:^|/)(?:
        \.(?!\.?(?:/|$))
      | (?:__macosx|\$recycle\.bin|system\ volume\ information|@eadir|\#recycle|lost\+found)/
      | (?:thumbs|ehthumbs(?:_vista)?)\.db(?::[^/]*)?$
      | (?:desktop|picasa)\.ini$
      | ~\$ | [^/]*~$ | \#[^/]*\#$
      | (?:readme|license|licence|copying|notice|changelog)
        (?:\.[a-z]{2})?(?:\.(?:md|txt|rst|html?|rtf|pdf))?$
    )""",
    re.IGNORECASE | re.VERBOSE,
)

# Extensions of files about a data set: documents, tables, lists, archives, what is left of a
# download. A key that has only these is no sample.
_DOCUMENTS = re.compile(
    "7z|arrow|avro|bak|bib|bz2|cfg|conf|crdownload|csv|db|docx?|feather|geojson|gz|html?|idx|ini|"
    "ipynb|jsonl|jsonlines|kml|lnk|lock|log|markdown|md|md5|names|ndjson|orc|parquet|part|pdf|py|"
    "rar|rst|rtf|sh|sha1|sha256|shp|sqlite3?|tar|tgz|tfrecords?|tmp|toml|topojson|tsv|url|xlsx?|"
    r"xz|ya?ml|zip|zst|(?:csv|jsonl?|tar|tsv|txt)\.(?:bz2|gz|xz|zst)"
)
# Extensions that samples have as well. A key with these, without a picture, is no sample if it is
# called as files about a data set are (sizes.json, labels.npy). Others (0007.json) lost theirs.
_BESIDE = {"h5", "hdf5", "json", "mat", "npy", "npz", "pickle", "pkl", "pt", "pth", "txt", "xml"}
_ABOUT = re.compile(
    r"(?:.*/)?(?:_?metadata|meta|dataset_infos?|info|index|manifest|stats|state|config|schema|"
    r"classes|categories|labels|annotations?|captions|prompts|sizes|splits?|vocab|mapping|urls|"
    r"sources|filelist|files|train|val|valid|validation|test|report|summary|_success|"
    r"(?:captions|image_info|instances|panoptic|person_keypoints)_[a-z0-9]+)",  # COCO
    re.IGNORECASE,
)


# What members of a folder that is one sample are called; of texts the surer captions come first.
_PICTURE_ROLES = {
    *("image", "images", "img", "photo", "photograph", "picture", "pic", "full", "original"),
}
_TEXT_ROLES = (
    *("caption", "captions", "text", "texts", "txt", "prompt", "description", "descriptions"),
    *("alt", "alt_text", "title", "label", "meta", "metadata", "json"),
)
_RANKS = {role: rank for rank, role in enumerate(_TEXT_ROLES)}
NO_ROLE = len(_TEXT_ROLES)
_VARIANT = re.compile(r"(?:[_-]?\d{1,2}|[_-][a-z]{2}(?:[_-][a-z]{2})?)$")  # a number, a language


def split_member_name(name: str) -> tuple[str, str] | None:
    """A member's name -> (key, extension in lower case), as webdataset's `base_plus_ext` has it:
    the key ends at the first dot of the base name. None for a name without extension, for those
    that webdataset skips (`__meta__`, and all in a folder so called), and for `is_junk`."""
    if name.startswith("__") and re.match(r"__[^/]*__($|/)", name):
        return None
    found = _KEY_AND_EXTENSION.match(name)
    return (found[1], found[2].lower()) if found and not _JUNK.search(name) else None


def is_junk(name: str) -> bool:
    """Whether a member is a file of a desktop or a text about the data set, by its name alone."""
    return _JUNK.search(name) is not None


def is_about_dataset(key: str, extensions: set[str]) -> bool:
    """Whether a key without picture is no sample but a file about the data set."""
    read = {extension for extension in extensions if not _DOCUMENTS.fullmatch(extension)}
    return not read or (read <= _BESIDE and _ABOUT.fullmatch(key) is not None)


def comparable(key: str) -> str:
    """The form in which keys are compared: without `./` and `/` at their beginning, which depend on
    the folder that the tar was made in, and in NFC: a Mac writes names in NFD, others in NFC."""
    key = key.lstrip("/")
    while key[:2] == "./":
        key = key[2:].lstrip("/")
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def folder_of(key: str) -> str:
    """The folder that a key lies in, "" for none, and for that which the tar is of (`./0001`)."""
    if "/" not in key:
        return ""
    folder = key.rpartition("/")[0]
    return folder if comparable(f"{folder}/") else ""


def picture_role(key: str) -> bool:
    """Whether a key's base name says of a picture that it is one (`0001/image.jpg`)."""
    return key.rpartition("/")[2].casefold() in _PICTURE_ROLES


def text_role(key: str) -> int:
    """The rank of what a key's base name says of a text, lower for what is surer to be the caption
    (`0001/caption.txt`, `caption_en`, `caption2`); NO_ROLE where it says nothing."""
    base = key.rpartition("/")[2].casefold()
    return _RANKS.get(base, _RANKS.get(_VARIANT.sub("", base), NO_ROLE))
