"""Cleaning keeps every character that spells a word; a language is found by each of its names."""

from __future__ import annotations

import random
import unicodedata

import pytest

from whisper_peft.data.text import LANGUAGE_ALIASES, LANGUAGES, clean_text, has_spaces, language_code
from whisper_peft.errors import UserError


def test_languages_are_those_of_transformers_and_openai_in_their_order():
    from transformers.models.whisper import tokenization_whisper as transformers_own
    from whisper import tokenizer as openai_own

    assert len(LANGUAGES) == 100
    for theirs in (transformers_own, openai_own):
        # The order of the languages is that of their tokens.
        assert list(LANGUAGES.items()) == list(theirs.LANGUAGES.items())
        for name, code in theirs.TO_LANGUAGE_CODE.items():
            assert language_code(name) == code


def test_every_code_name_and_alias_leads_to_a_known_code():
    for code, name in LANGUAGES.items():
        for spelling in (code, name, name.title(), code.upper(), f" {name} "):
            assert language_code(spelling) == code
    assert set(LANGUAGE_ALIASES.values()) <= set(LANGUAGES)
    assert not set(LANGUAGE_ALIASES) & (set(LANGUAGES) | set(LANGUAGES.values()))


@pytest.mark.parametrize(
    ("locale", "code"),
    [
        ("hi-IN", "hi"),
        ("hi_in", "hi"),
        ("zh-TW", "zh"),
        ("pt_BR", "pt"),
        ("cmn_hans_cn", "zh"),
        ("jv", "jw"),
        ("nb-NO", "no"),
    ],
)
def test_a_locale_of_a_data_set_leads_to_its_language_code(locale, code):
    assert language_code(locale) == code


@pytest.mark.parametrize(("name", "close"), [("hindii", "hindi"), ("telegu", "telugu"), ("malayalm", "malayalam")])
def test_the_error_for_an_unknown_language_names_close_ones_and_the_remedy(name, close):
    with pytest.raises(UserError, match=f"did you mean.*{close}") as refused:
        language_code(name)
    assert "--language-token LANG" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["luganda", "lg", "", "-", "or", "klingon"])
def test_a_language_whisper_does_not_know_is_refused(name):
    with pytest.raises(UserError, match="--language-token"):
        language_code(name)


def test_eight_languages_are_written_without_spaces():
    assert {code for code in LANGUAGES if not has_spaces(code)} == {"zh", "yue", "ja", "th", "lo", "my", "km", "bo"}


def test_whitespace_is_collapsed_and_stripped():
    assert clean_text("  यह\u00a0\tएक \n वाक्य\u2003है। ") == "यह एक वाक्य है।"
    assert clean_text(" \n\t ") == clean_text("") == ""


def test_a_text_gets_the_normal_form_that_is_set():
    decomposed = unicodedata.normalize("NFD", "Über क़लम")
    assert clean_text(decomposed) == unicodedata.normalize("NFC", decomposed)
    assert clean_text(decomposed, normal_form=None) == decomposed
    assert clean_text("ﬁ ２", normal_form="NFKC") == "fi 2"
    with pytest.raises(UserError, match=r"normal_form.*'nfc'.*NFC"):
        clean_text("a", normal_form="nfc")


def test_cleaning_changes_only_spaces_by_default():
    for text in ("Don't — stop!", "Ärger 3,5 % (ja?)", "कमल, 'राम'। ५०₹"):
        assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Don't stop, 'Tom's' dog!", "Don't stop Tom's dog"),
        ("rock ’n’ roll — l’été", "rock n roll l’été"),
        ("well-known (really): yes…", "well known really yes"),
        ("क्या हुआ? सच|मुच॥ वह आया।", "क्या हुआ सच मुच वह आया"),
        ("അവൻ\u200cപോയി; നന്മ\u200dയുടെ!", "അവൻ\u200cപോയി നന്മ\u200dയുടെ"),
        ("السَّلامُ عَلَيْكُم؟ نعم، لا.", "السَّلامُ عَلَيْكُم نعم لا"),
        ("col·legi · fi", "col·legi fi"),
        ("你好。世界！", "你好 世界"),
        ("בית־ספר ג׳ירפה", "בית ספר ג׳ירפה"),
        ("price: ₹500 + $3", "price ₹500 + $3"),
        ("?!", ""),
    ],
)
def test_cleaning_removes_punctuation_and_keeps_spelling(text, clean):
    assert clean_text(text, remove_punctuation=True) == clean


def test_cleaning_keeps_marks_letters_digits_and_joiners_of_every_script():
    chance = random.Random(0)
    keep = [chr(c) for c in range(0x20, 0x30000) if unicodedata.category(chr(c))[0] in "LMN"] + ["\u200c", "\u200d"]
    text = " ".join("".join(chance.choices(keep, k=5)) for _ in range(2000))
    assert clean_text(text, normal_form=None, remove_punctuation=True) == text


def test_cleaning_twice_changes_nothing_more():
    chance = random.Random(1)
    signs = "aB İß éकिँंൻ\u200cന്\u200dع َا，。'’-·,.;:!?|\t\n\u00a0ǅﬃ①"
    for _ in range(3000):
        text = "".join(chance.choices(signs, k=12))
        for options in (
            {},
            {"normal_form": "NFKC", "lowercase": True, "remove_punctuation": True},
            {"normal_form": "NFC", "lowercase": True},
            {"normal_form": None, "remove_punctuation": True},
        ):
            once = clean_text(text, **options)
            assert clean_text(once, **options) == once


def test_cleaning_can_lower_the_case():
    assert clean_text("ÀB Ωμέγα हिंदी", lowercase=True) == "àb ωμέγα हिंदी"
