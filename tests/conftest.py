"""Fixtures: a tiny random Whisper, made clips, and the real model and speech if the shared folder is there."""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "whisper_peft" / "quickstart"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # pytest runs one process on each core, so more threads would only wait.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("the same examples in every run", derandomize=True)
settings.load_profile("the same examples in every run")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the real checkpoint and the real speech."""
    folder = Path(os.environ.get("WHISPER_PEFT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random multilingual Whisper of 1 + 1 layers with the quickstart's vocabulary and 3 s window."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_model_30s(tmp_path_factory) -> Path:
    """The same with the window of 30 s and the 448 tokens that other runtimes have built in."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny30") / "model", window_s=30, max_target_positions=448)


def make_tiny_model(folder: Path, *, window_s: int = 3, **changes) -> Path:
    """Save a tiny random Whisper in the layout of transformers."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    source = str(QUICKSTART / "model")
    config = WhisperConfig.from_pretrained(source)
    for key, value in {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_source_positions": 50 * window_s,
        **changes,
    }.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(source)
    model.generation_config.alignment_heads = [[0, 0]]
    model.save_pretrained(str(folder))
    processor = WhisperProcessor.from_pretrained(source)
    extractor = processor.feature_extractor
    extractor.chunk_length = window_s
    extractor.n_samples = window_s * extractor.sampling_rate
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
    processor.save_pretrained(str(folder))
    processor.feature_extractor.save_pretrained(str(folder))
    return folder


def make_wave(seconds: float, seed: int = 0) -> np.ndarray:
    """Make a few steady tones and noise at 16 kHz: neither speech nor silence."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * 16000)) / 16000
    wave = sum(np.sin(2 * np.pi * f * time_s + rng.uniform(0, 6)) for f in rng.uniform(80, 2000, 4))
    return (0.1 * wave + 0.01 * rng.standard_normal(len(time_s))).astype(np.float32)


@pytest.fixture(scope="session")
def openai_models(tmp_path_factory) -> dict:
    """A narrow random model to export of each kind of OpenAI's checkpoints."""
    from openai_vocabulary import KINDS
    from spoken_exports import save_openai_checkpoint

    from whisper_peft.delivery.exporting.source import ModelToExport

    folder = tmp_path_factory.mktemp("openai")
    return {kind: ModelToExport(save_openai_checkpoint(kind, folder / kind), "model") for kind in KINDS}


WORDS = "घर पानी किताब सड़क लाल नीला बड़ा छोटा आज कल रात दिन चलो रुको देखो सुनो".split()  # noqa: SIM905 - readable


def make_speech(folder: Path, clips: int = 12, *, seconds: tuple[float, float] = (0.4, 1.2), seed: int = 0) -> Path:
    """Write an AudioFolder of made clips: wav files and a metadata.csv."""
    import soundfile

    folder.mkdir(parents=True)
    rng = random.Random(seed)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "transcription"])
        for number in range(clips):
            soundfile.write(folder / f"{number}.wav", make_wave(rng.uniform(*seconds), seed * 1000 + number), 16000)
            writer.writerow([f"{number}.wav", f"{' '.join(rng.sample(WORDS, 3))} {seed} {number}"])
    return folder


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> Path:
    """A folder of three AudioFolders: train (12 clips), eval (4 clips) and test (4 clips)."""
    folder = tmp_path_factory.mktemp("speech")
    for seed, (name, clips) in enumerate((("train", 12), ("eval", 4), ("test", 4))):
        make_speech(folder / name, clips, seed=seed)
    return folder


@pytest.fixture
def run_cli():
    """A function that runs `whisper-peft` in a fresh process and returns its exit code and its output as text."""

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 600) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "whisper_peft", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return run


@pytest.fixture
def brief_demo(monkeypatch):
    """Make `demo` in this process take any free port and end as soon as its page is there."""
    from whisper_peft.delivery import demo

    monkeypatch.setattr(demo, "free_port", lambda port, find=demo.free_port: find(0))
    monkeypatch.setattr(demo, "wait_for_end", lambda: None)


@pytest.fixture
def any_proof(monkeypatch):
    """Let every export in this process pass its proof, because random weights prove nothing."""
    from whisper_peft.delivery.exporting import export

    monkeypatch.setattr(export, "find_failure", lambda report, quantized: None)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium whose microphone is allowed and repeats `make_wave(2.0)`.

    Each module gets its own, because the event loop of a running Playwright disturbs other loops in this thread.
    """
    import soundfile

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    spoken = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    soundfile.write(spoken, make_wave(2.0), 16000)
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    flags.append(f"--use-file-for-fake-audio-capture={spoken}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=False, args=flags)
        yield browser
        browser.close()


def tiny_recipe(model: Path, speech: Path, **changes):
    """Return a recipe for the tiny model and the made clips."""
    from whisper_peft import Recipe, override

    settings = {
        "model.name": str(model),
        "model.language": "hi",
        "data.train": [str(speech / "train")],
        "data.eval": str(speech / "eval"),
        "data.test": str(speech / "test"),
        "train.steps": 4,
        "train.batch_size": 4,
        "train.workers": 0,
        "train.precision": "fp32",
        "lora.rank": 4,
        "evaluate.every_steps": 2,
        "train.logging_steps": 1,
    }
    return override(Recipe(), {**settings, **changes})


@pytest.fixture(scope="session")
def lora_run(tiny_model, speech, tmp_path_factory) -> Path:
    """A finished LoRA run of 4 steps, at a rate that moves the adapter far from zero."""
    from whisper_peft import train

    recipe = tiny_recipe(tiny_model, speech, **{"train.learning_rate": 0.02, "train.report_to": ["tensorboard"]})
    return train(recipe, output=tmp_path_factory.mktemp("runs") / "lora").run


@pytest.fixture(scope="session")
def full_run(tiny_model, speech, tmp_path_factory) -> Path:
    """A finished full fine-tuning of 4 steps."""
    from whisper_peft import train

    recipe = tiny_recipe(tiny_model, speech, **{"train.mode": "full", "train.learning_rate": 0.005})
    return train(recipe, output=tmp_path_factory.mktemp("runs") / "full").run
