"""Texts as Whisper writes them: the space before a segment (row 4), and special tokens in a text (row 10)."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from conftest import QUICKSTART, make_wave
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_vocabulary import openai_tokenizer, save_processor_files, whisper_config

from whisper_peft import UserError, load_model
from whisper_peft.data.columns import build_row
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.features import IGNORED, Preparation
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.subtitles import cut_recording
from whisper_peft.data.text import begins_with_space, clean_text, join_segments
from whisper_peft.data.words import Words
from whisper_peft.evaluation import chunks
from whisper_peft.evaluation.chunks import transcribe_in_chunks
from whisper_peft.evaluation.clip_transcripts import Transcript, Transcripts, training_limit
from whisper_peft.evaluation.pieces import Decoding, Piece, assemble, prompt_ids
from whisper_peft.evaluation.scoring import figures
from whisper_peft.model.build import load_preparation

# Language, two segments, and whether the space before each is a token of its own in the multilingual vocabulary.
SPACED = {
    "en": ("Hello there.", "And 5 more.", False),
    "de": ("Übermorgen", "„Ja“, sagte er.", False),
    "ru": ("Привет", "Пока", False),
    "ar": ("مرحبا", "كيف الحال", False),
    "ko": ("안녕하세요", "반갑습니다", False),
    "hi": ("नमस्ते", "यह मेरा है", False),
    "ta": ("தமிழ்", "வணக்கம்", False),
    "ml": ("മലയാളം", "ഒരു", True),
    "te": ("తెలుగు", "నేను", True),
    "bn": ("বাংলা", "আমি", True),
    "hy": ("Բարև", "Այո", True),
    "lo": ("ສະບາຍດີ", "ຂອບໃຈ", True),
    "km": ("ភាសា", "ខ្មែរ", False),
}
UNSPACED = {
    "zh": ("你好世界", "我们走吧。"),
    "ja": ("こんにちは", "カタカナ"),
    "th": ("สวัสดี", "วันนี้"),
}
KINDS = ("base.en", "base")
# Pieces of which the hostile texts are made.
PIECES = [
    "<|0.00|>",
    "<|2.00|>",
    "<|29.98|>",
    "<|30.00|>",
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|hi|>",
    "<|yue|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|nospeech|>",
    "<|nocaptions|>",
    "<|notimestamps|>",
    "<|startofprev|>",
    "<|startoflm|>",
    "<|",
    "|>",
    "<",
    "|",
    ">",
    "2.00",
    "endoftext",
    " ",
    "  ",
    ".",
    "a",
    "B",
    "क",
    "ഒ",
    "你",
    "é",
    "🙂",
    "'s",
    " .",
    "\u200d",
]


@pytest.fixture(scope="module")
def preparations(tmp_path_factory) -> dict[str, Preparation]:
    """The preparation of each kind of openai's checkpoints, and of the quickstart."""
    by_kind = {"quickstart": load_preparation(str(QUICKSTART / "model"))}
    for kind in KINDS:
        folder = save_processor_files(kind, tmp_path_factory.mktemp(kind))
        whisper_config(kind).save_pretrained(str(folder))
        by_kind[kind] = load_preparation(str(folder))
    return by_kind


@pytest.fixture
def quickstart(preparations) -> Preparation:
    return preparations["quickstart"]


def text_of(preparation: Preparation, labels: np.ndarray) -> str:
    """Return the text in labels with all its spaces, without prefix, times and end."""
    return preparation.words.decode(labels.tolist())


# Row 4: the space before a segment


@pytest.mark.parametrize("language", SPACED)
def test_row_04_each_segment_with_times_begins_with_a_space(preparations, language):
    first, second, lone = SPACED[language]
    preparation, openai = preparations["base"], openai_tokenizer("base", language)
    segments = [Segment(first, 0.0, 1.0), Segment(f"  {second}\n", 1.0, 2.0)]
    inputs, labels = preparation.encode_text(segments, language=language, timestamps=True)
    begin = openai.timestamp_begin
    expected = [begin, *openai.encode(f" {first}"), begin + 50, begin + 50, *openai.encode(f" {second}"), begin + 100]
    assert inputs.tolist() == [*openai.sot_sequence, *expected]
    assert (openai.encode(f" {first}")[0] == openai.encode(" ")[0]) == lone
    assert text_of(preparation, labels) == f" {first} {second}"
    assert preparation.decode(labels) == f"{first} {second}"


