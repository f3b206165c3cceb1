"""Which shares of stitched windows and of times training should use: errors on single clips and whole recordings.

    python benchmarks/stitching.py WORK            every missing run, in order; resumes a stopped run
    python benchmarks/stitching.py WORK --only malayalam-stitch0.2
    python benchmarks/stitching.py WORK --table    only the table of the finished runs

Each run trains a LoRA adapter on Whisper base for 200 steps of 8 clips. The model after the last step is merged,
converted to CTranslate2 (float32), and scored on validation clips:

- single clips, decoded greedily without times (`evaluate`), and every second one by faster-whisper with its own
  defaults (times, five beams, temperature fallback, thresholds);
- recordings made of six validation clips of one speaker, with 0.2 to 1.0 s of their own noise between them, in
  `transcribe` without times and with times, in faster-whisper with its defaults, and in faster-whisper without times
  and with one beam;
- for Malayalam, the 11-minute story of ../shared: its error rate as a whole recording in `transcribe` and in
  faster-whisper beside that of its clips, the speech without output, and the errors of segment starts.

Needs faster-whisper 1.2.1 beside the package. When a run ends, its results are written to a JSON file in
benchmarks/stitching/.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

import whisper_peft
from whisper_peft.data.audio import load_audio
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.stitching import join
from whisper_peft.data.subtitles import read_segments
from whisper_peft.evaluation.generation import full_limit
from whisper_peft.evaluation.longform import transcribe_wave, transcribe_waves
from whisper_peft.evaluation.pieces import Decoding
from whisper_peft.evaluation.recording_scores import score_recording

HERE = Path(__file__).parent
RESULTS = HERE / "stitching"
STEPS = 200
RATE_HZ = 16_000
# faster-whisper with five beams takes several seconds a clip, so it hears every second single clip only.
CLIPS_APART = 2
CLIPS_PER_RECORDING = 6
# An output with less than this share of the characters of its reference counts as stopped early.
STOPPED_EARLY = 0.6
DATA = {
    "malayalam": {"language": "ml", "train": "malayalam:train", "validation": "malayalam:validation"},
    "hindi_tts": {"language": "hi", "train": "hindi_tts:train", "validation": "hindi_tts:validation"},
}
DECODINGS = {
    "defaults": {},
    "no times, one beam": {"without_timestamps": True, "beam_size": 1},
}


@dataclass(frozen=True)
class Setting:
    """One run of the grid."""

    data: str
    stitch: float
    timestamps: float
    seed: int
    window: str = "condensed"

    @property
    def name(self) -> str:
        """The name of its JSON file."""
        window = "" if self.window == "condensed" else f"-{self.window}"
        return f"{self.data}-stitch{self.stitch:g}-times{self.timestamps:g}-seed{self.seed}{window}"


def planned() -> list[Setting]:
    """List the runs, those that tell most first."""
    grid = [(0.0, 0.0), (0.2, 0.5), (0.2, 0.2), (0.0, 0.5), (0.2, 0.0), (0.0, 0.2)]
    settings = [Setting("malayalam", stitch, timestamps, 1) for stitch, timestamps in grid]
    settings += [Setting("malayalam", stitch, timestamps, 2) for stitch, timestamps in grid]
    settings += [Setting("hindi_tts", stitch, timestamps, 1) for stitch, timestamps in grid]
    return [*settings, Setting("malayalam", 0.0, 0.0, 1, window="full")]


def train_adapter(work: Path, shared: Path, setting: Setting) -> tuple[Path, dict]:
    """Train or resume the run of a setting, and return the merged model and the facts of the run."""
    run = work / setting.name
    facts_file = run / "run.json"
    if not facts_file.exists():
        data = DATA[setting.data]
        changes = {
            "model.name": str(shared / "models" / "whisper-base"),
            "model.language": data["language"],
            "data.train": [str(shared / "data" / data["train"])],
            "data.eval": str(shared / "data" / data["validation"]),
            "features.stitch": setting.stitch,
            "features.timestamps": setting.timestamps,
            "features.window": setting.window,
            "train.steps": STEPS,
            "train.batch_size": 8,
            "train.seed": setting.seed,
            "evaluate.every_steps": STEPS,
            "evaluate.max_clips": 8,
            "evaluate.compare_clips": 0,
            "evaluate.best_metric": "loss",
        }
        whisper_peft.train(changes=changes, output=run, say=print)
    elif not json.loads(facts_file.read_text()).get("finished"):
        whisper_peft.train(resume=run, say=print)
    merged = work / f"{setting.name}-merged"
    if not merged.exists():
        whisper_peft.merge(run, merged, dtype="float32", say=print)
    return merged, json.loads(facts_file.read_text())


def convert(merged: Path) -> Path:
    """Convert a merged model to CTranslate2 in float32, as faster-whisper loads it."""
    import ctranslate2

    folder = merged.with_name(f"{merged.name}-ct2")
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        converter = ctranslate2.converters.TransformersConverter(
            str(merged), copy_files=["tokenizer.json", "preprocessor_config.json"]
        )
        converter.convert(str(part), quantization="float32")
        part.rename(folder)
    return folder


def joined_recordings(rows: list[Row]) -> list[tuple[np.ndarray, str]]:
    """Make recordings of six clips of one speaker, and return (wave, text) of each."""
    by_speaker = defaultdict(list)
    for row in rows:
        by_speaker[row.speaker].append(row)
    rng = np.random.default_rng(0)
    recordings = []
    for _, clips in sorted(by_speaker.items(), key=lambda pair: str(pair[0])):
        random.Random(0).shuffle(clips)
        for first in range(0, len(clips) - CLIPS_PER_RECORDING + 1, CLIPS_PER_RECORDING):
            chosen = clips[first : first + CLIPS_PER_RECORDING]
            waves = [load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s) for row in chosen]
            wave, _ = join(waves, 120 * RATE_HZ, RATE_HZ, rng)
            recordings.append((wave, " ".join(row.text for row in chosen)))
    return recordings


def figures(references: list[str], texts: list[str]) -> dict:
    """Score texts, and count those that stopped early."""
    scores = whisper_peft.score(references, texts)
    early = sum(len(text) < STOPPED_EARLY * len(reference) for reference, text in zip(references, texts, strict=True))
    return {"cer": scores["cer"], "wer": scores["wer"], "stopped_early": early, "texts": texts}


def faster_whisper(model, language: str, options: dict) -> Callable[[np.ndarray], list[Segment]]:
    """Return a function that transcribes a wave in faster-whisper."""

    def transcribe(wave: np.ndarray) -> list[Segment]:
        segments, _ = model.transcribe(wave, language=language, **options)
        return [Segment(segment.text.strip(), segment.start, segment.end) for segment in segments]

    return transcribe


def text_of(segments: list[Segment]) -> str:
    return " ".join(segment.text for segment in segments)


class Stages:
    """Keeps the results of the finished stages in a file. The script starts again at the first missing stage."""

    def __init__(self, path: Path):
        self.path = path
        self.content = json.loads(path.read_text()) if path.exists() else {}

    def make(self, name: str, compute: Callable[[], dict]) -> dict:
        """Return the result of a stage, computed if it is not there yet."""
        if name not in self.content:
            print(f"   {name}", flush=True)
            self.content[name] = compute()
            self.path.write_text(json.dumps(self.content, ensure_ascii=False) + "\n")
        return self.content[name]


def judge(merged: Path, shared: Path, setting: Setting) -> dict:
    """Score a merged model in each decoding."""
    from faster_whisper import WhisperModel

    stages = Stages(merged.with_name(f"{setting.name}-stages.json"))
    data = DATA[setting.data]
    language = data["language"]
    rows = whisper_peft.load_source(str(shared / "data" / data["validation"]))
    references = [row.text for row in rows]
    recordings = joined_recordings(rows)
    joined_references = [text for _, text in recordings]
    model, preparation, _ = whisper_peft.load_model(merged)
    runtime = WhisperModel(
        str(convert(merged)),
        device="cpu",
        compute_type="float32",
        cpu_threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    )

    def evaluated() -> dict:
        dataset = whisper_peft.SpeechDataset(rows, preparation, language=language)
        heard = whisper_peft.transcribe_rows(
            model, dataset, range(len(rows)), max_new_tokens=full_limit(preparation), workers=2, stop_loops=True
        )
        loss = sum(t.loss_sum for t in heard.transcripts) / sum(t.loss_tokens for t in heard.transcripts)
        return {**figures(references, [transcript.text for transcript in heard.transcripts]), "token_loss": loss}

    def single_in_faster_whisper() -> dict:
        decode = faster_whisper(runtime, language, {})
        clips = rows[::CLIPS_APART]
        waves = [load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s) for row in clips]
        outputs = [decode(wave) for wave in waves]
        late_s = [output[-1].end_s - len(wave) / RATE_HZ for wave, output in zip(waves, outputs, strict=True) if output]
        scores = figures(references[::CLIPS_APART], [text_of(output) for output in outputs])
        return {**scores, "ends_2_s_late": sum(seconds > 2 for seconds in late_s)}

    def joined_in_transcribe() -> dict:
        texts = [transcribe_wave(model, preparation, wave, language=language)["text"] for wave, _ in recordings]
        return figures(joined_references, texts)

    def joined_with_times() -> dict:
        # `transcribe --format srt` writes times even if a recording fits into one window.
        numbered = [(number, wave) for number, (wave, _) in enumerate(recordings)]
        timed = dict(transcribe_waves(model, preparation, numbered, Decoding(language)))
        return figures(joined_references, [timed[number]["text"] for number, _ in numbered])

    def joined_in_faster_whisper(options: dict) -> dict:
        decode = faster_whisper(runtime, language, options)
        return figures(joined_references, [text_of(decode(wave)) for wave, _ in recordings])

    single = {
        "evaluate": stages.make("single, evaluate", evaluated),
        "faster-whisper, defaults": stages.make("single, faster-whisper", single_in_faster_whisper),
    }
    joined = {
        "transcribe": stages.make("joined, transcribe", joined_in_transcribe),
        "transcribe, with times": stages.make("joined, transcribe with times", joined_with_times),
    }
    for name, options in DECODINGS.items():
        compute = functools.partial(joined_in_faster_whisper, options)
        joined[f"faster-whisper, {name}"] = stages.make(f"joined, faster-whisper, {name}", compute)
    result = {
        "references": references,
        "joined_references": joined_references,
        "token_loss": single["evaluate"]["token_loss"],
        "single": single,
        "joined": joined,
    }
    if setting.data == "malayalam":
        result["story"] = stages.make("story", lambda: judge_story(model, preparation, runtime, shared))
    return result


def judge_story(model, preparation, runtime, shared: Path) -> dict:
    """Score the 11-minute story, whole and in clips."""
    folder = shared / "data" / "longform"
    reference = read_segments(folder / "ml_vasanavikruthi.json")
    rows = whisper_peft.load_source(str(folder / "ml_vasanavikruthi.ogg"))
    dataset = whisper_peft.SpeechDataset(rows, preparation, language="ml")
    heard = whisper_peft.transcribe_rows(
        model, dataset, range(len(rows)), max_new_tokens=full_limit(preparation), workers=2, stop_loops=True
    )
    wave = load_audio(str(folder / "ml_vasanavikruthi.ogg"))
    ours = transcribe_wave(model, preparation, wave, language="ml")["segments"]
    outputs = {
        "transcribe": [Segment(part["text"], part["start"], part["end"]) for part in ours],
        "faster-whisper, defaults": faster_whisper(runtime, "ml", {})(wave),
    }
    result = {"clips": figures([row.text for row in rows], [transcript.text for transcript in heard.transcripts])}
    for name, output in outputs.items():
        result[name] = asdict(score_recording(reference, output))
        result[name]["segments"] = [[part.start_s, part.end_s, part.text] for part in output]
    return result


def one_run(work: Path, shared: Path, setting: Setting) -> None:
    """Train and judge one setting, and write its JSON."""
    print(f"== {setting.name}", flush=True)
    merged, facts = train_adapter(work, shared, setting)
    began = time.monotonic()
    result = {
        "setting": asdict(setting),
        "steps": STEPS,
        "versions": facts["versions"],
        "train_seconds": facts.get("train_seconds"),
        **judge(merged, shared, setting),
    }
    result["judge_seconds"] = round(time.monotonic() - began)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{setting.name}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def table() -> None:
    """Print a line for each finished run."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    print("CER in %; in brackets the outputs that stopped early. Difference: 95 % interval to stitch 0, times 0.")
    for setting in planned():
        result = results.get(setting.name)
        if result is None:
            continue
        line = f"{setting.name:44} loss {result['token_loss']:.3f}"
        for part in ("single", "joined"):
            for name, scores in result[part].items():
                line += f" | {part} {name}: {100 * scores['cer']:.1f} ({scores['stopped_early']})"
        baseline = results.get(Setting(setting.data, 0.0, 0.0, setting.seed).name)
        if baseline and baseline is not result:
            low, high = whisper_peft.paired_interval(
                result["references"],
                baseline["single"]["evaluate"]["texts"],
                result["single"]["evaluate"]["texts"],
                metric="cer",
            )
            line += f" | single, difference: {100 * low:+.1f} to {100 * high:+.1f}"
        if "story" in result:
            story = result["story"]
            line += f" | story clips: {100 * story['clips']['cer']:.1f}"
            for name in ("transcribe", "faster-whisper, defaults"):
                scores = story[name]
                share = scores["uncovered_s"] / scores["speech_s"]
                line += (
                    f" | story {name}: {100 * scores['cer']:.1f}, uncovered {100 * share:.1f} %, "
                    f"starts {scores['start_error_s'] or 0:.2f} s"
                )
        print(line)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--table", "only_table", is_flag=True)
@click.option("--only", default="", help="Run the setting of this name, or else those whose names begin so.")
def main(work: Path, only_table: bool, only: str) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not only_table:
        names = {setting.name for setting in planned()}
        for setting in planned():
            is_chosen = setting.name == only if only in names else setting.name.startswith(only)
            if is_chosen and not (RESULTS / f"{setting.name}.json").exists():
                one_run(work, shared, setting)
    table()


if __name__ == "__main__":
    main()
