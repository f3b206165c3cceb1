"""Recipe: one page of settings, in the order of the data path, and what they may be."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field

from whisper_peft.errors import UserError
from whisper_peft.files import YamlSyntaxError, parse_yaml, short_repr


@dataclass(frozen=True)
class Model:
    """Which Whisper, and what it is asked to do."""

    name: str = "openai/whisper-small"
    language: str | None = None  # a name or a code; null only where every row names its own
    task: str = "transcribe"
    language_token: str | None = None  # borrow this language's token for one Whisper does not know


@dataclass(frozen=True)
class Text:
    """How transcripts are cleaned before training and scoring."""

    normal_form: str | None = "NFC"
    lowercase: bool = False
    remove_punctuation: bool = False


@dataclass(frozen=True)
class Source:
    """One of several training sources."""

    source: str
    weight: float = 1.0  # how often each of its clips comes in an epoch; of a stream: how often it is drawn
    language: str | None = None  # of its clips, where they name none themselves


@dataclass(frozen=True)
class Data:
    """Where speech comes from: train learns, eval selects, test is scored once before and once after."""

    train: tuple[str | Source, ...] = ()
    eval: str | None = None
    test: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    prompt_column: str | None = None  # what was said before each clip; null: no column is
    times: str | None = None  # use or ignore the columns with start and end; null: ask where they do not fit the files
    text: Text = field(default_factory=Text)
    max_left_out: float = 0.1  # the share of unusable clips above which the run stops
    allow_shift: bool = False  # train although texts seem to stand beside the wrong sound
    streaming: bool = False  # train's Hub data sets and Parquet files are read as they come, never stored
    shuffle_buffer: int = 1024  # clips of a stream that are in memory and shuffled at a time

    @property
    def sources(self) -> tuple[Source, ...]:
        """The training sources, each with its weight."""
        return tuple(one if isinstance(one, Source) else Source(one) for one in self.train)

    @property
    def columns(self) -> dict[str, str | None]:
        """What `load_source` takes: which column of a table means what."""
        return {name: getattr(self, name) for name in ("audio_column", "text_column", "prompt_column", "times")}


@dataclass(frozen=True)
class Features:
    """How a clip becomes input."""

    window: str = "condensed"  # of the audio: full, condensed or tight
    slack_s: float | None = None  # silence behind the longest clip of a step; null: 0.2 condensed, 0.5 tight
    full_share: float = 0.0  # share of steps, at random, that get the full window all the same
    full_last: float = 0.0  # share of steps at the end that do
    timestamps: float = 0.0  # share of training clips that are learnt with the times of their text
    stitch: float = 0.0  # share of training clips that are joined into windows of up to 30 s
    prompts: float = 0.5  # share of training clips that are given what was said before, where that is known


@dataclass(frozen=True)
class Augment:
    """What is done to training clips, each effect with the share of the clips that get it; nothing by default."""

    speed: float = 0.0
    speed_factor: tuple[float, float] = (0.9, 1.1)  # below 1 is slower
    room: float = 0.0
    room_folder: str | None = None  # of impulse responses; null: rooms are simulated
    noise: float = 0.0
    noise_folder: str | None = None  # of sound files; null: coloured noise
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    telephone: float = 0.0
    gain: float = 0.0
    gain_db: tuple[float, float] = (-12.0, 6.0)
    no_speech: float = 0.0  # share of training clips that are their noise alone, with nothing to write down
    spec_augment: bool = False  # the rest are WhisperConfig's words and defaults
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0

    @property
    def effects(self) -> dict[str, typing.Any]:
        """What `data.augmentation.Augmentation` takes; empty: none is wanted."""
        shares = (self.speed, self.room, self.noise, self.telephone, self.gain, self.no_speech)
        found = {name: getattr(self, name) for name in _names(Augment) if not name.startswith(("spec", "mask"))}
        return found if any(shares) else {}

    @property
    def masks(self) -> dict[str, float]:
        """What SpecAugment takes; empty: it is not wanted."""
        return {name: getattr(self, name) for name in _names(Augment) if name.startswith("mask") and self.spec_augment}


@dataclass(frozen=True)
class Lora:
    """The low-rank adapter; null means the default for the model's size."""

    rank: int = 32
    alpha: int | None = None  # null: twice the rank
    dropout: float = 0.05
    targets: str = "attention+mlp"
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()