@pytest.mark.parametrize("language", SPACED)
def test_row_04_without_times_only_a_lone_space_token_at_the_start_is_removed(preparations, language):
    first, second, lone = SPACED[language]
    preparation, openai = preparations["base"], openai_tokenizer("base", language)
    inputs, labels = preparation.encode_text([Segment(first), Segment(second)], language=language)
    start = openai.encode(f" {first}")[int(lone) :]
    assert inputs.tolist() == [*openai.sot_sequence_including_notimestamps, *start, *openai.encode(f" {second}")]
    assert preparation.decode(labels) == f"{first} {second}"


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("language", UNSPACED)
def test_row_04_segments_in_scripts_without_spaces_get_no_space(preparations, language, timestamps):
    first, second = UNSPACED[language]
    preparation = preparations["base"]
    segments = [Segment(f" {first}", 0.0, 1.0), Segment(second, 1.0, 2.0)]
    _, labels = preparation.encode_text(segments, language=language, timestamps=timestamps)
    assert text_of(preparation, labels) == first + second
    _, labels = preparation.encode_text([Segment("So be it.", 0.0, 1.0)], language=language, task="translate")
    # A translation is in English, so it begins with a space.
    assert text_of(preparation, labels) == " So be it."


@pytest.mark.parametrize(
    ("text", "language", "spaced"),
    [
        ("2024年に", "ja", False),
        ("「はい」と", "ja", False),
        ("々", "ja", False),
        ("ｶﾅ", "ja", False),
        ("2024", "zh", False),
        ("...", "th", False),
        ("我哋", "yue", False),
        ("ㄅㄆ", "zh", False),
        ("OK，好", "zh", True),
        ("Tshuag no", "zh", True),
        ("2024", "en", True),
        ("2024", None, True),
        ("你好", None, False),
        ("你好", "ko", True),
        ("Hello", None, True),
        ("🙂", "hi", True),
    ],
)
def test_row_04_the_language_and_the_first_letter_decide_about_the_space(preparations, text, language, spaced):
    assert begins_with_space(text, language) == spaced
    tokens = preparations["base"].words.of_segment(f" {text} ", language)
    assert preparations["base"].words.decode(tokens) == (f" {text}" if spaced else text)


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["one ", " two", "", " "], "one two"),
        (["यह", "मेरा है"], "यह मेरा है"),
        (["你好", "世界"], "你好世界"),
        (["こんにちは", "OK"], "こんにちは OK"),
        (["สวัสดี", "วันนี้"], "สวัสดีวันนี้"),
        ([], ""),
    ],
)
def test_row_04_segments_are_joined_as_the_model_joins_them(preparations, texts, joined):
    assert join_segments(texts) == joined
    segments = [Segment(text, number, number + 1.0) for number, text in enumerate(texts)]
    for timestamps in (False, True):
        _, labels = preparations["base"].encode_text(
            segments,
            language="ja" if joined and not joined.isascii() and "य" not in joined else "hi",
            timestamps=timestamps,
            no_speech=True,
        )
        assert preparations["base"].decode(labels) == joined


@pytest.mark.parametrize("given_text", [None, "你好世界", "你好 世界"])
def test_row_04_a_chinese_recording_is_learnt_without_spaces_between_segments(quickstart, given_text, tmp_path):
    audio = str(tmp_path / "a.wav")
    soundfile.write(audio, make_wave(2.0), 16000)
    fields = {
        "audio": audio,
        "segments": [
            {"start": 0, "end": 1, "text": "你好"},
            {"start": 1, "end": 2, "text": "世界"},
        ],
    }
    if given_text is not None:
        fields["text"] = given_text
    row = build_row(fields, tuple(fields), "", "here")
    assert row.text == (given_text or "你好世界")
    dataset = SpeechDataset([row], quickstart, language="zh", timestamps=1.0)
    labels = dataset[0].labels
    assert text_of(quickstart, labels) == "你好世界"
    assert (labels >= quickstart.first_timestamp).sum() == 4
    (clip,) = cut_recording(Row("a.wav", ""), row.segments)
    assert clip.text == "你好世界"


