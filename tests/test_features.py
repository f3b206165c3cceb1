"""Log-mels equal those of transformers' extractor, and tokens equal those of openai-whisper's tokenizer."""

from __future__ import annotations

import csv
import random

import numpy as np
import pytest
from conftest import QUICKSTART, make_wave
from openai_vocabulary import KINDS, alignment_heads, openai_tokenizer, save_processor_files, whisper_config

from whisper_peft.data.features import IGNORED, LONGEST_TOKEN, Preparation, TooLongError
from whisper_peft.data.rows import Segment
from whisper_peft.errors import UserError
from whisper_peft.model.configs import load_preparation

TEXTS = {
    "en": "Hello, world!  It's 12,345 o'clock — don't you think?",
    "hi": "बच्चों को सुबह टहलना ज़रा भी पसंद नहीं है।",
    "ml": "പാണ്ടൻ നായുടെ പല്ലിനു ശൗര്യം പണ്ടേപോല ഫലിയ്‌ക്കുന്നില്ല.",
    "te": "నేను రేపు హైదరాబాద్ వెళ్తాను",
    "de": "Ich hätte gern 3,50 € zurück, bitte.",
    "zh": "今天天气很好，我们去公园吧。",
    "ja": "日本語のテストです。",
    "ar": "مرحبا بالعالم، كيف الحال؟",
    "th": "สวัสดีครับ วันนี้อากาศดี",
    "am": "ሰላም እንዴት ነህ?",
    "haw": "Aloha kakahiaka e ka honua ʻokina",
    "jw": "Sugeng enjing 🙂",
}


@pytest.fixture(scope="module")
def preparations(tmp_path_factory) -> dict[str, Preparation]:
    """One preparation for each kind of OpenAI's checkpoints, made from its vocabulary without any weights."""
    by_kind = {}
    for kind in KINDS:
        folder = save_processor_files(kind, tmp_path_factory.mktemp(kind))
        whisper_config(kind).save_pretrained(str(folder))
        by_kind[kind] = load_preparation(str(folder))
    return by_kind


# Log-mel contract


@pytest.fixture(scope="module")
def quickstart() -> Preparation:
    return load_preparation(str(QUICKSTART / "model"))


def padded(preparation: Preparation, wave: np.ndarray) -> np.ndarray:
    """Return one clip as the collator pads it, in shape (n_mels, window_frames)."""
    features, floor = preparation.encode_audio(wave)
    whole = np.full((preparation.n_mels, preparation.window_frames), floor, dtype=np.float32)
    whole[:, : features.shape[1]] = features
    return whole


def extracted(preparation: Preparation, wave: np.ndarray) -> np.ndarray:
    extractor = preparation.processor.feature_extractor
    return extractor(wave, sampling_rate=16_000, return_tensors="np").input_features[0]


def click_at_the_end(seconds: float) -> np.ndarray:
    wave = 0.01 * make_wave(seconds)
    wave[-1] = 1.0
    return wave


CLIPS = {
    "0.1 s": lambda: make_wave(0.1),
    "5 s": lambda: make_wave(5.0),
    "5 s and 37 samples": lambda: np.concatenate([make_wave(5.0), make_wave(0.1)[:37]]),
    "29.99 s": lambda: make_wave(29.99),
    "30 s": lambda: make_wave(30.0),
    "silence": lambda: np.zeros(16_000, np.float32),
    "click at the end": lambda: click_at_the_end(2.0),
    "click at the end of a frame": lambda: click_at_the_end(2.0)[161:],
    "click at the end of 29.99 s": lambda: click_at_the_end(29.99),
    "click at the end of 30 s": lambda: click_at_the_end(30.0),
    "faint": lambda: 1e-4 * make_wave(3.0),
    "one sample": lambda: np.ones(1, np.float32),
}


@pytest.mark.parametrize("kind", ["base", "large-v3"])
@pytest.mark.parametrize("clip", CLIPS)
def test_the_log_mel_equals_that_of_transformers_extractor(preparations, kind, clip):
    preparation, wave = preparations[kind], CLIPS[clip]()
    assert (preparation.n_mels, preparation.window_frames) == (KINDS[kind].n_mels, 3000)
    log_mel, expected = padded(preparation, wave), extracted(preparation, wave)
    assert log_mel.shape == expected.shape == (KINDS[kind].n_mels, 3000)
    assert log_mel.dtype == np.float32
    assert np.abs(log_mel - expected).max() < 1e-4


