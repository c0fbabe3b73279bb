"""A collection's identity: `collection.json`, written once, checked whenever it is opened.

It names the encoder that made the vectors. The fingerprint decides whether two encoders are the
same; precision, device and versions are recorded beside it and never cause a refusal, so that a
laptop can query what a GPU embedded.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any, NoReturn

from chiasm.pipeline.collection.embeddings import embedded_shard_ids
from chiasm.pipeline.collection.ledger import read_or_none
from chiasm.pipeline.collection.parquet_schema import (
    SCHEMAS,
    Width,
    arrow_schema,
    schema_version,
    vector_columns,
)
from chiasm.pipeline.encoders import (
    JOINT,
    Encoder,
    earlier_fingerprints,
    load_encoder,
    token_dims,
)
from chiasm.pipeline.errors import CollectionError, EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderOptions, EncoderSettings
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

NAME = "collection.json"
ANSWERS = "answers.json"  # of `pipeline/answers`, which imports this package
SHARD_FOLDERS = ("ledger", "embeddings")  # written by workers
FOLDERS = ("", "runs", "summaries", *SHARD_FOLDERS)  # where a run can leave temporaries


@dataclass(frozen=True)
class Identity:
    """The content of `collection.json`.

    device, versions: those of the first worker. dims: the width of each column that the encoder
    fills, stored where `schema` is 2 or 3. dim: the width where there is one, else the largest.
    options: those of the encoder, stored where one is set. tokens: the width of a token's vector by
    modality, stored where `schema` is 3. earlier: earlier fingerprints of the encoder, which are
    not stored."""

    encoder: str
    fingerprint: str
    dim: Width
    image_size: int | None
    precision: str
    preprocessing: dict[str, Any]
    device: str
    versions: dict[str, str]
    schema: int = 1
    dims: dict[str, Width] = field(default_factory=dict)
    options: EncoderOptions = field(default_factory=EncoderOptions)
    earlier: dict[str, str] = field(default_factory=dict)

    @property
    def of_unheard_prompts(self) -> bool:
        """Whether its rows were made when `st:` did not use the model's prompts for queries and
        documents."""
        text = self.preprocessing.get("text")
        return (
            self.encoder.startswith("st:") and isinstance(text, dict) and "query_prompt" not in text
        )

    tokens: dict[str, Width] = field(default_factory=dict)

    @property
    def default_column(self) -> str:
        """What a search without one takes: pictures or, where there are none, what there is in
        their place."""
        filled = self.dims or {IMAGE: self.dim}
        others = [name for name in filled if name not in (TEXT, JOINT)]
        return IMAGE if IMAGE in others else [*others, TEXT][0]

    @property
    def columns(self) -> dict[str, int]:
        """Every vector column of the collection and its width."""
        return vector_columns(self.dims or {"joint": self.dim})

    @classmethod
    def of(cls, encoder: Encoder, options: EncoderOptions | None = None) -> Identity:
        """options: those that the encoder was loaded with."""
        dims = dict(encoder.dims)
        _check_columns(encoder)
        tokens = token_dims(encoder)
        version = schema_version(dims, tokens)
        picture = encoder.modalities.get(IMAGE)
        return cls(
            encoder=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=max(dims.values()),
            image_size=None if picture is None else picture.side,
            precision=encoder.precision,
            preprocessing=encoder.preprocessing,
            device=encoder.device,
            versions=package_versions(),
            schema=version,
            dims={} if version == 1 else dims,
            options=EncoderOptions(**(options or EncoderOptions()).given()),
            earlier=dict(earlier_fingerprints(encoder)),
            tokens=tokens,
        )

    def to_json(self) -> bytes:
        """The file's bytes; those of schema 1 hold no `dims`."""
        fields = asdict(self)
        del fields["earlier"]
        if self.schema == 1:
            del fields["dims"]
        if self.schema < 3:
            del fields["tokens"]
        fields["options"] = self.options.given()
        if not fields["options"]:
            del fields["options"]
        text = json.dumps(fields, ensure_ascii=False, indent=1)
        return text.encode("utf-8", "surrogatepass") + b"\n"

    def name_weights(self) -> str:
        """What to do where the encoder of that name has other weights now."""
        return (
            f"name the weights that made it, as in --encoder {self.encoder.partition(':')[0]}:DIR"
        )

    def require(self, fingerprint: str, name: str, where: str) -> None:
        """Raise CollectionError for an encoder with another fingerprint. where: the collection."""
        if fingerprint != self.fingerprint:
            raise CollectionError(
                where,
                expected=f"encoder {self.encoder} ({self.fingerprint[:12]})",
                found=f"{name} ({fingerprint[:12]})",
                do=f"{self.name_weights()}, or take another --to folder",
            )


