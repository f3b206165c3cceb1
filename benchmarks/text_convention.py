"""Whether the text of a segment should begin with a space: what Whisper writes itself, and how each way trains.

    python benchmarks/text_convention.py WORK            every missing result
    python benchmarks/text_convention.py WORK --table    only the tables of the finished results

The three parts use the real Whisper base. Each result is written to text_convention.json as soon as it is there.

- **emits**: the base hears stretches of English speech and is told that they are in another language. The figure is by
  how many nats the untouched base prefers the beginning of a sentence in that language with a space before it.
- **losses**: the teacher-forced loss of references with and without the space, on the untouched base. The references
  are English (the shared story, cut at the times of the base), Hindi (synthetic) and Malayalam (real).
- **runs**: 100 LoRA steps of 8 clips with and without the space, half of the clips with times. The figures are the
  character error rate of validation clips, and the joints between segments that the pipeline of transformers alone
  writes for recordings of about 25 s.

Needs the shared folder (WHISPER_PEFT_SHARED, default ../shared).
"""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "text_convention.json"
SHARED = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
BASE = str(SHARED / "models" / "whisper-base")
STORY = SHARED / "data" / "longform"
CLIPS = {"hi": "hindi_tts", "ml": "malayalam"}
N_CLIPS = 60
N_SCORED = 40
N_RECORDINGS = 8
STEPS = 100
# The limit of a transcript of one clip.
MOST_TOKENS = 200
STRETCH_S = 12
# Only the beginning of a sentence is scored: the rest hardly depends on the space before it.
N_CHARACTERS = 12

# The first words of the Universal Declaration of Human Rights, or a plain sentence.
SENTENCES = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ja katakana": "タクシーで駅に行きました。",
    "ja digits": "2024年に東京で会いました。",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "lo": "ມະນຸດເກີດມາມີສິດເສລີພາບ ແລະສະເໝີໜ້າກັນໃນທາງກຽດຕິສັກ",
    "my": "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့်",
    "km": "មនុស្សទាំងអស់ កើតមកមានសេរីភាព និងសមភាព",
    "bo": "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་",
    "zh English": "All human beings are born free and equal in dignity and rights.",
    "ja English": "All human beings are born free and equal in dignity and rights.",
    "th English": "All human beings are born free and equal in dignity and rights.",
    "zh digits": "2024年我去了北京。",
    "en Chinese": "人人生而自由，在尊严和权利上一律平等。",
    "ko Chinese": "人人生而自由，在尊严和权利上一律平等。",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে",
    "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ",
    "gu": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును",
    "kn": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ",
    "ml": "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും അന്തസ്സോടും",
    "si": "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ka": "ყველა ადამიანი იბადება თავისუფალი",
    "hy": "Բոլոր մարդիկ ծնվում են ազատ",
    "am": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው",
}


class Results:
    """The results in text_convention.json, each of which is made only once."""

    def __init__(self) -> None:
        self.content: dict[str, dict] = {"emits": {}, "losses": {}, "runs": {}}
        if RESULTS.exists():
            self.content = json.loads(RESULTS.read_text(encoding="utf-8"))

    def make(self, part: str, name: str, work: Callable[[], dict]) -> None:
        """Make a result that is missing, and write it down."""
        if name not in self.content[part]:
            self.content[part][name] = work()
            text = json.dumps(self.content, ensure_ascii=False, indent=1)
            RESULTS.write_text(text + "\n", encoding="utf-8")
            print(f"{part} {name}: {self.content[part][name]}", flush=True)


