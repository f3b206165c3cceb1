"""Every part of a long recording is transcribed, reproducibly, in memory that does not grow with its length."""

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
    """Switch the fallback off, because a random model is never sure and would decode each window six times."""
    monkeypatch.setitem(stretches.FALLBACK, "temperature", (0.0,))


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The tiny model, which takes 3 s, and its preparation."""
    model, preparation, _ = load_model(tiny_model)
    return model, preparation


class Windows:
    """Collects the log-mels that the encoder of a model gets."""

    def __init__(self, model):
        self.seen: list[np.ndarray] = []
        self.hook = model.get_encoder().register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs) -> None:
        (features,) = args or (kwargs["input_features"],)
        self.seen.append(features[0].numpy())


def gap_at(begin: int, window: np.ndarray, whole: np.ndarray) -> float:
    """Return the mean gap between a window and the log-mel from frame `begin` on, without a few frames at the edges."""
    there = whole[:, begin + 3 : begin + 290]
    return float(np.abs(there - window[:, 3 : 3 + there.shape[1]]).mean())


@pytest.mark.parametrize("stretch_windows", [1, 4])
def test_every_part_of_a_recording_reaches_the_encoder(stretch_windows, tiny, once, monkeypatch):
    model, preparation = tiny
    monkeypatch.setattr(stretches, "STRETCH_WINDOWS", stretch_windows)
    wave = make_wave(8.1)
    walked = Windows(model)
    shares: list[float] = []
    transcript = transcribe_wave(model, preparation, wave, language="hi", progress=shares.append)
    walked.hook.remove()
    n_frames = -(-len(wave) // preparation.hop_samples)
    whole = preparation.encode_stretch(wave, n_frames)
    heard = np.zeros(n_frames, dtype=bool)
    for window in walked.seen:
        assert window.shape == (80, 300)
        begin, gap = min(
            ((at, gap_at(at, window, whole)) for at in range(0, n_frames - 10, 2)), key=lambda part: part[1]
        )
        # A window without a match lies wholly behind the end of the recording.
        if gap < 0.01:
            heard[begin : begin + 300] = True
            # transformers would fill the last window with 0, which is loud noise.
            assert window[:, n_frames - begin + 3 :].max(initial=-1.0) < -0.3
    assert heard.all()
    assert shares[0] == 0 and shares == sorted(shares) and 0.5 < shares[-1] < 1
    assert transcript["segments"] and all(0 <= part["start"] <= part["end"] <= 8.1 for part in transcript["segments"])
    starts = [part["start"] for part in transcript["segments"]]
    assert starts == sorted(starts) and starts[-1] > 4
    # Spaces between segments are tokens of the model, and this random model omits many of them.
    assert re.sub(r"\s", "", transcript["text"]) == re.sub(
        r"\s", "", "".join(part["text"] for part in transcript["segments"])
    )


def test_the_transcript_does_not_depend_on_the_length_of_a_stretch(tiny, once, monkeypatch):
    """Short stretches give the same segments as one long stretch, which transformers decodes in one call."""
    model, preparation = tiny
    # The wave is equally loud everywhere, so that all stretches have the same floor.
    wave = np.tile(make_wave(0.5), 18)
    segment_lists = []
    for stretch_windows in (1, 100):
        monkeypatch.setattr(stretches, "STRETCH_WINDOWS", stretch_windows)
        segment_lists.append(transcribe_wave(model, preparation, wave, language="hi")["segments"])
    assert len(segment_lists[0]) > 3
    assert segment_lists[0] == segment_lists[1]


def test_memory_does_not_grow_with_the_length_of_the_recording(tiny, once, monkeypatch):
    """transformers keeps the scores of all words for every token, so they must be freed when a stretch ends."""
    import gc

    import torch

    model, preparation = tiny
    vocabulary, kept = model.config.vocab_size, []

    def count(share: float) -> None:
        alive = [
            tensor for tensor in gc.get_objects() if type(tensor) is torch.Tensor and tensor.shape == (vocabulary,)
        ]
        kept.append(len(alive))

    for stretch_windows, most in ((4, 1000), (1, 3)):
        monkeypatch.setattr(stretches, "STRETCH_WINDOWS", stretch_windows)
        kept.clear()
        transcribe_wave(model, preparation, make_wave(4.0), language="hi", progress=count)
        assert len(kept) > 1 and (max(kept) > 10) == (stretch_windows > 1) and max(kept) <= most


def test_the_fallback_is_reproducible_and_leaves_the_callers_random_state(tiny, monkeypatch):
    import torch

    monkeypatch.setitem(stretches.FALLBACK, "temperature", (0.0, 1.0))

    model, preparation = tiny
    wave = make_wave(3.05)
    torch.manual_seed(1)
    first, drawn = transcribe_wave(model, preparation, wave, language="hi"), torch.rand(1)
    assert transcribe_wave(model, preparation, wave, language="hi") == first
    torch.manual_seed(1)
    # The fallback takes no random number from the generator of the caller.
    assert torch.rand(1) == drawn


def test_short_recordings_keep_their_transcripts_beside_long_ones(lora_run, speech, tmp_path, once, run_cli):
    """Short recordings beside long ones keep their place and transcript, and only long ones get segments."""
    short = [speech / "test" / f"{number}.wav" for number in (0, 1)]
    soundfile.write(tmp_path / "long.wav", make_wave(4.0), 16000)
    soundfile.write(tmp_path / "nearly.wav", make_wave(2.9), 16000)
    files = [short[0], tmp_path / "long.wav", short[1], tmp_path / "nearly.wav", short[0]]
    told: list[int] = []
    transcripts = transcribe(lora_run, files, window="tight", progress=told.append)
    assert [transcript["audio"] for transcript in transcripts] == [str(file) for file in files] and sum(told) == len(
        files
    )
    assert ["segments" in transcript for transcript in transcripts] == [False, True, False, False, False]
    assert [transcripts[0], transcripts[2]] == transcribe(lora_run, short, window="tight")
    assert transcripts[3]["text"] == transcribe(lora_run, files[3:4])[0]["text"]

    (tmp_path / "gone.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"gone.wav: the file is empty"):
        transcribe(lora_run, [*files, tmp_path / "gone.wav"])
    whole = (tmp_path / "long.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(UserError, match=r"cut.wav: .*truncated"):
        transcribe(lora_run, [tmp_path / "cut.wav"])


def test_right_transcripts_are_not_mistaken_for_loops(shared):
    """Half a minute of right text stays under the compression ratio from which transformers assumes a loop."""
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
def test_more_than_a_minute_of_real_speech_is_transcribed_mostly_right(shared, tmp_path, run_cli):
    """The untouched base transcribes 75 s of an English story mostly right, with rising times."""
    from whisper_peft import score

    story = next((shared / "data" / "longform").glob("en_*.mp3"))
    soundfile.write(tmp_path / "story.flac", load_audio(story, start_s=0.0, end_s=75.0), 16000)
    done = run_cli(
        "transcribe", shared / "models" / "whisper-base", tmp_path / "story.flac", "--language", "en", "--json"
    )
    assert done.returncode == 0, done.stderr
    (transcript,) = json.loads(done.stdout)["transcripts"]
    assert not transcript["reached_limit"] and len(transcript["segments"]) > 8
    ends = [segment["end"] for segment in transcript["segments"]]
    assert ends == sorted(ends) and 65 < ends[-1] <= 75
    said = (shared / "data" / "longform" / "metadata.csv").read_text(encoding="utf-8")
    words = re.findall(r"\w+", said[said.index("A Tiny Seed") :].lower())
    heard = re.findall(r"\w+", transcript["text"].lower())
    assert 100 < len(heard) < 250
    assert score([" ".join(words[: len(heard)])], [" ".join(heard)])["wer"] < 0.3
