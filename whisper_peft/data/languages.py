"""The names that people and data sets give the languages that Whisper knows: codes, English names and own names.

Each table leads from a name to Whisper's code, except `LANGUAGES`, which leads from the code to Whisper's English name.
`language_code` in text.py looks a name up in all of them.

Example:
    >>> CODES_BY_ISO_639["hin"], NATIVE_NAMES["हिन्दी"], LANGUAGES["hi"]
    ('hi', 'hi', 'hindi')
"""

from __future__ import annotations

# These are tables, several entries a line: one entry a line would be 500 lines.
# fmt: off

# In the order of Whisper's language tokens. Whisper knows the last one, Cantonese, from large-v3 on.
LANGUAGES: dict[str, str] = {
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian", "ko": "korean",
    "fr": "french", "ja": "japanese", "pt": "portuguese", "tr": "turkish", "pl": "polish", "ca": "catalan",
    "nl": "dutch", "ar": "arabic", "sv": "swedish", "it": "italian", "id": "indonesian", "hi": "hindi",
    "fi": "finnish", "vi": "vietnamese", "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay",
    "cs": "czech", "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian",
    "th": "thai", "ur": "urdu", "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian", "la": "latin",
    "mi": "maori", "ml": "malayalam", "cy": "welsh", "sk": "slovak", "te": "telugu", "fa": "persian",
    "lv": "latvian", "bn": "bengali", "sr": "serbian", "az": "azerbaijani", "sl": "slovenian", "kn": "kannada",
    "et": "estonian", "mk": "macedonian", "br": "breton", "eu": "basque", "is": "icelandic", "hy": "armenian",
    "ne": "nepali", "mn": "mongolian", "bs": "bosnian", "kk": "kazakh", "sq": "albanian", "sw": "swahili",
    "gl": "galician", "mr": "marathi", "pa": "punjabi", "si": "sinhala", "km": "khmer", "sn": "shona",
    "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan", "ka": "georgian", "be": "belarusian",
    "tg": "tajik", "sd": "sindhi", "gu": "gujarati", "am": "amharic", "yi": "yiddish", "lo": "lao", "uz": "uzbek",
    "fo": "faroese", "ht": "haitian creole", "ps": "pashto", "tk": "turkmen", "nn": "nynorsk", "mt": "maltese",
    "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar", "bo": "tibetan", "tl": "tagalog", "mg": "malagasy",
    "as": "assamese", "tt": "tatar", "haw": "hawaiian", "ln": "lingala", "ha": "hausa", "ba": "bashkir",
    "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}

# Other names that Whisper itself takes, then codes and names that data sets use and Whisper does not.
LANGUAGE_ALIASES: dict[str, str] = {
    "burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb", "pushto": "ps",
    "panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si", "castilian": "es", "mandarin": "zh",
    # Whisper's code for Javanese (jw) is not that of ISO 639.
    "cmn": "zh", "farsi": "fa", "fil": "tl", "filipino": "tl", "iw": "he", "jv": "jw", "nb": "no", "bokmal": "no",
    "ji": "yi", "mo": "ro", "dari": "fa",
}

# By their codes in ISO 639-3, and in ISO 639-2/B where it has another code. A macrolanguage (zho) is here together with
# the member that is its standard form (cmn). Other members, such as Egyptian Arabic, are other speech and are missing.
CODES_BY_ISO_639: dict[str, str] = {
    "eng": "en", "zho": "zh", "chi": "zh", "deu": "de", "ger": "de", "spa": "es", "rus": "ru", "kor": "ko",
    "fra": "fr", "fre": "fr", "jpn": "ja", "por": "pt", "tur": "tr", "pol": "pl", "cat": "ca", "nld": "nl",
    "dut": "nl", "ara": "ar", "arb": "ar", "swe": "sv", "ita": "it", "ind": "id", "hin": "hi", "fin": "fi",
    "vie": "vi", "heb": "he", "ukr": "uk", "ell": "el", "gre": "el", "msa": "ms", "may": "ms", "zsm": "ms",
    "zlm": "ms", "ces": "cs", "cze": "cs", "ron": "ro", "rum": "ro", "dan": "da", "hun": "hu", "tam": "ta",
    "nor": "no", "nob": "no", "tha": "th", "urd": "ur", "hrv": "hr", "scr": "hr", "bul": "bg", "lit": "lt",
    "lat": "la", "mri": "mi", "mao": "mi", "mal": "ml", "cym": "cy", "wel": "cy", "slk": "sk", "slo": "sk",
    "tel": "te", "fas": "fa", "per": "fa", "pes": "fa", "prs": "fa", "lav": "lv", "lvs": "lv", "ben": "bn",
    "srp": "sr", "scc": "sr", "aze": "az", "azj": "az", "slv": "sl", "kan": "kn", "est": "et", "ekk": "et",
    "mkd": "mk", "mac": "mk", "bre": "br", "eus": "eu", "baq": "eu", "isl": "is", "ice": "is", "hye": "hy",
    "arm": "hy", "nep": "ne", "npi": "ne", "mon": "mn", "khk": "mn", "bos": "bs", "kaz": "kk", "sqi": "sq",
    "alb": "sq", "als": "sq", "swa": "sw", "swh": "sw", "glg": "gl", "mar": "mr", "pan": "pa", "sin": "si",
    "khm": "km", "sna": "sn", "yor": "yo", "som": "so", "afr": "af", "oci": "oc", "kat": "ka", "geo": "ka",
    "bel": "be", "tgk": "tg", "snd": "sd", "guj": "gu", "amh": "am", "yid": "yi", "ydd": "yi", "lao": "lo",
    "uzb": "uz", "uzn": "uz", "fao": "fo", "hat": "ht", "pus": "ps", "pbu": "ps", "pbt": "ps", "tuk": "tk",
    "nno": "nn", "mlt": "mt", "san": "sa", "ltz": "lb", "mya": "my", "bur": "my", "bod": "bo", "tib": "bo",
    "tgl": "tl", "mlg": "mg", "plt": "mg", "asm": "as", "tat": "tt", "lin": "ln", "hau": "ha", "bak": "ba",
    "jav": "jw", "sun": "su",
}

# English names that data sets use besides Whisper's.
ENGLISH_NAMES: dict[str, str] = {
    "mandarin chinese": "zh", "chinese mandarin": "zh", "simplified chinese": "zh", "traditional chinese": "zh",
    "cantonese chinese": "yue", "chinese cantonese": "yue", "yue chinese": "yue", "zh yue": "yue",
    "standard arabic": "ar", "modern standard arabic": "ar", "modern greek": "el", "greek modern": "el",
    "norwegian bokmal": "no", "bokmal norwegian": "no", "norwegian nynorsk": "nn", "nynorsk norwegian": "nn",
    "american english": "en", "british english": "en", "indian english": "en", "brazilian portuguese": "pt",
    "european portuguese": "pt", "mexican spanish": "es", "canadian french": "fr", "iranian persian": "fa",
    "western persian": "fa", "tibetan standard": "bo", "standard tibetan": "bo", "central khmer": "km",
    "khmer central": "km", "haitian creole french": "ht", "byelorussian": "be", "bengali bangla": "bn",
    "bangla": "bn", "standard malay": "ms", "tajiki": "tg", "azeri": "az",
}

# The names that speakers give their languages. If two spellings are usual, both are here.
NATIVE_NAMES: dict[str, str] = {
    "中文": "zh", "汉语": "zh", "漢語": "zh", "普通话": "zh", "普通話": "zh", "国语": "zh", "國語": "zh",
    "deutsch": "de",
    "español": "es", "castellano": "es", "русский": "ru", "русский язык": "ru", "한국어": "ko", "français": "fr",
    "日本語": "ja", "português": "pt", "türkçe": "tr", "polski": "pl", "català": "ca", "valencià": "ca",
    "nederlands": "nl", "vlaams": "nl", "العربية": "ar", "svenska": "sv", "italiano": "it", "bahasa indonesia": "id",
    "हिन्दी": "hi", "हिंदी": "hi", "suomi": "fi", "tiếng việt": "vi", "עברית": "he", "українська": "uk",
    "ελληνικά": "el", "bahasa melayu": "ms", "čeština": "cs", "česky": "cs", "română": "ro", "dansk": "da",
    "magyar": "hu", "தமிழ்": "ta", "norsk": "no", "norsk bokmål": "no", "ไทย": "th", "ภาษาไทย": "th", "اردو": "ur",
    "hrvatski": "hr", "български": "bg", "lietuvių": "lt", "lietuvių kalba": "lt", "latina": "la", "te reo māori": "mi",
    "മലയാളം": "ml", "cymraeg": "cy", "slovenčina": "sk", "తెలుగు": "te", "فارسی": "fa", "latviešu": "lv", "বাংলা": "bn",
    "српски": "sr", "srpski": "sr", "azərbaycan": "az", "azərbaycanca": "az", "slovenščina": "sl", "ಕನ್ನಡ": "kn",
    "eesti": "et", "eesti keel": "et", "македонски": "mk", "brezhoneg": "br", "euskara": "eu", "íslenska": "is",
    "հայերեն": "hy", "नेपाली": "ne", "монгол": "mn", "bosanski": "bs", "қазақша": "kk", "қазақ тілі": "kk",
    "shqip": "sq", "kiswahili": "sw", "galego": "gl", "मराठी": "mr", "ਪੰਜਾਬੀ": "pa", "پنجابی": "pa", "සිංහල": "si",
    "ខ្មែរ": "km", "ភាសាខ្មែរ": "km", "chishona": "sn", "yorùbá": "yo", "soomaali": "so", "soomaaliga": "so",
    "afrikaans": "af", "ქართული": "ka", "беларуская": "be", "тоҷикӣ": "tg", "سنڌي": "sd", "ગુજરાતી": "gu",
    "አማርኛ": "am", "ייִדיש": "yi", "יידיש": "yi", "ລາວ": "lo", "ພາສາລາວ": "lo", "oʻzbek": "uz", "oʻzbekcha": "uz",
    "o'zbek": "uz", "ўзбек": "uz", "føroyskt": "fo", "kreyòl ayisyen": "ht", "پښتو": "ps", "türkmençe": "tk",
    "türkmen": "tk", "norsk nynorsk": "nn", "malti": "mt", "संस्कृतम्": "sa", "संस्कृत": "sa", "lëtzebuergesch": "lb",
    "မြန်မာဘာသာ": "my", "မြန်မာ": "my", "བོད་ཡིག": "bo", "བོད་སྐད": "bo", "অসমীয়া": "as", "татарча": "tt", "татар": "tt",
    "ʻōlelo hawaiʻi": "haw", "lingála": "ln", "harshen hausa": "ha", "башҡортса": "ba", "basa jawa": "jw",
    "basa sunda": "su", "粵語": "yue", "粤语": "yue", "廣東話": "yue", "广东话": "yue", "廣州話": "yue",
}
# Codes of languages that are not also codes of countries. Behind another language, such a code names a second language.
TWO_LANGUAGES = frozenset({
    "cs", "da", "el", "en", "eu", "fa", "ha", "he", "hi", "hy", "ja", "jw", "ka", "kk", "ko", "ln", "lo", "mi", "nn",
    "oc", "sq", "su", "sw", "ta", "te", "uk", "ur", "yi", "yo", "zh",
})
# fmt: on

# These words stand in a language column where there is no value. "nan" is what pandas writes for a missing value.
NOT_GIVEN = frozenset({"", "und", "unknown", "undefined", "undetermined", "none", "null", "nan", "n/a", "na", "-", "?"})