@pytest.mark.parametrize("seconds", [0.1, 1.37, 2.985, 2.9999, 3.0])
def test_the_log_mel_of_a_short_window_equals_that_of_transformers_extractor(quickstart, seconds):
    assert (quickstart.window_frames, quickstart.window_samples, quickstart.window_s) == (300, 48_000, 3.0)
    wave = make_wave(seconds)
    wave[-1] = 1.0
    assert np.abs(padded(quickstart, wave) - extracted(quickstart, wave)).max() < 1e-4


@pytest.mark.parametrize("clip", CLIPS)
def test_the_floor_is_the_log_mel_value_of_silence_in_the_clip(preparations, clip):
    preparation, wave = preparations["base"], CLIPS[clip]()
    features, floor = preparation.encode_audio(wave)
    # This is log10 of the loudest bin.
    log_max = max(4 * extracted(preparation, wave).max() - 4, -10)
    assert floor == pytest.approx((max(log_max - 8, -10) + 4) / 4, abs=1e-4)
    assert features.min() >= floor - 1e-6
    if clip == "silence":
        assert floor == pytest.approx(-1.5)
    if len(wave) < 28 * 16_000:
        # The silence after the clip is not computed.
        assert features.shape[1] <= len(wave) // 160 + 3


def test_padding_with_zero_would_differ_from_the_floor(preparations):
    """A collator that padded with zero would be far outside the tolerance of the tests above."""
    preparation, wave = preparations["base"], make_wave(5.0)
    features, floor = preparation.encode_audio(wave)
    assert floor < -0.4
    assert np.abs(extracted(preparation, wave)[:, features.shape[1] :] - floor).max() < 1e-6


@pytest.mark.parametrize(("kind", "window_s"), [("base", 30), ("large-v3", 30), ("quickstart", 3)])
def test_too_long_audio_is_refused_and_never_cut(preparations, quickstart, kind, window_s):
    preparation = quickstart if kind == "quickstart" else preparations[kind]
    wave = np.zeros(window_s * 16_000 + 1, np.float32)
    preparation.encode_audio(wave[:-1])
    with pytest.raises(TooLongError, match=rf"the model takes {window_s} s"):
        preparation.encode_audio(wave)


def test_a_processor_with_the_mel_bins_of_another_checkpoint_is_refused(preparations):
    with pytest.raises(UserError, match="80 mel bins, the model takes 128"):
        Preparation(preparations["base"].processor, whisper_config("large-v3"), multilingual=True)


# Token contract


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_those_of_openai(preparations, kind):
    preparation, openai = preparations[kind], openai_tokenizer(kind)
    # The size of the vocabulary tells whether the model is multilingual.
    assert preparation.multilingual == KINDS[kind].multilingual
    assert preparation.eot == openai.eot
    assert preparation.no_timestamps == openai.no_timestamps
    assert preparation.first_timestamp == openai.timestamp_begin
    assert preparation.token_id("<|startoftranscript|>") == openai.sot
    assert preparation.token_id("<|startofprev|>") == openai.sot_prev
    assert preparation.token_id("<|30.00|>") == openai.timestamp_begin + 1500
    assert (preparation.max_label_tokens, preparation.max_prompt_tokens) == (448, 223)


def languages(kind: str) -> list[str]:
    from whisper.tokenizer import LANGUAGES

    return list(LANGUAGES)[: KINDS[kind].n_languages]