@dataclass(frozen=True)
class Train:
    """The optimisation; null means: chosen for mode, model size and hardware, and said before the first step."""

    mode: str = "lora"
    quantize: str | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8  # clips in one optimizer step
    micro_batch_size: int | str = "auto"  # clips in memory at once; never changes the result
    micro_batch_s: float | None = None  # auto: as many as fill this many seconds of audio windows
    learning_rate: float | None = None
    warmup_steps: int | None = None
    optimizer: str = "adamw"  # adamw_8bit: its state in 8 bits; paged_…: and in main memory when a GPU's is full
    schedule: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    freeze: str | None = None
    keep_checkpoints: int = 2
    early_stopping: int | None = None  # evaluations without improvement
    logging_steps: int = 10
    report_to: tuple[str, ...] = ()
    workers: int | None = None
    seed: int = 42


@dataclass(frozen=True)
class Evaluate:
    """Scoring by generation during training, and the comparison before and after."""

    every_steps: int | None = None
    best_metric: str | None = None  # wer, cer or loss; null: wer, or cer where the script has no spaces
    max_clips: int | None = None  # of the eval set, for each evaluation during training
    compare_clips: int = 200  # scored before and after; 0 leaves the comparison out
    batch_size: int | str = "auto"  # clips at a time
    beams: int = 1