@pytest.mark.parametrize("kind", [*KINDS, "quickstart"])
@given(text=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=12).map("".join))
@settings(deadline=None, max_examples=60)
def test_row_04_the_first_token_without_times_is_never_a_suppressed_token(preparations, kind, text):
    preparation = preparations[kind]
    clean = clean_text(text)
    if clean and preparation.n_tokens(clean) < 60:
        inputs, _ = preparation.encode_text([Segment(clean)], language="hi")
        n_prefix = len(preparation.prefix("hi"))
        (lone_space,) = preparation.words.encode(" ")
        assert inputs[n_prefix] not in (lone_space, preparation.eot)


def test_row_04_the_prompt_begins_with_a_space(preparations):
    preparation, openai = preparations["base"], openai_tokenizer("base", "ml")
    for prompt in ("മലയാളം", "before", "你好"):
        inputs, labels = preparation.encode_text([Segment("ഒരു")], language="ml", prompt=prompt)
        previous = [openai.sot_prev, *openai.encode(f" {prompt}")]
        assert inputs[: len(previous)].tolist() == previous
        assert (labels[: len(previous)] == IGNORED).all()


def pieces_of(preparation: Preparation, texts: list[str]) -> list[Piece]:
    """Return what a model writes for a recording: each text as a segment of one second."""
    pieces = []
    for number, text in enumerate(texts):
        time = preparation.first_timestamp + 50 * number
        ids = [time, *preparation.words.encode(text), time + 50]
        pieces.append(Piece(float(number), number + 1.0, ids, True))
    return pieces


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([" नमस्ते।", " यह", " मेरा है"], "नमस्ते। यह मेरा है"),
        ([" one ", " two", "  three"], "one two three"),
        # Every other program shows this joint in the same way.
        (["In a village.", "Word"], "In a village.Word"),
        (["你好", "世界"], "你好世界"),
        (["你好", " OK"], "你好 OK"),
        ([" a", "  ", " b"], "a b"),
    ],
)
def test_row_04_transcribe_joins_segments_with_the_spaces_that_the_model_writes(quickstart, texts, expected):
    transcript = assemble(quickstart, pieces_of(quickstart, texts), 10.0)
    assert transcript["text"] == expected
    assert [segment["text"] for segment in transcript["segments"]] == [text.strip() for text in texts if text.strip()]


@pytest.mark.parametrize("said", [["In a village.", "Word"], [" one", " <|2.00|> two"], [" नमस्ते।", " यह"]])
def test_row_04_and_10_transcription_in_chunks_shows_what_the_model_wrote(tiny_model, monkeypatch, said):
    model, preparation, _ = load_model(tiny_model)
    ids = [token for piece in pieces_of(preparation, said) for token in piece.ids]
    monkeypatch.setattr(chunks, "_decode", lambda *given: [ids])
    transcript = transcribe_in_chunks(model, preparation, make_wave(2.5), Decoding("hi"))
    assert transcript["text"] == "".join(said).strip()
    assert [segment["text"] for segment in transcript["segments"]] == [text.strip() for text in said]


# Row 10: special tokens in texts are plain characters


@pytest.mark.parametrize("prompt", ["<|2.00|> <|endoftext|>", "Muthai <|hi|>"])
def test_row_10_special_tokens_in_the_prompt_of_transcribe_are_plain_characters(preparations, prompt):
    for preparation in preparations.values():
        ids, _ = prompt_ids(preparation, prompt)
        assert ids[0] == preparation.token_id("<|startofprev|>")
        assert all(token < preparation.eot for token in ids[1:])
        assert preparation.words.decode(ids[1:]) == f" {prompt}"


def test_half_a_character_in_the_prompt_of_transcribe_is_refused(quickstart):
    with pytest.raises(UserError, match=r"--prompt: half a character.*UTF-8"):
        prompt_ids(quickstart, "a \udcff")


TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=20).map("".join)


