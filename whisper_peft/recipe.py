"""Recipe: one page of settings, in the order of the data path. Each setting has its rule beside it."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field

from whisper_peft.settings import field_names, setting


@dataclass(frozen=True)
class Model:
    """Which Whisper is trained, and for which language and task."""

    name: str = setting(
        "openai/whisper-small",
        "Hub id, model folder, or a run or adapter folder to train further.",
        option="--model",
    )
    language: str | None = setting(
        None,
        "Name or code of the language, for example hindi or hi.",
        null="every row names its own language",
        option="--language",
    )
    task: str = setting(
        "transcribe",
        "What the model writes: the words as they are spoken, or their English translation.",
        choices=("transcribe", "translate"),
        option="--task",
    )
    language_token: str | None = setting(
        None,
        "Borrow the token of this language for a language that Whisper does not know.",
        null="no token is borrowed",
        option="--language-token",
    )


@dataclass(frozen=True)
class Text:
    """How transcripts are cleaned before training and scoring."""

    normal_form: str | None = setting(
        "NFC",
        "Unicode normal form of the transcripts.",
        null="the text stays as it is",
        choices=("NFC", "NFD", "NFKC", "NFKD", None),
    )
    lowercase: bool = setting(False, "Write all letters in lower case.")
    remove_punctuation: bool = setting(False, "Replace punctuation by spaces. Vowel signs stay.")


@dataclass(frozen=True)
class Source:
    """One of several training sources."""

    source: str
    weight: float = setting(
        1.0,
        "How often each clip comes in an epoch. For a stream, the probability of drawing from this source, relative to "
        "the others.",
        above=0,
    )
    language: str | None = setting(None, "Language of the clips that name none.")


@dataclass(frozen=True)
class Data:
    """Where speech comes from."""

    train: tuple[str | Source, ...] = setting(
        (),
        "Sources to learn from. Each is a name, or {source: SRC, weight: 0.5, language: hindi}.",
        option="--train",
        see="data.md",
    )
    eval: str | None = setting(
        None,
        "Source that selects the best checkpoint.",
        null="a tenth of the training clips is held out",
        option="--eval",
    )
    test: str | None = setting(
        None,
        "Source that is scored once before and once after the training. It chooses nothing.",
        null="the eval clips are scored instead",
        option="--test",
    )
    audio_column: str | None = setting(
        None,
        "Column with the sound file.",
        null="the column with a usual name",
        option="--audio-column",
    )
    text_column: str | None = setting(
        None,
        "Column with the transcript.",
        null="the column with a usual name",
        option="--text-column",
    )
    prompt_column: str | None = setting(
        None,
        "Column with the text that was said before each clip.",
        null="no column is read as a prompt",
        option="--prompt-column",
    )
    times: str | None = setting(
        None,
        "Whether to use the columns with start and end, or to take each file whole.",
        null="use them, but stop and ask where they do not fit the files",
        choices=(None, "use", "ignore"),
        option="--times",
    )
    text: Text = field(default_factory=Text)
    max_left_out: float = setting(
        0.1,
        "Largest share of the training clips that may be unusable. Above it, a run does not begin, or stops.",
        is_share=True,
        see="data.md#clips-that-cannot-be-used",
    )
    allow_shift: bool = setting(False, "Train although the texts seem to stand beside the wrong sound.", see="check.md")
    streaming: bool = setting(
        False, "Read the Hub data sets and Parquet files of train while training, and store nothing."
    )
    shuffle_buffer: int = setting(
        1024, "Clips of a stream that are in memory and shuffled at a time.", above=0, at_most=10_000_000
    )

    @property
    def sources(self) -> tuple[Source, ...]:
        """The training sources, each with its weight."""
        return tuple(source if isinstance(source, Source) else Source(source) for source in self.train)

    @property
    def columns(self) -> dict[str, str | None]:
        """The arguments of `load_source` that say which column of a table means what."""
        return {name: getattr(self, name) for name in ("audio_column", "text_column", "prompt_column", "times")}


@dataclass(frozen=True)
class Features:
    """How a clip becomes input of the model."""

    window: str = setting(
        "condensed",
        "How much of the 30 s is computed: all of it (full), or the longest clip of the step (condensed, tight).",
        choices=("full", "condensed", "tight"),
        option="--window",
        see="windows.md",
    )
    slack_s: float | None = setting(
        None,
        "Seconds of silence after the longest clip of a step.",
        null="0.2 condensed, 0.5 tight",
        above=0,
        at_most=30,
    )
    full_share: float = setting(
        0.0, "Share of the steps, at random, that get the full window all the same.", is_share=True
    )
    full_last: float = setting(
        0.0, "Share of the steps, at the end of the run, that get the full window.", is_share=True
    )
    timestamps: float = setting(
        0.0,
        "Share of the training clips that are learnt with times: those of their segments, or their start and end.",
        is_share=True,
        see="data.md#timestamps",
    )
    stitch: float = setting(
        0.0,
        "Share of the training clips that are joined into windows of up to 30 s.",
        is_share=True,
        see="recordings.md",
    )
    prompts: float = setting(
        0.5,
        "Share of the training clips that are given the text before them as a prompt, where it is known. A prompt is "
        "read, not learnt.",
        is_share=True,
    )


@dataclass(frozen=True)
class Augment:
    """The effects on training clips, each with the share of the clips that get it. By default there are none."""

    speed: float = setting(0.0, "Share of the clips that are played slower or faster.", is_share=True)
    speed_factor: tuple[float, float] = setting(
        (0.9, 1.1), "Lowest and highest factor. Below 1 is slower.", at_least=0.5, at_most=2.0, unit="factors"
    )
    room: float = setting(0.0, "Share of the clips that are heard in a room.", is_share=True)
    room_folder: str | None = setting(
        None, "Folder with impulse responses of rooms.", null="rooms are simulated (extra augment)"
    )
    noise: float = setting(0.0, "Share of the clips that get noise.", is_share=True)
    noise_folder: str | None = setting(
        None, "Folder with sound files of noise.", null="coloured noise is made (extra augment)"
    )
    noise_snr_db: tuple[float, float] = setting(
        (5.0, 30.0),
        "By how many decibels the noise is weaker than the clip: lowest and highest.",
        at_least=-100,
        at_most=100,
        unit="decibels",
    )
    telephone: float = setting(
        0.0, "Share of the clips that are cut to the band of a telephone (extra augment).", is_share=True
    )
    gain: float = setting(0.0, "Share of the clips that get another level.", is_share=True)
    gain_db: tuple[float, float] = setting(
        (-12.0, 6.0),
        "Lowest and highest change of the level, in decibels.",
        at_least=-100,
        at_most=100,
        unit="decibels",
    )
    no_speech: float = setting(
        0.0, "Share of the clips that are reduced to their noise, with an empty transcript.", is_share=True
    )
    spec_augment: bool = setting(
        False, "Mask parts of the log-mels in training (SpecAugment). The next six settings are those of transformers."
    )
    mask_time_prob: float = setting(0.05, "Largest share of the frames that is masked.", is_share=True)
    mask_time_length: int = setting(10, "Frames of a mask; a frame is 0.01 s.", above=0, at_most=3_000)
    mask_time_min_masks: int = setting(2, "Smallest number of masks along time.", at_least=0, at_most=3_000)
    mask_feature_prob: float = setting(0.0, "Largest share of the mel bins that is masked.", is_share=True)
    mask_feature_length: int = setting(10, "Mel bins of a mask.", above=0, at_most=128)
    mask_feature_min_masks: int = setting(0, "Smallest number of masks along frequency.", at_least=0, at_most=128)

    @property
    def effects(self) -> dict[str, typing.Any]:
        """The arguments of `data.augmentation.Augmentation`; empty if no effect is wanted."""
        shares = (self.speed, self.room, self.noise, self.telephone, self.gain, self.no_speech)
        if not any(shares):
            return {}
        return {name: getattr(self, name) for name in field_names(Augment) if not name.startswith(("spec", "mask"))}

    @property
    def masks(self) -> dict[str, float]:
        """The settings of SpecAugment; empty if it is not wanted."""
        if not self.spec_augment:
            return {}
        return {name: getattr(self, name) for name in field_names(Augment) if name.startswith("mask")}


@dataclass(frozen=True)
class Lora:
    """The low-rank adapter. It is used with train.mode: lora."""

    rank: int = setting(32, "Rank of the two factors.", above=0, at_most=8_192)
    alpha: int | None = setting(
        None, "The update is scaled by alpha / rank.", null="twice the rank", above=0, at_most=1_000_000
    )
    # With 1, nothing of the adapter would be left in training.
    dropout: float = setting(
        0.05,
        "Dropout on the adapter's input. With 0, a step on a CPU is a quarter cheaper.",
        at_least=0,
        below=1,
        see="windows.md",
    )
    targets: str = setting(
        "attention+mlp", "Layers that get an adapter: attention, mlp, encoder and decoder, joined by +."
    )
    rslora: bool = setting(False, "Scale the update by alpha / sqrt(rank).")
    dora: bool = setting(False, "Train weight-decomposed adapters (DoRA).")
    modules_to_save: tuple[str, ...] = setting((), "Further modules, trained in full and stored with the adapter.")


@dataclass(frozen=True)
class Train:
    """The optimisation. null means: chosen for mode, model size, data and hardware, and said before the first step."""

    mode: str = setting(
        "lora",
        "What is trained: all weights (full), or a LoRA adapter (lora).",
        choices=("full", "lora"),
        option="--mode",
    )
    quantize: str | None = setting(
        None,
        "Load the frozen base of an adapter in 8 or 4 bits.",
        null="the base has full precision",
        choices=(None, "8bit", "4bit"),
        option="--quantize",
    )
    steps: int | None = setting(
        None,
        "Optimizer steps. Set this or epochs.",
        null="as epochs says",
        above=0,
        at_most=1_000_000_000,
        option="--steps",
    )
    epochs: float | None = setting(
        None,
        "Passes over the training clips.",
        null="3, if steps is null, too",
        above=0,
        at_most=1_000_000,
        option="--epochs",
    )
    batch_size: int = setting(8, "Clips in one optimizer step.", above=0, at_most=65_536, option="--batch-size")
    micro_batch_size: int | str = setting(
        "auto",
        "Clips in memory at once. It changes memory and speed, not the result, except for which dropout masks are "
        "drawn. With auto, as many as fit.",
        above=0,
        at_most=65_536,
        word=("auto", "a number of clips"),
        see="memory.md",
    )
    micro_batch_s: float | None = setting(
        None,
        "Seconds of audio windows that a micro-batch of auto may hold.",
        null="what memory has room for, at most the whole step on a GPU and 240 s on a CPU",
        above=0,
        at_most=1_000_000,
    )
    learning_rate: float | None = setting(
        None,
        "Highest learning rate.",
        null="chosen by mode and model size",
        above=0,
        at_most=100,
        option="--learning-rate",
    )
    warmup_steps: int | None = setting(
        None,
        "Steps in which the learning rate rises.",
        null="a tenth of the steps, at most 50 (lora) or 500 (full)",
        at_least=0,
        at_most=1_000_000_000,
    )
    optimizer: str = setting(
        "adamw",
        "AdamW. adamw_8bit keeps its state in a quarter of the memory; paged_adamw_8bit (GPU) also moves it to main "
        "memory when the GPU is full.",
        choices=("adamw", "adamw_8bit", "paged_adamw_8bit"),
    )
    schedule: str = setting(
        "linear", "Course of the learning rate after the warm-up.", choices=("linear", "cosine", "constant")
    )
    weight_decay: float = setting(0.0, "Weight decay of AdamW.", at_least=0)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.", at_least=0)
    precision: str = setting(
        "auto",
        "Precision of the arithmetic. With auto, bf16 where the GPU or the CPU is fast at it; else fp16 on a GPU and "
        "fp32 on a CPU.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    gradient_checkpointing: bool = setting(False, "Compute activations twice: less memory, more time.")
    freeze: str | None = setting(
        None, "Train only the decoder (encoder).", null="nothing is frozen", choices=(None, "encoder")
    )
    keep_checkpoints: int = setting(
        2, "Newest checkpoints that are kept. The best one is always kept.", above=0, at_most=1_000_000
    )
    early_stopping: int | None = setting(
        None, "Stop after this many evaluations without improvement.", null="never", above=0, at_most=1_000_000
    )
    logging_steps: int = setting(10, "Steps from one log entry to the next.", above=0, at_most=1_000_000_000)
    report_to: tuple[str, ...] = setting((), "Loggers: tensorboard, and whatever transformers' report_to knows.")
    workers: int | None = setting(
        None,
        "Processes that read audio, at most as many as there are cores.",
        null="2, or 1 on one core",
        at_least=0,
        at_most=4_096,
    )
    seed: int = setting(
        42,
        "Seed of the order, the adapter, dropout and augmentation.",
        at_least=0,
        below=2**32,
        option="--seed",
    )


@dataclass(frozen=True)
class Evaluate:
    """Scoring by generation during training, and the comparison before and after."""

    every_steps: int | None = setting(
        None,
        "Steps from one evaluation and checkpoint to the next.",
        null="five times in a run",
        above=0,
        at_most=1_000_000_000,
    )
    best_metric: str | None = setting(
        None,
        "Metric that selects the best checkpoint. For a script without spaces, cer is the normalised one, in which "
        "spaces do not count.",
        null="wer, or cer where the script has no spaces",
        choices=(None, "wer", "cer", "loss"),
    )
    max_clips: int | None = setting(
        None, "Eval clips in each evaluation during training.", null="all of them", above=0, at_most=1_000_000_000
    )
    compare_clips: int = setting(
        200,
        "Clips that are scored before and after the training; 0 leaves the comparison out.",
        at_least=0,
        at_most=1_000_000_000,
    )
    batch_size: int | str = setting(
        "auto",
        "Clips at a time. With auto, as many as fill 240 s of windows, at most 64; on a CPU 120 s and 16.",
        above=0,
        at_most=65_536,
        word=("auto", "a number of clips"),
    )
    beams: int = setting(1, "Beams of the beam search; 1 is greedy.", above=0, at_most=100)


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