class Listener:
    """The untouched base in float32."""

    def __init__(self) -> None:
        from whisper_peft.model.build import load_model

        model, self.preparation, _ = load_model(BASE)
        self.model = model.float().eval()

    def encode(self, wave: np.ndarray):
        """Return the encoder states of one clip, (1, 1500, 512)."""
        import torch

        features = self.preparation.encode_stretch(wave, self.preparation.window_frames)
        with torch.no_grad():
            return self.model.get_encoder()(torch.from_numpy(features)[None]).last_hidden_state

    def loss(self, states, before: list[int], words: list[int]) -> float:
        """Return the summed loss of `words` after the tokens `before`, in nats."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        from whisper_peft.model.head import states_at, token_losses

        inputs = torch.tensor([[*before, *words[:-1]]])
        wanted = torch.zeros(inputs.shape, dtype=torch.bool)
        wanted[0, len(before) - 1 :] = True
        with torch.no_grad(), states_at(self.model, wanted) as kept:
            self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=inputs, use_cache=False
            )
        with torch.no_grad():
            return float(token_losses(self.model, kept.pop(), torch.tensor(words)).sum())


def story() -> tuple[np.ndarray, str]:
    """Return the waveform and the text of the English story."""
    import whisper_peft

    with (STORY / "metadata.csv").open(encoding="utf-8", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["file_name"].startswith("en_")]
    return whisper_peft.load_audio(str(STORY / row["file_name"])), row["transcription"]


def story_clips(listener: Listener) -> list[tuple[np.ndarray, str]]:
    """Cut the story at the times that the base finds, each piece with its words of the true text."""
    from whisper_peft.evaluation.longform import transcribe_wave

    wave, text = story()
    found = transcribe_wave(listener.model, listener.preparation, wave, language="en")["segments"]
    heard = [(word, number) for number, one in enumerate(found) for word in one["text"].split()]
    written = text.split()

    def plain(word: str) -> str:
        return "".join(filter(str.isalnum, word.lower()))

    matcher = difflib.SequenceMatcher(
        None, [plain(word) for word, _ in heard], [plain(word) for word in written], autojunk=False
    )
    places: dict[int, list[int]] = {}
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            places.setdefault(heard[block.a + offset][1], []).append(block.b + offset)
    clips = []
    for number, segment in enumerate(found):
        if number in places:
            first, last = min(places[number]), max(places[number])
            piece = wave[int(16000 * segment["start"]) : int(16000 * segment["end"])]
            clips.append((piece, " ".join(written[first : last + 1])))
    return clips


def shared_clips(language: str, split: str, count: int) -> list[tuple[np.ndarray, str]]:
    """Return clips of a shared data set, evenly spaced over a split."""
    import whisper_peft

    rows = whisper_peft.load_source(str(SHARED / "data" / CLIPS[language] / split))
    chosen = [rows[round(place)] for place in np.linspace(0, len(rows) - 1, min(count, len(rows)))]
    return [(whisper_peft.load_audio(row.audio), " ".join(row.text.split())) for row in chosen]


def emits(listener: Listener, stretches: list, name: str) -> dict:
    """Return by how many nats the base prefers a sentence with a space before it."""
    preparation = listener.preparation
    language, sentence = name.split()[0], SENTENCES[name][:N_CHARACTERS].strip()
    plain = preparation.words.encode(sentence)
    spaced = preparation.words.encode(f" {sentence}")
    time = preparation.first_timestamp
    starts = {"first, no times": preparation.prefix(language)}
    starts["first, times"] = [*preparation.prefix(language, timestamps=True), time]
    for words, label in ((plain, "without"), (spaced, "with")):
        starts[f"later, the one before {label}"] = [*starts["first, times"], *words, time + 200, time + 200]
    preferred = {
        label: float(
            np.mean(
                [listener.loss(states, before, plain) - listener.loss(states, before, spaced) for states in stretches]
            )
        )
        for label, before in starts.items()
    }
    lone = preparation.words.without_lone_space(spaced) != spaced
    return {"lone_space_token": lone, "tokens": [len(plain), len(spaced)], "preferred_by_nats": preferred}


def losses(listener: Listener, language: str) -> dict:
    """Return the losses of references with and without the space, each with and without times."""
    from whisper_peft import paired_loss_interval

    preparation = listener.preparation
    clips = story_clips(listener) if language == "en" else shared_clips(language, "validation", N_CLIPS)
    sums: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for wave, text in clips:
        states = listener.encode(wave)
        end = preparation.first_timestamp + min(1500, round(len(wave) / 320))
        starts = {"no times": preparation.prefix(language)}
        starts["times"] = [*preparation.prefix(language, timestamps=True), preparation.first_timestamp]
        for kind, before in starts.items():
            after = [end, preparation.eot] if kind == "times" else [preparation.eot]
            for label, spelled in (("without", text), ("with", f" {text}")):
                words = [*preparation.words.encode(spelled), *after]
                sums.setdefault(f"{kind}, {label}", []).append(listener.loss(states, before, words))
                counts.setdefault(f"{kind}, {label}", []).append(len(words))
    found: dict[str, object] = {"clips": len(clips)}
    for kind in ("no times", "times"):
        without, with_ = (sums[f"{kind}, {label}"] for label in ("without", "with"))
        found[kind] = {
            "nats_a_clip": [float(np.mean(without)), float(np.mean(with_))],
            "nats_a_token": [
                sum(sums[f"{kind}, {label}"]) / sum(counts[f"{kind}, {label}"]) for label in ("without", "with")
            ],
            # Each clip counts as one "token", so that the interval is that of the loss per clip.
            "interval_a_clip": list(paired_loss_interval(without, with_, [1] * len(clips))),
        }
    return found


def without_space() -> Callable[[], None]:
    """Make labels begin without a space, as they once did, and return a function that undoes the change."""
    from whisper_peft.data.words import Words

    kept = Words.of_segment
    Words.of_segment = lambda self, text, language: self.encode(text.strip())

    def undo() -> None:
        Words.of_segment = kept

    return undo


def joined(language: str) -> list[np.ndarray]:
    """Make recordings of about 25 s from successive validation clips, with 0.3 s of silence between them."""
    recordings: list[np.ndarray] = []
    pieces: list[np.ndarray] = []
    for wave, _ in shared_clips(language, "validation", 200):
        if sum(map(len, pieces)) + len(wave) > 25 * 16000:
            recordings.append(np.concatenate(pieces))
            pieces = []
        pieces += [wave, np.zeros(4800, dtype=np.float32)]
    return recordings[:N_RECORDINGS]


def joints(model: str, language: str) -> dict:
    """Count the joints where the pipeline of transformers writes no space, with an example of its text."""
    import torch
    from transformers import pipeline

    listen = pipeline("automatic-speech-recognition", model=model, dtype=torch.float32)
    count = glued = 0
    texts = []
    for wave in joined(language):
        options = {"language": language, "task": "transcribe", "max_new_tokens": 440}
        found = listen({"raw": wave, "sampling_rate": 16000}, return_timestamps=True, generate_kwargs=options)
        chunks = [one["text"] for one in found["chunks"] if one["text"].strip()]
        for left, right in itertools.pairwise(chunks):
            count += 1
            glued += not (left[-1].isspace() or right[0].isspace())
        texts.append(found["text"])
    return {"joints": count, "glued": glued, "example": texts[0][:300]}


def trained(language: str, side: str, work: Path) -> dict:
    """Train 100 LoRA steps on one side, and return its error rates and the joints of the merged model."""
    import whisper_peft

    data = SHARED / "data" / CLIPS[language]
    run, merged = work / f"{language}-{side}", work / f"{language}-{side}-merged"
    scored = work / f"{language}-scored.jsonl"
    rows = whisper_peft.load_source(str(data / "validation"))
    chosen = [rows[round(place)] for place in np.linspace(0, len(rows) - 1, N_SCORED)]
    lines = [json.dumps({"audio": row.audio, "text": row.text}, ensure_ascii=False) for row in chosen]
    scored.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # With one checkpoint there is nothing to select, so four clips are enough.
    selecting = work / f"{language}-selecting.jsonl"
    selecting.write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    undo = without_space() if side == "without" else lambda: None
    try:
        if not run.exists():
            changes = {
                "model.name": BASE,
                "model.language": language,
                "data.train": [str(data / "train")],
                "data.eval": str(selecting),
                "features.timestamps": 0.5,
                "train.steps": STEPS,
                "train.batch_size": 8,
                "evaluate.every_steps": STEPS,
                "train.seed": 1,
            }
            whisper_peft.train(changes=changes, output=run, progress=False)
        report = whisper_peft.evaluate(run, scored, max_new_tokens=MOST_TOKENS, batch_size=4)
    finally:
        undo()
    if not merged.exists():
        whisper_peft.merge(run, merged, dtype="float32")
    rates = {key: getattr(report, key) for key in ("cer", "cer_interval", "cer_normalized", "wer", "token_loss")}
    return {**rates, "clips": N_SCORED, **joints(str(merged), language)}


def table(content: dict) -> None:
    """Print the finished results as Markdown tables."""
    print(
        "| language | a lone space token | first, no times | first, times | later, after one without | after one with |"
    )
    print("|---|---|---|---|---|---|")
    for name, found in content["emits"].items():
        values = " | ".join(f"{value:+.1f}" for value in found["preferred_by_nats"].values())
        print(f"| {name} | {'yes' if found['lone_space_token'] else ''} | {values} |")
    print("\n| clips | times | nats a clip without | with | difference, 95 % interval | nats a token without | with |")
    print("|---|---|---|---|---|---|---|")
    for language, found in content["losses"].items():
        for kind in ("no times", "times"):
            one = found[kind]
            without, with_ = one["nats_a_clip"]
            low, high = one["interval_a_clip"]
            tokens = " | ".join(f"{value:.3f}" for value in one["nats_a_token"])
            difference = f"{low:+.2f} to {high:+.2f}"
            print(f"| {found['clips']} {language} | {kind} | {without:.1f} | {with_:.1f} | {difference} | {tokens} |")
    print("\n| run | CER | 95 % interval | glued joints of all |")
    print("|---|---|---|---|")
    for name, found in content["runs"].items():
        rate = interval = ""
        if "cer" in found:
            rate = f"{found['cer']:.1%}"
            interval = " to ".join(f"{value:.1%}" for value in found["cer_interval"])
        print(f"| {name} | {rate} | {interval} | {found['glued']} of {found['joints']} |")


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--table", "only_table", is_flag=True, help="Only print the tables of what there is.")
@click.option("--part", type=click.Choice(["emits", "losses", "runs"]), multiple=True, help="Only this part.")
def main(work: Path, only_table: bool, part: tuple[str, ...]) -> None:
    results = Results()
    parts = part or ("emits", "losses", "runs")
    if not only_table:
        work.mkdir(parents=True, exist_ok=True)
        if {"emits", "losses"} & set(parts):
            listener = Listener()
        if "emits" in parts:
            wave, _ = story()
            n = 16000 * STRETCH_S
            stretches = [listener.encode(wave[start * n : (start + 1) * n]) for start in (1, 5)]
            for name in SENTENCES:
                results.make("emits", name, lambda name=name: emits(listener, stretches, name))
        if "losses" in parts:
            for language in ("en", "hi", "ml"):
                results.make("losses", language, lambda language=language: losses(listener, language))
        if "runs" in parts:
            for language in ("ml", "hi"):
                for side in ("without", "with"):
                    name = f"{language} {side}"
                    results.make("runs", name, lambda side=side, language=language: trained(language, side, work))
                results.make("runs", f"{language} untouched", lambda language=language: joints(BASE, language))
    table(results.content)


if __name__ == "__main__":
    main()
