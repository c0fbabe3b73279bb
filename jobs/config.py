"""The one place that composes settings: defaults < preset < --set < flags.

Every default is written once, in the dataclass next to what it configures. A preset is one of
`jobs/presets/*.yaml` or any YAML file of the same keys. pydantic checks types, bounds and unknown
keys of all of them together; the settings in force are saved with every run.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, cast, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import ErrorDetails

from chiasm.index.plan import IndexSettings
from chiasm.jobs.preset_files import read_preset, read_yaml
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import ReadSettings
from chiasm.pipeline.sounds import SoundSettings

DEFAULT_ENCODER = "pocket"  # of a new collection

MOST = 1_000_000  # of anything that Ray counts: far above any cluster, far below its limits
# Of rows, bytes, steps: above any data set's.
MOST_OF_ANY = 10**12
# A seed times a billion, one of each step, is of 63 bits, as torch takes them.
MOST_SEED = 2**32 - 1
MOST_THREADS = 4096  # above the cores of any machine; each takes memory
THREADS = ("encoder.threads", "batch.decode_threads", "train.drawing_processes")
_CHECKED = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class NamedEncoder(EncoderSettings):
    """Which encoder, and how it runs. name: None for the collection's own, pocket for a new one."""

    name: str | None = None


@checked_dataclass(frozen=True, config=_CHECKED)
class WorkerSettings:
    """The pool of workers, each one process with its own copy of the model.

    count: the most that are asked for; they join as the cluster places them.
    cpus, gpus, memory_gb: what one worker reserves; 0 GB reserves no memory.
    in_flight: shards a worker holds, the one at work and those waiting so that it never idles.
    attempts: how often a shard is tried before it is quarantined.
    deadline_seconds: how long one shard may take before its worker is killed; 0 is for ever.
    """

    count: Annotated[int, Field(ge=1, le=MOST)] = 1
    cpus: Annotated[float, Field(ge=0, le=MOST)] = 1
    gpus: Annotated[float, Field(ge=0, le=MOST)] = 0
    memory_gb: Annotated[float, Field(ge=0, le=MOST)] = 0
    in_flight: Annotated[int, Field(ge=1, le=MOST)] = 2
    attempts: Annotated[int, Field(ge=1, le=MOST)] = 3
    deadline_seconds: Annotated[float, Field(ge=0, le=1e9)] = 3600

    def resources(self) -> str:
        """What one worker reserves, in words."""
        parts = {"cores": self.cpus, "accelerators": self.gpus, "GB": self.memory_gb}
        return ", ".join(f"{count:g} {what}" for what, count in parts.items() if count)


@checked_dataclass(frozen=True, config=_CHECKED)
class TrainOptions:
    """Settings of the recipes of `chiasm train`; None: the recipe's own.

    steps: of towers or heads. fusion: one of `pipeline.model.fusion.FUSIONS`. learning_rate: the
    highest. fusion_steps, decoder_steps: of later stages of `pocket` and `joint`. batch: pictures
    of a step, of the towers of `pocket` in each process, or of towers and fusion of `joint`. The
    others are of `train pocket` alone. image_token_steps: of the codes that pictures are drawn by.
    corpus: scenes from whose captions its tokenizer is learned. calibrated: scenes on which
    matching is calibrated. gallery: scenes that it is measured on. drawing_processes: how many
    processes draw; 0: the training process draws. processes: how many learn together on Ray; 0:
    this process learns alone.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    fusion_steps: Annotated[int, Field(ge=0)] | None = None
    image_token_steps: Annotated[int, Field(ge=0)] | None = None
    decoder_steps: Annotated[int, Field(ge=0)] | None = None
    fusion: str | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 0
    batch: Annotated[int, Field(ge=2)] | None = None
    corpus: Annotated[int, Field(ge=1)] | None = None
    calibrated: Annotated[int, Field(ge=1)] | None = None
    gallery: Annotated[int, Field(ge=10)] | None = None
    drawing_processes: Annotated[int, Field(ge=0)] = 1
    processes: Annotated[int, Field(ge=0, le=MOST)] = 0


@checked_dataclass(frozen=True, config=_CHECKED)
class FilterOptions:
    """What `chiasm filter` leaves out.

    threshold: log odds that a caption must reach. drop: in its place the share of all captions to
    drop, the lowest. flag: keep all, and mark those below in json. max_noisy: above this share of
    captions below the threshold nothing is written.
    """

    threshold: float = 0.0
    drop: Share | None = None
    flag: bool = False
    max_noisy: Share = 0.95


@checked_dataclass(frozen=True, config=_CHECKED)
class Settings:
    """Every setting of every command. `max_loss` is the share of samples that may be dropped."""

    encoder: NamedEncoder = field(default_factory=NamedEncoder)
    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    sound: SoundSettings = field(default_factory=SoundSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    train: TrainOptions = field(default_factory=TrainOptions)
    filter: FilterOptions = field(default_factory=FilterOptions)
    max_loss: Share = 0.01

    @property
    def embedding(self) -> EmbedSettings:
        return EmbedSettings(self.read, self.decode, self.batch, self.sound)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def of(self, *groups: str) -> dict[str, Any]:
        """The settings that a command with these groups keeps in its run's record."""
        return {name: value for name, value in self.as_dict().items() if name in groups}