@dataclass(frozen=True)
class Recipe:
    """All settings of one run."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    features: Features = field(default_factory=Features)
    augment: Augment = field(default_factory=Augment)
    lora: Lora = field(default_factory=Lora)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)


CHOICES: dict[str, tuple] = {
    "model.task": ("transcribe", "translate"),
    "data.times": (None, "use", "ignore"),
    "data.text.normal_form": ("NFC", "NFD", "NFKC", "NFKD", None),
    "features.window": ("full", "condensed", "tight"),
    "train.mode": ("full", "lora"),
    "train.quantize": (None, "8bit", "4bit"),
    "train.optimizer": ("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "train.schedule": ("linear", "cosine", "constant"),
    "train.precision": ("auto", "fp32", "bf16", "fp16"),
    "train.freeze": (None, "encoder"),
    "evaluate.best_metric": (None, "wer", "cer", "loss"),
}
SHARES = {
    "data.max_left_out", "lora.dropout", "features.full_share", "features.full_last", "features.prompts",
    "features.timestamps", "features.stitch", "augment.speed", "augment.room", "augment.noise", "augment.telephone",
    "augment.gain",
    "augment.no_speech", "augment.mask_time_prob", "augment.mask_feature_prob",
}  # fmt: skip
POSITIVE = {
    "augment.mask_time_length", "augment.mask_feature_length",
    "data.shuffle_buffer", "features.slack_s", "lora.rank", "lora.alpha", "train.steps",
    "train.epochs", "train.batch_size", "train.micro_batch_size", "train.micro_batch_s", "train.learning_rate",
    "train.keep_checkpoints", "train.early_stopping", "train.logging_steps", "evaluate.every_steps",
    "evaluate.max_clips", "evaluate.batch_size", "evaluate.beams",
}  # fmt: skip
NOT_NEGATIVE = {
    "train.seed", "train.workers", "train.warmup_steps", "train.weight_decay", "train.max_grad_norm",
    "evaluate.compare_clips", "augment.mask_time_min_masks", "augment.mask_feature_min_masks",
}  # fmt: skip
# Far above what anybody needs, and far below what would exhaust memory or overflow.
AT_MOST = {
    "train.batch_size": 65_536,
    "train.micro_batch_size": 65_536,
    "train.steps": 1_000_000_000,
    "train.epochs": 1_000_000,
    "train.warmup_steps": 1_000_000_000,
    "train.logging_steps": 1_000_000_000,
    "train.early_stopping": 1_000_000,
    "train.keep_checkpoints": 1_000_000,
    "train.micro_batch_s": 1_000_000,
    "train.learning_rate": 100,
    "train.workers": 4_096,
    "data.shuffle_buffer": 10_000_000,
    "features.slack_s": 30,
    "lora.rank": 8_192,
    "lora.alpha": 1_000_000,
    "evaluate.every_steps": 1_000_000_000,
    "evaluate.max_clips": 1_000_000_000,
    "evaluate.compare_clips": 1_000_000_000,
    "evaluate.batch_size": 65_536,
    "evaluate.beams": 100,
    "augment.mask_time_length": 3_000,
    "augment.mask_feature_length": 128,
    "augment.mask_time_min_masks": 3_000,
    "augment.mask_feature_min_masks": 128,
}


def from_dict(page: object, *, place: str = "") -> Recipe:
    """A recipe from nested dicts and lists; what is not there has its default.

    Args:
        page: a dict of parts.
        place: what error messages begin with.

    Raises:
        UserError: an unknown or impossible setting.
    """
    if not isinstance(page, dict):
        raise UserError(f"{place}expected the parts {', '.join(_names(Recipe))}, found {type(page).__name__}.")
    return _build(Recipe, page, place=place)


def as_dict(recipe: Recipe) -> dict:
    """The recipe as plain nested dicts and lists."""
    return _plain(dataclasses.asdict(recipe))


def parse_settings(recipe: Recipe, settings: typing.Iterable[str], *, place: str = "") -> dict[str, object]:
    """``["train.steps=5"]`` as ``{"train.steps": 5}``; values are read as YAML.

    Raises:
        UserError: no = in it, or a key no recipe has.
    """
    changes: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{place}{setting}: expected key=value, for example train.steps=100.")
        try:
            changes[key.strip()] = parse_yaml(value)
        except YamlSyntaxError:
            changes[key.strip()] = value
        except ValueError as error:
            raise UserError(f"{place}{key}: {error}.") from None
    override(recipe, changes, place=place)  # an unknown key is named with the option it came from
    return changes


def override(recipe: Recipe, changes: typing.Mapping[str, object], *, place: str = "") -> Recipe:
    """A copy with some keys changed, as ``{"train.steps": 5}``.

    Raises:
        UserError: a key no recipe has, or a value of the wrong kind.
    """
    page = as_dict(recipe)
    for key, value in changes.items():
        part = page
        *parents, last = key.split(".")
        for name in parents:
            if not isinstance(part.get(name), dict):
                _unknown(key, list(flat(page)), place)
            part = part[name]
        if last not in part or isinstance(part[last], dict):
            _unknown(key, list(flat(page)), place)
        part[last] = value
    return _build(Recipe, page, place=place)


def _names(part: type) -> list[str]:
    return [item.name for item in dataclasses.fields(part)]


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def flat(page: dict, prefix: str = "") -> dict[str, object]:
    """Name every setting of nested dicts by its key, as ``{"train.steps": 5}``."""
    found: dict[str, object] = {}
    for key, value in page.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _unknown(key: str, known: list[str], place: str) -> typing.NoReturn:
    near = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.endswith("." + key.split(".")[-1])][:1]
    parent, _, name = key.rpartition(".")
    hint = near[0].removeprefix(parent + ".") if near and parent else (near[0] if near else None)
    raise UserError(f"{place}{key}: unknown key." + (f" Did you mean '{hint}'?" if hint and hint != name else ""))


def _build(part: type, page: dict, place: str, prefix: str = "") -> typing.Any:
    known = _names(part)
    kinds = typing.get_type_hints(part)
    values = {}
    for key, value in page.items():
        if key not in known:
            _unknown(f"{prefix}{key}", [prefix + name for name in known], place)
        kind = kinds[key]
        if dataclasses.is_dataclass(kind):
            if value is not None and not isinstance(value, dict):
                raise UserError(
                    f"{place}{prefix}{key}: expected the keys {', '.join(_names(kind))}, found {short_repr(value)}."
                )
            values[key] = _build(kind, value or {}, place, f"{prefix}{key}.")
        else:
            values[key] = _check(value, kind, f"{prefix}{key}", place)
    return part(**values)


def _source(item: object, key: str, place: str) -> str | Source:
    if isinstance(item, (str, Source)):
        return item
    if not isinstance(item, dict) or "source" not in item:
        raise UserError(f"{place}{key}: expected a source, or one as {{source: SRC, weight: 0.5, language: hindi}}.")
    found = _build(Source, item, place, f"{key}.")
    if found.weight <= 0:
        raise UserError(f"{place}{key}.weight: expected more than 0, found {found.weight}.")
    return found


def _span(value: object, key: str, place: str) -> tuple[float, float]:
    """Two numbers, the lower one first."""
    numbers = value if isinstance(value, (list, tuple)) else ()
    known = [one for one in numbers if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(known) != 2 or len(numbers) != 2 or not -1000 < known[0] <= known[1] < 1000:
        raise UserError(
            f"{place}{key}: expected two numbers, the lower one first, as [0.9, 1.1]; found {short_repr(value)}."
        )
    if key.endswith("_db") and not -100 <= known[0] <= known[1] <= 100:
        raise UserError(f"{place}{key}: expected decibels between -100 and 100, found {short_repr(value)}.")
    if key == "augment.speed_factor" and not 0.5 <= known[0] <= known[1] <= 2.0:
        raise UserError(f"{place}{key}: expected factors between 0.5 and 2, found {short_repr(value)}.")
    return (float(known[0]), float(known[1]))


def _check(value: object, kind: object, key: str, place: str) -> object:
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if kind == tuple[float, float]:
        return _span(value, key, place)
    if typing.get_origin(allowed[0]) is tuple:
        items = [value] if isinstance(value, (str, dict)) else value or []
        if key == "data.train" and isinstance(items, (list, tuple)):
            items = [_source(item, f"{key}[{number}]", place) for number, item in enumerate(items)]
        elif not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise UserError(f"{place}{key}: expected a list of names, found {short_repr(value)}.")
        return tuple(items)
    if float in allowed and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML 1.1 reads 1e-3 as a string
        except (ValueError, OverflowError):
            value = str(value)
    if int in allowed and isinstance(value, float) and value.is_integer() and float not in allowed:
        value = int(value)
    if (isinstance(value, bool) and bool not in allowed) or not isinstance(value, tuple(allowed)):
        wanted = " or ".join("null" if item is type(None) else item.__name__ for item in allowed)
        raise UserError(f"{place}{key}: expected {wanted}, found {short_repr(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place}{key}: expected a finite number, found {short_repr(value)}.")
    if key in CHOICES and value not in CHOICES[key]:
        choices = ", ".join("null" if choice is None else choice for choice in CHOICES[key])
        raise UserError(f"{place}{key}: {short_repr(value)} is not among {choices}.")
    if key in POSITIVE and isinstance(value, (int, float)) and value <= 0:
        raise UserError(f"{place}{key}: expected more than 0, found {short_repr(value)}.")
    if key in AT_MOST and isinstance(value, (int, float)) and value > AT_MOST[key]:
        raise UserError(f"{place}{key}: expected at most {AT_MOST[key]:,}, found {short_repr(value)}.")
    if key in NOT_NEGATIVE and isinstance(value, (int, float)) and value < 0:
        raise UserError(f"{place}{key}: expected 0 or more, found {short_repr(value)}.")
    if key == "train.seed" and value >= 2**32:
        raise UserError(f"{place}{key}: expected less than 2**32, found {short_repr(value)}.")
    if key in ("train.micro_batch_size", "evaluate.batch_size") and isinstance(value, str) and value != "auto":
        raise UserError(f"{place}{key}: expected a number of clips or auto, found {short_repr(value)}.")
    if key == "lora.dropout" and value >= 1:  # nothing of the adapter would be left in training
        raise UserError(f"{place}{key}: expected 0 or more and less than 1, found {short_repr(value)}.")
    if key in SHARES and not 0 <= value <= 1:
        raise UserError(f"{place}{key}: expected a share between 0 and 1, found {short_repr(value)}.")
    return value
