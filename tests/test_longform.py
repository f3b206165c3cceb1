"""Long recordings: every part is heard, the same each time, in memory that does not grow with them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import soundfile
from conftest import make_wave

from whisper_peft import UserError, load_audio, load_model, transcribe
from whisper_peft.evaluation import stretches
from whisper_peft.evaluation.longform import transcribe_wave


@pytest.fixture
def once(monkeypatch):
    """A random model is never sure: it would make each window again and again."""
    monkeypatch.setitem(stretches.FALLBACK, "temperature", (0.0,))


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The tiny model, which takes 3 s, and its preparation."""
    model, preparation, _ = load_model(tiny_model)
    return model, preparation


class Windows:
    """The log-mels that a model's encoder was given."""

    def __init__(self, model):
        self.seen: list[np.ndarray] = []
        self.hook = model.get_encoder().register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs) -> None:
        (features,) = args or (kwargs["input_features"],)
        self.seen.append(features[0].numpy())


def gap_at(begin: int, window: np.ndarray, whole: np.ndarray) -> float:
    """How far a window is from the recording's log-mel from a frame on; at a stretch's edge a few frames differ."""
    there = whole[:, begin + 3 : begin + 290]
    return float(np.abs(there - window[:, 3 : 3 + there.shape[1]]).mean())


@pytest.mark.parametrize("stretch_windows", [1, 4])
def test_every_part_of_a_recording_is_heard(stretch_windows, tiny, once, monkeypatch):
    model, preparation = tiny
    monkeypatch.setattr(stretches, "STRETCH_WINDOWS", stretch_windows)
    wave = make_wave(8.1)
    walked = Windows(model)
    shares: list[float] = []
    found = transcribe_wave(model, preparation, wave, language="hi", progress=shares.append)
    walked.hook.remove()
    n_frames = -(-len(wave) // preparation.hop_samples)
    whole = preparation.encode_stretch(wave, n_frames)
    heard = np.zeros(n_frames, dtype=bool)
    for window in walked.seen:
        assert window.shape == (80, 300)
        begin, gap = min(((at, gap_at(at, window, whole)) for at in range(0, n_frames - 10, 2)), key=lambda one: one[1])
        if gap < 0.01:  # else it is all behind the end
            heard[begin : begin + 300] = True
            # transformers fills the last window with 0, which is loud noise
            assert window[:, n_frames - begin + 3 :].max(initial=-1.0) < -0.3
    assert heard.all()
    assert shares[0] == 0 and shares == sorted(shares) and 0.5 < shares[-1] < 1
    assert found["segments"] and all(0 <= one["start"] <= one["end"] <= 8.1 for one in found["segments"])
    starts = [one["start"] for one in found["segments"]]
    assert starts == sorted(starts) and starts[-1] > 4
    # The spaces between segments are the model's own; this random one says many words without.
    assert re.sub(r"\s", "", found["text"]) == re.sub(r"\s", "", "".join(one["text"] for one in found["segments"]))


def test_stretches_are_seamless(tiny, once, monkeypatch):
    """Where one stretch ends and the next begins, transformers would have gone on in the same way."""
    model, preparation = tiny
    wave = np.tile(make_wave(0.5), 18)  # of one loudness everywhere, so that all stretches have one floor
    found = []
    for stretch_windows in (1, 100):
        monkeypatch.setattr(stretches, "STRETCH_WINDOWS", stretch_windows)
        found.append(transcribe_wave(model, preparation, wave, language="hi")["segments"])
    assert len(found[0]) > 3
    assert found[0] == found[1]


def test_memory_does_not_grow_with_the_recording(tiny, once, monkeypatch):
    """transformers keeps the scores of all words for every token; when a stretch begins, those before are gone."""
    import gc

    import torch

    model, preparation = tiny
    vocabulary, kept = model.config.vocab_size, []

    def count(share: float) -> None:
        alive = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.shape == (vocabulary,)]
        kept.append(len(alive))

    for stretch_windows, most in ((4, 1000), (1, 3)):
        monkeypatch.setattr(stretches, "STRETCH_WINDOWS", stretch_windows)
        kept.clear()
        transcribe_wave(model, preparation, make_wave(4.0), language="hi", progress=count)
        assert len(kept) > 1 and (max(kept) > 10) == (stretch_windows > 1) and max(kept) <= most