@pytest.mark.parametrize("kind", ["base", "large-v3"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_the_prefix_of_every_language_is_that_of_openai(preparations, kind, task):
    assert len(languages(kind)) == KINDS[kind].n_languages
    for language in languages(kind):
        openai = openai_tokenizer(kind, language, task)
        assert preparations[kind].prefix(language, task) == [*openai.sot_sequence_including_notimestamps], language
        assert preparations[kind].prefix(language, task, timestamps=True) == [*openai.sot_sequence], language


def test_english_only_checkpoints_have_no_language_or_task_in_their_prefix(preparations):
    openai = openai_tokenizer("base.en")
    for language, task in ((None, "transcribe"), ("en", "transcribe"), ("hi", "translate")):
        assert preparations["base.en"].prefix(language, task) == [openai.sot, openai.no_timestamps]
    assert [openai.sot, openai.no_timestamps] == [*openai.sot_sequence_including_notimestamps]


def test_the_error_for_an_unknown_language_names_the_remedy(preparations):
    assert preparations["large-v3"].prefix("yue")[1] == openai_tokenizer("large-v3", "yue").language_token
    for language in ("yue", "tlh", "hindi"):
        with pytest.raises(UserError, match=rf"<\|{language}\|>.*--language-token"):
            preparations["base"].prefix(language)
    with pytest.raises(UserError, match="--language"):
        preparations["base"].prefix(None)


def first_words(openai, text: str, language: str) -> list[int]:
    """Return the tokens of a text with OpenAI's leading space, unless that space is a token of its own."""
    if language in ("zh", "ja", "th"):
        return openai.encode(text)
    tokens = openai.encode(f" {text}")
    return tokens[1:] if tokens[:1] == openai.encode(" ") else tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", TEXTS)
def test_tokens_are_those_of_openai_and_labels_are_one_token_ahead(preparations, kind, language):
    preparation, text = preparations[kind], TEXTS[language]
    openai = openai_tokenizer(kind, language) if KINDS[kind].multilingual else openai_tokenizer(kind)
    inputs, labels = preparation.encode_text([Segment(f"  {text}\n")], language=language)
    words = first_words(openai, text, language)
    assert inputs.tolist() == [*openai.sot_sequence_including_notimestamps, *words]
    assert labels.tolist() == [*inputs[1:], openai.eot]
    assert inputs.dtype == labels.dtype == np.int64
    assert (inputs == openai.sot).sum() == 1
    assert openai.sot not in labels
    assert (labels == openai.eot).sum() == 1
    assert preparation.decode(inputs) == preparation.decode(labels) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_special_token_in_a_transcript_is_encoded_as_text(preparations, kind):
    preparation, openai = preparations[kind], openai_tokenizer(kind, "en" if KINDS[kind].multilingual else None)
    text = "<|startoftranscript|><|en|><|transcribe|> press enter<|endoftext|> now"
    inputs, labels = preparation.encode_text([Segment(text)], language="en")
    words = openai.encoding.encode(f" {text}", disallowed_special=())
    assert inputs.tolist() == [*openai.sot_sequence_including_notimestamps, *words]
    assert (inputs == openai.sot).sum() == 1
    assert (labels == openai.eot).sum() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_encoded_with_their_times(preparations, kind):
    preparation = preparations[kind]
    openai = openai_tokenizer(kind, "hi" if KINDS[kind].multilingual else None)
    segments = [
        Segment("एक दो", 0.0, 1.5),
        Segment("three four", 1.58, 3.279),
        Segment(" ", 4.0, 5.0),
        Segment("5", 29.98, 30),
    ]
    inputs, labels = preparation.encode_text(segments, language="hi", timestamps=True)
    begin = openai.timestamp_begin
    assert inputs.tolist() == [
        *openai.sot_sequence,
        begin,
        *openai.encode(" एक दो"),
        begin + 75,
        begin + 79,
        *openai.encode(" three four"),
        begin + 164,
        begin + 1499,
        *openai.encode(" 5"),
        begin + 1500,
    ]
    assert openai.no_timestamps not in inputs
    assert labels.tolist() == [*inputs[1:], openai.eot]
    shown = openai.decode_with_timestamps(inputs.tolist()[len(openai.sot_sequence) :])
    assert shown == "<|0.00|> एक दो<|1.50|><|1.58|> three four<|3.28|><|29.98|> 5<|30.00|>"


def test_segments_without_times_are_joined_by_a_space(preparations):
    openai = openai_tokenizer("base", "en")
    inputs, _ = preparations["base"].encode_text([Segment("one two"), Segment(" three ")], language="en")
    assert inputs.tolist() == [*openai.sot_sequence_including_notimestamps, *openai.encode(" one two three")]


@pytest.mark.parametrize("end_s", [None, -0.1, 30.1])
def test_a_time_outside_the_window_is_refused(preparations, end_s):
    with pytest.raises(ValueError, match="expected 0 to 30"):
        preparations["base"].encode_text([Segment("a", 0.0, end_s)], language="en", timestamps=True)


def words(count: int) -> str:
    """Return a text of exactly `count` tokens."""
    text = " ".join(["a"] * count)
    assert len(openai_tokenizer("base", "en").encode(text)) == count
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_too_long_text_is_refused_and_never_cut(preparations, kind):
    preparation = preparations[kind]
    n_prefix = 4 if KINDS[kind].multilingual else 2
    inputs, labels = preparation.encode_text([Segment(words(448 - n_prefix))], language="en")
    assert len(inputs) == len(labels) == 448
    with pytest.raises(TooLongError, match=f"{449 - n_prefix} text tokens.*448"):
        preparation.encode_text([Segment(words(449 - n_prefix))], language="en")
    # The time tokens count, too.
    with pytest.raises(TooLongError):
        preparation.encode_text([Segment(words(448 - n_prefix), 0, 1)], language="en", timestamps=True)
    # A prompt makes no room for a longer text.
    with pytest.raises(TooLongError):
        preparation.encode_text([Segment(words(449 - n_prefix))], language="en", prompt="b")


def test_the_token_limits_are_those_of_the_model(quickstart):
    assert (quickstart.max_label_tokens, quickstart.max_prompt_tokens) == (64, 31)
    with pytest.raises(TooLongError, match="the model takes 64"):
        quickstart.encode_text([Segment("x" * 61)], language="hi")
    assert len(quickstart.encode_text([Segment("x" * 60)], language="hi")[0]) == 64


@pytest.mark.parametrize("n_prompt", [1, 5, 223, 224, 600])
@pytest.mark.parametrize("n_text", [3, 219, 220, 221, 443])
def test_a_prompt_is_masked_and_cut_at_its_start(preparations, n_prompt, n_text):
    preparation, openai = preparations["base"], openai_tokenizer("base", "en")
    rng = random.Random(n_prompt)
    prompt = " ".join(rng.choice(["red", "blue", "green"]) for _ in range(n_prompt))
    prompt_tokens = openai.encode(" " + prompt)
    assert len(prompt_tokens) == n_prompt
    inputs, labels = preparation.encode_text([Segment(words(n_text))], language="en", prompt=f" {prompt} ")
    kept = min(n_prompt, 223, 448 - 4 - n_text - 1)
    previous = [openai.sot_prev, *prompt_tokens[-kept:]] if kept else []
    rest = [*openai.sot_sequence_including_notimestamps, *openai.encode(f" {words(n_text)}")]
    assert inputs.tolist() == previous + rest
    assert len(inputs) <= 448
    assert labels.tolist() == [IGNORED] * len(previous) + rest[1:] + [openai.eot]


def test_a_prompt_is_omitted_if_the_text_leaves_no_room(preparations):
    alone = preparations["base"].encode_text([Segment(words(444))], language="en")
    prompted = preparations["base"].encode_text([Segment(words(444))], language="en", prompt="red blue")
    assert [part.tolist() for part in prompted] == [part.tolist() for part in alone]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("segments", [[], [Segment("")], [Segment(" \n"), Segment("")]])
def test_empty_text_is_accepted_only_if_the_row_has_no_speech(preparations, kind, segments):
    preparation = preparations[kind]
    with pytest.raises(ValueError, match="empty text"):
        preparation.encode_text(segments, language="en")
    inputs, labels = preparation.encode_text(segments, language="en", no_speech=True)
    assert inputs.tolist() == preparation.prefix("en")
    assert labels.tolist() == [*preparation.prefix("en")[1:], preparation.eot]


# The real checkpoint


def transcripts(folder) -> list[str]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return [row["transcription"].strip() for row in csv.DictReader(file)]


def test_the_real_checkpoint_gives_the_tokens_of_openai(shared):
    preparation = load_preparation(str(shared / "models" / "whisper-base"))
    for folder, language, count in (("malayalam/train", "ml", 683), ("hindi_tts/train", "hi", 524)):
        texts = transcripts(shared / "data" / folder)
        assert len(texts) == count
        openai = openai_tokenizer("base", language)
        for text in texts:
            inputs, labels = preparation.encode_text([Segment(text)], language=language)
            words = first_words(openai, text, language)
            assert inputs.tolist() == [*openai.sot_sequence_including_notimestamps, *words], text
            assert labels.tolist() == [*inputs[1:], openai.eot]


def test_the_real_alignment_heads_are_those_of_openai(shared):
    import json

    config = json.loads((shared / "models" / "whisper-base" / "generation_config.json").read_text(encoding="utf-8"))
    assert sorted(config["alignment_heads"]) == alignment_heads("base")


def test_the_log_mel_of_the_real_checkpoint_equals_that_of_transformers_extractor(shared):
    preparation = load_preparation(str(shared / "models" / "whisper-base"))
    wave = make_wave(7.3)
    assert np.abs(padded(preparation, wave) - extracted(preparation, wave)).max() < 1e-4


def test_a_text_of_megabytes_is_refused_before_its_tokens_are_counted(preparations, monkeypatch):
    preparation = preparations["base"]
    longest = max(len(preparation.tokenizer.decode([token])) for token in range(preparation.eot))
    assert longest <= LONGEST_TOKEN
    # The text must be refused before it is tokenized, so the function for that is removed.
    monkeypatch.setattr(preparation, "words", None)
    with pytest.raises(TooLongError, match=r"10,000,000 characters of text"):
        preparation.encode_text([Segment("x" * 10_000_000)], language="en")