@pytest.mark.parametrize("kind", [*KINDS, "quickstart"])
@given(text=TEXTS, prompt=TEXTS)
@settings(deadline=None, max_examples=100)
def test_row_10_special_tokens_in_a_transcript_are_plain_characters(preparations, kind, text, prompt):
    preparation = preparations[kind]
    text, prompt = clean_text(text), clean_text(prompt)
    words = preparation.words.encode(text)
    assert all(0 <= token < preparation.eot for token in words)
    assert preparation.decode(words) == text
    assert preparation.words.decode(words) == text
    try:
        inputs, labels = preparation.encode_text([Segment(text)], language="hi", no_speech=True, prompt=prompt)
    except ValueError:
        # The text is longer than the model takes.
        return
    prefix = preparation.prefix("hi")
    # Exactly one token is the start of the transcript.
    (start,) = np.flatnonzero(inputs == prefix[0])
    assert inputs[start : start + len(prefix)].tolist() == prefix
    assert (inputs[start + len(prefix) :] < preparation.eot).all()
    assert (inputs[1:start] < preparation.eot).all() and (labels[:start] == IGNORED).all()
    assert preparation.decode(labels[start:]) == text
    if kind != "quickstart" and text:
        assert preparation.n_tokens(text) == len(openai_tokenizer(kind).encode(f" {text}", disallowed_special=()))


@pytest.mark.parametrize("kind", [*KINDS, "quickstart"])
def test_row_10_times_in_the_text_of_a_segment_are_plain_characters(preparations, kind):
    preparation = preparations[kind]
    text = "<|2.00|> hello <|2.98|>"
    inputs, labels = preparation.encode_text([Segment(text, 0.0, 1.0)], language="hi", timestamps=True)
    times = inputs[inputs >= preparation.first_timestamp]
    assert times.tolist() == [preparation.first_timestamp, preparation.first_timestamp + 50]
    assert preparation.decode(labels) == text


def test_row_10_tokens_that_a_checkpoint_added_are_plain_characters(tmp_path):
    from transformers import AddedToken, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(str(QUICKSTART / "model"))
    processor.tokenizer.add_tokens(["hello", AddedToken("<laugh>", special=True)])
    first_added = len(processor.tokenizer) - 2
    preparation = load_preparation(str(QUICKSTART / "model"))
    words = Words(processor.tokenizer, markers=preparation.words._markers)
    for text in ("hello <laugh> hello", "<laugh>", "xhello"):
        assert max(words.encode(text)) < preparation.eot
        assert words.decode(words.encode(text)) == text
    # What such a checkpoint generates is still shown, unless it is special.
    assert words.decode([first_added, *words.encode(" x"), first_added + 1]) == "hello x"


def test_row_10_token_counts_and_limits_count_special_tokens_as_plain_characters(preparations):
    preparation = preparations["base"]
    row = Row("none.wav", "<|2.00|>" * 20, language="en")
    count = len(openai_tokenizer("base").encode(" " + row.text, disallowed_special=()))
    assert preparation.n_tokens(row.text) == count > 100
    assert training_limit(SpeechDataset([row], preparation), preparation) == int(1.5 * count) + 10


def test_row_10_a_reference_keeps_special_tokens_as_plain_characters(preparations):
    preparation = preparations["base"]
    text = "<|2.00|> hello <|endoftext|>"
    dataset = SpeechDataset([Row("none.wav", text, language="en")], preparation)
    heard = preparation.decode(preparation.words.encode(f" {text}"))
    scores = figures(dataset, Transcripts([Transcript(0, heard, 10, False)]))
    assert dataset.text(0) == heard == text
    assert scores["cer"] == scores["wer"] == scores["cer_normalized"] == 0
    worse = figures(dataset, Transcripts([Transcript(0, "hello", 1, False)]))
    assert worse["wer"] > 0 and worse["wer_normalized"] > 0


@pytest.mark.parametrize("text", ["\ud800", "a \udfff b"])
def test_half_a_character_in_a_text_or_a_prompt_is_refused(preparations, text):
    preparation = preparations["quickstart"]
    with pytest.raises(ValueError, match="half a character"):
        preparation.encode_text([Segment(text)], language="hi")
    with pytest.raises(ValueError, match="half a character"):
        preparation.encode_text([Segment("a")], language="hi", prompt=text)
    # Cutting a recording into clips only counts tokens, and must not fail.
    assert preparation.n_tokens(text) > 0


def test_the_tokens_of_a_text_of_megabytes_are_counted(preparations):
    assert preparations["base"].n_tokens("x" * 10_000_000) > 448
