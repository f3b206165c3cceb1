"""Made clips whose lengths fit their texts, for tests of what looks at data."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import soundfile

WORDS = """घर पानी किताब सड़क लाल नीला बड़ा छोटा आज कल रात दिन चलो रुको देखो सुनो आसमान समुद्र पहाड़ हवाईजहाज
विद्यालय परिवार""".split()  # noqa: SIM905 - readable


def spoken(text: str, seed: int, *, pace: float = 1.0) -> np.ndarray:
    """Make a wave (float32, 16 kHz) with one burst of tones and noise for each word; longer words last longer."""
    rng = np.random.default_rng(seed)
    pieces = [np.zeros(int(rng.uniform(1600, 3200)))]
    for word in text.split() or ["a"]:
        time_s = np.arange(int(16000 * (0.08 + 0.06 * len(word)) / pace)) / 16000
        tones = sum(np.sin(2 * np.pi * pace * pitch * time_s) / n for n, pitch in enumerate((130, 390, 1100, 2600), 1))
        burst = 0.12 * tones + 0.02 * rng.standard_normal(len(time_s))
        pieces += [burst * np.hanning(len(burst)), np.zeros(int(800 / pace))]
    wave = np.concatenate([*pieces, np.zeros(int(rng.uniform(1600, 3200)))])
    return (wave + 1e-4 * rng.standard_normal(len(wave))).astype(np.float32)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return different texts of 2 to 12 words, without punctuation at their end."""
    rng = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 12)))] = None
    return list(texts)


def make_spoken(folder: Path, count: int = 60, *, seed: int = 0, name: str = "clip{:03d}") -> list[dict]:
    """Write clips as .wav files, and return their rows with audio, text and speaker_id."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, text in enumerate(sentences(count, seed)):
        path = folder / f"{name.format(number)}.wav"
        soundfile.write(path, spoken(text, 1000 * seed + number), 16000)
        rows.append({"audio": path.name, "text": text, "speaker_id": f"{seed}-{number // 6}"})
    return rows


def write_manifest(path: Path, rows: list[dict]) -> Path:
    """Write a manifest with one JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