def compose(
    preset: str = "laptop",
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    uses: Sequence[str] = (),
) -> Settings:
    """The settings in force.

    preset: the name of a shipped preset or the path of a YAML file. assignments: `batch.size=32`,
    values read as YAML. flags: dotted key -> value, None where the flag was not given. uses: keys
    and groups that the command has a use for; others may stand in a YAML file, which serves all
    commands, but not among the assignments. Empty: all keys. Raises UsageError.
    """
    values: dict[str, Any] = {}
    source: dict[str, str] = {}  # dotted key -> where it was set
    _merge(values, source, read_preset(preset), preset)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}", expected="key=value, as in batch.size=32")
        key = key.strip()
        if uses and key in keys(Settings) and not _is_used(key, uses):
            instead = "use --encoder" if key == "encoder.name" else ""
            raise UsageError(
                f"--set {key}",
                expected="a setting that this command uses: " + ", ".join(uses),
                do=instead,
            )
        _put(values, source, key, read_yaml(value, f"--set {assignment}"), "--set")
    for key, value in (flags or {}).items():
        if value is not None:
            _put(values, source, key, value, "the command line")
    _require_kinds({key: _value_at(values, key) for key in source})
    try:
        settings = TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        raise _usage_error(error.errors()[0], source) from error
    _require_bounds(settings, source)
    return settings


def _require_kinds(given: Mapping[str, Any]) -> None:
    """UsageError for a value that pydantic would turn into one of another kind (`true` into 1).
    given: dotted key -> value."""
    kinds = _kinds(Settings)
    for key, value in given.items():
        kind = kinds.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is bool and not isinstance(value, bool | None):
            raise UsageError(f"setting {key}", expected="true or false", found=repr(value))
        if kind is int and isinstance(value, bool | float | str):
            raise UsageError(f"setting {key}", expected="a whole number", found=repr(value))
        if kind is float and (isinstance(value, bool) or value != value):
            raise UsageError(f"setting {key}", expected="a number", found=repr(value))
        if is_number and isinstance(value, int) and value.bit_length() > 63:
            found = f"one of {value.bit_length()} bits"  # too long to be written out
            raise UsageError(f"setting {key}", expected="a number", found=found)


def _require_bounds(settings: Settings, given: Iterable[str]) -> None:
    """UsageError for a number so large that nothing can work with it."""
    for key in given:
        value = functools.reduce(getattr, key.split("."), settings)
        most = MOST_THREADS if key in THREADS else MOST_OF_ANY
        if isinstance(value, int | float) and value > most:
            raise UsageError(key, expected=f"{most:g} or less", found=f"{value:g}")


def _is_used(key: str, uses: Sequence[str]) -> bool:
    return any(key == use or key.startswith(f"{use}.") for use in uses)


def _usage_error(first: ErrorDetails, source: Mapping[str, str]) -> UsageError:
    """The first finding of pydantic as one line."""
    key = ".".join(str(part) for part in first["loc"])
    bounds = first.get("ctx", {})
    found = first["input"]
    if first["type"] == "unexpected_keyword_argument":
        return _unknown(key, source.get(key, "the settings"))
    share = key == "max_loss" or key.endswith(("drop", "max_noisy"))
    if first["type"] == "greater_than_equal":
        expected = "a share from 0 to 1" if share else f"{bounds['ge']:g} or more"
        return UsageError(key, expected=expected, found=f"{found}")
    if first["type"] == "less_than_equal":
        expected = "a share from 0 to 1" if share else f"{bounds['le']:g} or less"
        return UsageError(key, expected=expected, found=f"{found}")
    if first["type"] == "greater_than":
        return UsageError(key, expected=f"more than {bounds['gt']:g}", found=f"{found}")
    message = first["msg"].removeprefix("Input should be ")
    return UsageError("setting " + key, expected=message, found=repr(found))


def _unknown(key: str, where: str) -> UsageError:
    known = keys(Settings)
    close = difflib.get_close_matches(key, known, 1)
    return UsageError(
        f"unknown setting {key!r} in {where}",
        do=f"did you mean {close[0]}?" if close else "known: " + ", ".join(known),
    )


def _merge(
    values: dict[str, Any],
    source: dict[str, str],
    more: Mapping[str, Any],
    where: str,
    prefix: str = "",
) -> None:
    for key, value in more.items():
        if not isinstance(key, str):
            raise _unknown(f"{prefix}{key}", where)
        if isinstance(value, Mapping):
            _merge(values, source, value, where, f"{prefix}{key}.")
        elif f"{prefix}{key}" in source:  # by a dot and in a group
            raise UsageError(where, expected="each key once", found=f"{prefix}{key} twice")
        else:
            _put(values, source, f"{prefix}{key}", value, where)


def _put(
    values: dict[str, Any], source: dict[str, str], dotted: str, value: Any, where: str
) -> None:
    """Set one key. A key below a plain value, or a plain value in place of a group, is unknown."""
    *path, last = dotted.split(".")
    group = values
    for part in path:
        group = group.setdefault(part, {})
        if not isinstance(group, dict):
            raise _unknown(dotted, where)
    if isinstance(group.get(last), dict) or dotted in _groups():
        raise _unknown(dotted, where)
    group[last] = value
    source[dotted] = where


def _value_at(values: Mapping[str, Any], dotted: str) -> Any:
    return functools.reduce(lambda group, name: group[name], dotted.split("."), values)


def _groups() -> set[str]:
    return {key.rpartition(".")[0] for key in keys(Settings)} - {""}


def keys(kind: type) -> list[str]:
    """Every key of a settings dataclass, dotted."""
    return list(_kinds(kind))


@functools.cache
def _kinds(kind: type) -> dict[str, type]:
    """The same, each with its type: of an optional one the type that it has where it is given."""
    hints = get_type_hints(kind)
    found: dict[str, type] = {}
    for entry in fields(kind):
        inner = hints[entry.name]
        if is_dataclass(inner):
            nested = _kinds(cast(type, inner))
            found |= {f"{entry.name}.{key}": known for key, known in nested.items()}
        else:
            given = [argument for argument in get_args(inner) if argument is not type(None)]
            found[entry.name] = given[0] if given else inner
    return found
