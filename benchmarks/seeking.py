"""How long it takes to read a long recording in pieces, compared with decoding it whole.

    python benchmarks/seeking.py            every format
    python benchmarks/seeking.py mp3        one of: mp3, mp3_no_count, m4a, webm

Makes a recording of two hours of tones and noise that come and go. Reads it in 300 pieces of 24 s, in order and
shuffled, and then whole; together the pieces are the whole recording. For comparison, one piece from the middle is
decoded from the start of the file, as every piece was before the reader could seek. Writes seeking.json beside itself
after each format.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

HERE = Path(__file__).parent
RESULTS = HERE / "seeking.json"
SECONDS = 7200
N_PIECES = 300
PIECE_S = SECONDS / N_PIECES
VBR = {"flags": "+qscale", "global_quality": "236"}
# Container, codec, sampling rate in Hz, options of the codec and of the container.
FORMATS = {
    "mp3": ("mp3", "libmp3lame", 44_100, VBR, {}),
    "mp3_no_count": ("mp3", "libmp3lame", 44_100, VBR, {"write_xing": "0"}),
    "m4a": ("mp4", "aac", 44_100, {"b": "64000", "aac_pns": "0"}, {}),
    "webm": ("webm", "libopus", 48_000, {"b": "32000"}, {}),
}


def make_recording(path: Path, name: str) -> None:
    """Encode tones and noise, whose level changes every ten seconds, so that the bit rate of a VBR file varies."""
    import av
    import numpy as np

    container_name, codec, rate_hz, codec_options, options = FORMATS[name]
    chance = np.random.default_rng(0)
    time_s = np.arange(10 * rate_hz) / rate_hz
    noise = 0.05 * chance.standard_normal(len(time_s))
    with av.open(str(path), "w", format=container_name, options=options) as container:
        stream = container.add_stream(codec, rate=rate_hz, options=codec_options)
        stream.layout = "mono"
        fifo = av.AudioFifo()
        for _ in range(SECONDS // 10):
            tone = 0.3 * np.sin(2 * np.pi * chance.uniform(100, 1000) * time_s)
            wave = (tone + noise) * chance.choice([1.0, 0.1, 0.0])
            frame = av.AudioFrame.from_ndarray(wave[np.newaxis].astype(np.float32), format="flt", layout="mono")
            frame.sample_rate = rate_hz
            fifo.write(frame)
            while (packet := fifo.read(960)) is not None:
                container.mux(stream.encode(packet))
        container.mux(stream.encode(None))


def measure(read: Callable[[], int]) -> dict[str, float]:
    """Measure the time of a read, the seconds of sound that it gave, and the peak memory."""
    began = time.perf_counter()
    used = time.process_time()
    n_samples = read()
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - used,
        "sound_s": n_samples / 16_000,
        # The peak is that of the whole process until now.
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def read_pieces(path: Path, numbers: list[int]) -> int:
    """Read some of the pieces, and return the number of samples."""
    import whisper_peft

    n_samples = 0
    for number in numbers:
        end_s = None if number == N_PIECES - 1 else (number + 1) * PIECE_S
        n_samples += len(whisper_peft.load_audio(path, start_s=number * PIECE_S, end_s=end_s))
    return n_samples


def read_middle_from_start(path: Path) -> int:
    """Decode one piece from the start of the file, and return the number of samples."""
    from whisper_peft.data.decoding import decode
    from whisper_peft.data.truncation import read_structure

    with path.open("rb") as file:
        return len(decode(file, read_structure(file), SECONDS / 2, SECONDS / 2 + PIECE_S).wave)


def measure_format(path: Path) -> dict[str, dict[str, float]]:
    """Read a recording in pieces and whole. Each way of pieces reads a fresh copy, which no cache knows."""
    import whisper_peft

    shuffled = list(range(N_PIECES))
    random.Random(0).shuffle(shuffled)
    measured = {}
    for way, numbers in (("in_order", list(range(N_PIECES))), ("shuffled", shuffled)):
        fresh = path.with_name(way)
        fresh.write_bytes(path.read_bytes())
        measured[way] = measure(lambda fresh=fresh, numbers=numbers: read_pieces(fresh, numbers))
    measured["one_from_start"] = measure(lambda: read_middle_from_start(path))
    measured["whole"] = measure(lambda: len(whisper_peft.load_audio(path)))
    return measured


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(FORMATS)))
def main(names: tuple[str, ...]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recording"
            make_recording(path, name)
            measured = measure_format(path)
        whole = measured["whole"]
        for way in ("in_order", "shuffled"):
            measured[way]["times_whole_wall"] = measured[way]["wall_s"] / whole["wall_s"]
            measured[way]["times_whole_cpu"] = measured[way]["cpu_s"] / whole["cpu_s"]
        results[name] = measured
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\n{name}")
        for way, figures in measured.items():
            print(f"  {way:15}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
