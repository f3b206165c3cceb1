"""How long `check` takes, and how its time and its memory grow with the number of clips.

    python benchmarks/checking.py

The cases are 2,500, 5,000, 10,000 and 20,000 made clips, each a 16-bit wav file at 16 kHz with two or three sentences
of the quickstart. `check` first reads only their headers and texts, and then their sound, too. If the shared folder is
there, the sound of its real Malayalam clips (Ogg Opus) is one more case. Each case runs in a process of its own.

Only the call is timed, without imports. The files were just written, so they are in the cache of the system. CPU
seconds are the sum over all threads. Memory is the peak of the call above what the process held before it. The load is
the mean of the whole system over the minute before the call, so other work counts in it. Writes checking.json beside
itself, and needs 3 GB of disk while it runs.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

HERE = Path(__file__).parent
SPEECH = HERE.parent / "whisper_peft" / "quickstart" / "speech" / "train"
COUNTS = (2_500, 5_000, 10_000, 20_000)


def make_clips(folder: Path, count: int) -> None:
    """Write distinct clips, each of two or three sentences of one speaker.

    For each number in COUNTS, also write a manifest of that many clips.
    """
    import numpy as np
    import soundfile

    import whisper_peft

    spoken: dict[str, list] = {}
    for row in whisper_peft.load_source(str(SPEECH)):
        spoken.setdefault(row.speaker, []).append((row.text, whisper_peft.load_audio(row.audio)))
    draw, texts, lines = random.Random(0), set(), []
    while len(lines) < count:
        speaker = draw.choice(list(spoken))
        sentences = draw.choices(spoken[speaker], k=draw.choice((2, 3)))
        text = " ".join(text for text, _ in sentences)
        if text in texts:
            continue
        texts.add(text)
        row = {"audio": f"clip_{len(lines):05}.wav", "text": text, "language": "hi", "speaker": speaker}
        wave = np.concatenate([wave for _, wave in sentences]) * draw.uniform(0.5, 1.0)
        soundfile.write(folder / row["audio"], wave, 16_000, subtype="PCM_16")
        lines.append(json.dumps(row, ensure_ascii=False))
    for size in COUNTS:
        if size <= count:
            (folder / f"{size}.jsonl").write_text("\n".join(lines[:size]) + "\n", encoding="utf-8")


def memory_bytes(kind: str) -> int:
    """Return what the process holds (VmRSS) or has held at most (VmHWM), in bytes.

    `getrusage` would count the peak of the parent process, too.
    """
    return int(re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def measure(source: str, audio: bool) -> dict:
    """Measure one case in a fresh process: seconds, growth of memory, and what was found."""
    import whisper_peft

    # A first call makes all imports, so that they are not measured.
    whisper_peft.check(SPEECH.parent / "test", audio=audio)
    # Set the peak of the memory back.
    Path("/proc/self/clear_refs").write_text("5")
    before, load, start, used = memory_bytes("VmRSS"), os.getloadavg()[0], time.monotonic(), time.process_time()
    report = whisper_peft.check(source, audio=audio)
    seconds, used = time.monotonic() - start, time.process_time() - used
    hours = sum(source.hours for source in report.sources)
    return {
        "clips": sum(source.clips for source in report.sources),
        "hours": hours,
        "audio": audio,
        "seconds": seconds,
        "cpu_seconds": used,
        "times_real_time": 3600 * hours / seconds,
        "load": load,
        "peak_bytes": memory_bytes("VmHWM") - before,
        "findings": {finding.kind: finding.count for finding in report.findings},
    }


def in_fresh_process(source: Path, audio: bool) -> dict:
    command = [sys.executable, __file__, "--case", json.dumps([str(source), audio])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.rpartition("RESULT ")[2])


@click.command()
@click.option("--most", default=COUNTS[-1], show_default=True, help="Clips of the largest made source.")
@click.option("--case", hidden=True)
def main(most: int, case: str | None) -> None:
    if case:
        print("RESULT " + json.dumps(measure(*json.loads(case))))
        return
    from notebook_vs_whisper_peft import machine

    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    page = {"machine": machine(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        make_clips(Path(folder), most)
        sizes = [size for size in COUNTS if size <= most]
        cases = [
            (f"made, {'sound' if audio else 'headers and texts'}, {size:,}", Path(folder, f"{size}.jsonl"), audio)
            for audio in (False, True)
            for size in sizes
        ]
        malayalam = shared / "data" / "malayalam"
        if malayalam.is_dir():
            cases.append(("Malayalam, sound", malayalam / "train", True))
        print(f"{'':36}{'s':>8}{'CPU s':>8}{'x real time':>13}{'MB':>8}{'load':>7}")
        for name, source, audio in cases:
            row = page["cases"][name] = in_fresh_process(source, audio)
            (HERE / "checking.json").write_text(json.dumps(page, indent=1) + "\n")
            print(
                f"{name:36}{row['seconds']:>8.1f}{row['cpu_seconds']:>8.1f}{row['times_real_time']:>13,.0f}"
                f"{row['peak_bytes'] / 1e6:>8.0f}{row['load']:>7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