def test_a_fallback_gives_the_same_each_time(tiny, monkeypatch):
    import torch

    monkeypatch.setitem(stretches.FALLBACK, "temperature", (0.0, 1.0))

    model, preparation = tiny
    wave = make_wave(3.05)
    torch.manual_seed(1)
    first, drawn = transcribe_wave(model, preparation, wave, language="hi"), torch.rand(1)
    assert transcribe_wave(model, preparation, wave, language="hi") == first
    torch.manual_seed(1)
    assert torch.rand(1) == drawn  # and takes no draw of the caller's


def test_short_and_long_recordings_together(lora_run, speech, tmp_path, once, run_cli):
    """Each in its place; the short ones as they were; a run's adapter and its times on the command line."""
    short = [speech / "test" / f"{number}.wav" for number in (0, 1)]
    soundfile.write(tmp_path / "long.wav", make_wave(4.0), 16000)
    soundfile.write(tmp_path / "nearly.wav", make_wave(2.9), 16000)
    files = [short[0], tmp_path / "long.wav", short[1], tmp_path / "nearly.wav", short[0]]
    told: list[int] = []
    found = transcribe(lora_run, files, window="tight", progress=told.append)
    assert [one["audio"] for one in found] == [str(file) for file in files] and sum(told) == len(files)
    assert ["segments" in one for one in found] == [False, True, False, False, False]
    assert [found[0], found[2]] == transcribe(lora_run, short, window="tight")
    assert found[3]["text"] == transcribe(lora_run, files[3:4])[0]["text"]

    (tmp_path / "gone.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"gone.wav: the file is empty"):
        transcribe(lora_run, [*files, tmp_path / "gone.wav"])
    whole = (tmp_path / "long.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(UserError, match=r"cut.wav: .*truncated"):
        transcribe(lora_run, [tmp_path / "cut.wav"])


def test_right_transcripts_are_not_taken_for_loops(shared):
    """Compression ratios of half a minute of text, in tokens of the real vocabulary, as transformers takes them."""
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    from whisper_peft import load_preparation, load_source

    tokenizer = load_preparation(str(shared / "models" / "whisper-base")).tokenizer

    def ratio(text: str) -> float:
        import torch

        ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids[:440])
        return WhisperGenerationMixin._retrieve_compression_ratio(ids, 51865)

    limit = stretches.FALLBACK["compression_ratio_threshold"]
    for name in ("malayalam/train", "hindi_tts/train"):
        texts = [row.text for row in load_source(str(shared / "data" / name))]
        assert max(ratio(" ".join(texts[at : at + 7])) for at in range(0, len(texts), 7)) < limit
        assert ratio(" ".join(texts[:1] * 8)) > limit


@pytest.mark.slow
def test_more_than_a_minute_of_real_speech(shared, tmp_path, run_cli):
    """75 s of an English story by the untouched base: most words are right, in order, with their times."""
    from whisper_peft import score

    story = next((shared / "data" / "longform").glob("en_*.mp3"))
    soundfile.write(tmp_path / "story.flac", load_audio(story, start_s=0.0, end_s=75.0), 16000)
    done = run_cli(
        "transcribe", shared / "models" / "whisper-base", tmp_path / "story.flac", "--language", "en", "--json"
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["transcripts"]
    assert not found["reached_limit"] and len(found["segments"]) > 8
    ends = [one["end"] for one in found["segments"]]
    assert ends == sorted(ends) and 65 < ends[-1] <= 75
    said = (shared / "data" / "longform" / "metadata.csv").read_text(encoding="utf-8")
    words = re.findall(r"\w+", said[said.index("A Tiny Seed") :].lower())
    heard = re.findall(r"\w+", found["text"].lower())
    assert 100 < len(heard) < 250
    assert score([" ".join(words[: len(heard)])], [" ".join(heard)])["wer"] < 0.3