@dataclass(frozen=True)
class Collection:
    """An opened collection: its folder and its identity. encoder: the name that its encoder is
    loaded by, None for the one in the identity; weights that are replaced live on in a folder."""

    folder: Folder
    identity: Identity
    encoder: str | None = None

    @classmethod
    def open(cls, path: str, encoder: str | None = None) -> Collection:
        """Raises CollectionError where there is none, or one that this version cannot read."""
        return cls.of(Folder(path), path, encoder)

    @classmethod
    def of(cls, folder: Folder, path: str, encoder: str | None = None) -> Collection:
        """The same for a folder that is called `path` in messages."""
        identity = read_identity(folder)
        if identity is None:
            raise CollectionError(
                path,
                expected="a collection (a folder with collection.json)",
                found="none",
                do="make one: chiasm embed SHARDS --to " + path,
            )
        return cls(folder, identity, encoder)

    def load_encoder(self, encoding: EncoderSettings) -> Encoder:
        """The encoder that made the vectors, perhaps in an earlier way; CollectionError for another
        one, else raises as `load_encoder` does."""
        its, name = self.identity, self.encoder or self.identity.encoder
        where = display_name(self.folder.url)
        encoder = load_encoder(name, encoding.with_options(its.options, where))
        if its.fingerprint not in (encoder.fingerprint, *earlier_fingerprints(encoder)):
            found = name if self.encoder else "another of that name"
            raise CollectionError(
                where,
                expected=f"encoder {its.encoder} ({its.fingerprint[:12]})",
                found=f"{found} ({encoder.fingerprint[:12]})",
                do=f"{its.name_weights()}, or embed the shards into another collection",
            )
        return encoder


def _check_columns(encoder: Encoder) -> None:
    """EncoderError for columns that a collection cannot hold."""
    dims, modalities = dict(encoder.dims), set(encoder.modalities)

    def refuse(expected: str, found: str, do: str) -> NoReturn:
        raise EncoderError(f"encoder {encoder.name}", expected=expected, found=found, do=do)

    if len(set(dims.values())) != 1:
        refuse(
            "columns of one width, since they are searched with each other's vectors",
            ", ".join(f"{column} {width}" for column, width in dims.items()) or "none",
            "project them into one space",
        )
    if odd := set(token_dims(encoder)) - modalities:
        refuse("tokens of the encoder's modalities", ", ".join(sorted(odd)), "leave them out")
    if set(dims) - {JOINT} != modalities or JOINT in modalities:
        refuse(
            "a width for each modality, and perhaps for joint",
            f"modalities {', '.join(sorted(modalities))}, widths for {', '.join(dims)}",
            "make dims and modalities agree",
        )
    names = arrow_schema(dims, token_dims(encoder)).names
    odd = [name for name in modalities if not re.fullmatch("[a-z][a-z0-9_]*", name)]
    twice = [name for name in names if names.count(name) > 1]
    if odd or twice:
        refuse(
            "modalities named in lower-case letters, digits and underscores, unlike other columns",
            ", ".join([*odd, *dict.fromkeys(twice)]),
            "choose other names",
        )


def read_identity(folder: Folder) -> Identity | None:
    """The identity, None where there is no collection yet; CollectionError for a damaged one."""
    data = read_or_none(folder, NAME)
    if data is None:
        return None
    where, what = display_name(folder.url_of(NAME)), "the identity of a collection"
    return read_record(data, where, Identity, what=what, schema=max(SCHEMAS))


def require_no_answers(folder: Folder) -> None:
    """UsageError for the folder of answers about shards."""
    if folder.exists(ANSWERS):
        raise UsageError(
            display_name(folder.url),
            expected="a new folder, or a collection",
            found="answers about shards",
            do="name another folder",
        )


def create_or_check(
    folder: Folder, identity: Identity, run_id: str, renewed: Sequence[str] | None = None
) -> Identity:
    """Write the identity if the collection has none, then compare ours with the one it has, which
    is returned.

    renewed: the ids of the shards, where the run makes their rows anew if they were made in an
    earlier way. If these are all, the identity is replaced: rows that are left of a run that was
    killed then count as another encoder's, and the next run makes them anew.

    Of two runs that start together one writes; the other, if its encoder is another, fails here,
    before it embeds anything. Raises CollectionError."""
    if not folder.exists(NAME):
        folder.write_new(NAME, identity.to_json(), run_id)
    existing = read_identity(folder)
    if existing is None:
        raise CollectionError(
            display_name(folder.url_of(NAME)), expected="an identity", found="none any more"
        )
    if existing.fingerprint in identity.earlier:
        _require_renewal(folder, identity.earlier[existing.fingerprint], renewed)
        folder.write_whole(NAME, identity.to_json(), run_id)
        return identity
    existing.require(identity.fingerprint, identity.encoder, display_name(folder.url))
    if existing.of_unheard_prompts and not identity.of_unheard_prompts:  # its rows are the same
        existing = replace(existing, preprocessing=identity.preprocessing)
        folder.write_whole(NAME, existing.to_json(), run_id)
    return existing


def _require_renewal(folder: Folder, what: str, renewed: Sequence[str] | None) -> None:
    """CollectionError where rows that were made by earlier prompts, say, would stay beside new
    ones."""
    where = display_name(folder.url)
    if renewed is None:
        raise CollectionError(
            where,
            expected=f"rows made by the {what} of today, since two kinds do not mix",
            found=f"rows made by earlier {what}, which can be searched as they are",
            do="embed all of its shards again by --reembed, or embed into another collection",
        )
    left = sorted(set(embedded_shard_ids(folder)) - set(renewed))
    if left:
        raise CollectionError(
            where,
            expected=f"all of its shards with --reembed, since its {what} are earlier ones",
            found=f"{len(left):,} that were not named, such as {left[0]}",
            do="name them too, or embed into another collection",
        )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a vector."""
    found = {"python": platform.python_version()}
    for name in ("chiasm", "torch", "transformers", "sentence-transformers", "pillow", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
