"""The scoring normaliser keeps the marks of every script and removes differences that nobody hears."""

from __future__ import annotations

import unicodedata

import pytest

from whisper_peft.evaluation.normalizers import MARK_PRESERVING, as_written, normalize

MARKED_WORDS = {
    "hindi": "हिन्दी में लिखी हुई किताबें",
    "marathi": "पुण्यामध्ये पाऊस पडतोय",
    "malayalam": "മലയാളം സംസാരിക്കുന്നു",
    "tamil": "தமிழ்நாடு",
    "telugu": "తెలుగు వికీపీడియా",
    "kannada": "ಕನ್ನಡ ಭಾಷೆ",
    "bengali": "বাংলা ভাষা",
    "sinhala": "සිංහල",
    "thai": "ภาษาไทย น้ำใจ ที่นี่",
    "lao": "ພາສາລາວ ນ້ຳ",
    "khmer": "ភាសាខ្មែរ",
    "myanmar": "မြန်မာဘာသာ",
    "arabic with harakat": "الْعَرَبِيَّةُ",
    "hebrew with niqqud": "שָׁלוֹם",
    "yoruba": "ẹ̀kọ́",
    "vietnamese": "tiếng việt",
    "tibetan": "བོད",
}


@pytest.mark.parametrize("language", MARKED_WORDS)
def test_marked_words_survive_unchanged(language: str) -> None:
    words = unicodedata.normalize("NFC", MARKED_WORDS[language])
    assert normalize(words) == words


@pytest.mark.parametrize("language", ["hindi", "malayalam", "thai", "arabic with harakat"])
def test_the_normaliser_of_whisper_destroys_the_same_words(language: str) -> None:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    words = MARKED_WORDS[language]
    marks = [character for character in words if unicodedata.category(character) in ("Mn", "Mc")]
    destroyed = BasicTextNormalizer()(words)
    assert len(marks) > 2
    assert not set(marks) & set(destroyed)
    assert all(mark in normalize(words) for mark in marks)


def test_words_that_differ_in_a_mark_stay_different() -> None:
    for word, other in [
        ("कल", "काल"),
        ("അവൻ", "അവൾ"),
        ("അവൻ", "അവന്"),
        ("ไม", "ไม่"),
        ("كَتَبَ", "كُتِبَ"),
        ("schön", "schon"),
    ]:
        assert normalize(word) != normalize(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("नमस्ते, दुनिया। कैसे हैं॥", "नमस्ते दुनिया कैसे हैं"),
        ("Well-known: «Straße» (50 %)…", "well known strasse 50"),
        ("سلام، دنیا؟ خوب۔", "سلام دنیا خوب"),
        ("你好，世界。", "你好 世界"),
        ("ＡＢＣ１２３ ｶﾞｷﾞ", "abc123 ガギ"),
        ("ﻻ ﺳﻼﻡ", "لا سلام"),
        ("a ™ b ´ c ½", "a b c ½"),
        ("I ❤️ 👩‍👩‍👧 tea ☕️", "i tea"),
        ("  tabs\tand\nlines\u00a0and\u3000more ", "tabs and lines and more"),
        ("", ""),
        ("—…!", ""),
    ],
)
def test_punctuation_symbols_case_and_spaces_are_normalised(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't DON’T donʼt don`t don´t", "don't don't don't don't don't"),
        ("'quoted' ‘words’ and the dogs' 'n' more", "quoted words and the dogs n more"),
        ("oʻzbek o‘zbek o'zbek", "o'zbek o'zbek o'zbek"),
        ("м’яч l'été rock'n'roll", "м'яч l'été rock'n'roll"),
        ("a''b ' '' c", "a'b c"),
        ('צה"ל צה״ל', "צה'ל צה'ל"),
        ("Col·legi de Vic·Sud", "coŀlegi de vic sud"),
        ("ինչո՞ւ, այո՛", "ինչու այո"),
        ("မြို့၌ ၏ နေ၏။", "မြို့၌ ၏ နေ၏"),
    ],
)
def test_signs_that_spell_a_word_stay_and_other_signs_go(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Persian, with and without ZWNJ.
        ("می\u200cروم", "میروم"),
        # Half forms of Devanagari.
        ("क्\u200dष", "क्ष"),
        ("क्\u200cष", "क्ष"),
        # A conjunct of Sinhala.
        ("ශ්\u200dරී", "ශ්රී"),
        ("സോഫ്റ്റ്\u200cവെയർ", "സോഫ്റ്റ്വെയർ"),
        # Malayalam chillus, in the old and in the new encoding.
        ("അവന്\u200d", "അവൻ"),
        ("അവള്\u200d അവര്\u200d", "അവൾ അവർ"),
        ("എൻ്റെ", "എന്റെ"),
        # The Bengali khanda ta, in the old and in the new encoding.
        ("হঠাত্\u200d", "হঠাৎ"),
        # The Thai sara am, typed as two characters on either side of the tone.
        ("นํ้า", "น้ำ"),
        ("น้ํา", "น้ำ"),
        ("เเละ", "และ"),
        ("ສໍາ", "ສຳ"),
        # A letter with nukta, as one code point and as two.
        ("क़लम", "क\u093cलम"),
        ("ভো", "ভ\u09c7\u09be"),
        # A tatweel only stretches the word.
        ("كتـــاب", "كتاب"),
        ("cafe\u0301", "CAFÉ"),
        ("co\u00adoperate\u200b", "cooperate"),
        ("\u200fשלום\u200e", "שלום"),
        ("İstanbul", "istanbul"),
        ("ΟΔΟΣ", "οδος"),
        # The positional form of a vowel sign.
        ("ﹷ".join("بت"), "بَت"),
    ],
)
def test_texts_that_look_or_sound_the_same_become_equal(one: str, other: str) -> None:
    assert normalize(one) == normalize(other) != ""


def test_normalising_every_character_twice_changes_nothing_and_leaves_no_symbols() -> None:
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Cs", "Co"):
            continue
        once = normalize(f"a{character}b")
        assert normalize(once) == once, hex(code)
        assert all(unicodedata.category(left)[0] not in "PSC" or left in "' ၌၍၎၏" for left in once), (
            f"{code:x} left {once!r}"
        )


def test_letters_digits_and_marks_are_never_deleted() -> None:
    """Only the tatweel, the fillers and the variation selectors go; the characters are those that Python knows."""
    fillers = [0x34F, 0x640, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0]
    documented = {*fillers, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
    kept = ("Lu", "Ll", "Lt", "Lo", "Lm", "Nd", "Nl", "No", "Mn", "Mc")
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in kept and code not in documented:
            assert normalize(f"a{chr(code)}b") not in ("ab", "a b"), hex(code)


def test_as_written_changes_only_the_encoding_and_outer_spaces() -> None:
    assert as_written(" Cafe\u0301,  “OK”।\n") == "Café, “OK”।"
    assert as_written("می\u200cروم") == "می\u200cروم"


def test_the_name_of_the_normaliser_has_a_version() -> None:
    assert MARK_PRESERVING == "whisper-peft mark-preserving v1"
