"""Scores: spaces in scripts that write none between words, and one figure for each set."""

from __future__ import annotations

import pytest
from conftest import make_speech, tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft import runs, score, train
from whisper_peft.checking.checks import check_sources
from whisper_peft.checking.findings import SourceRows
from whisper_peft.cli.lines import train_lines
from whisper_peft.data.rows import Row
from whisper_peft.data.text import is_mostly_spaceless, is_spaceless, without_word_spaces
from whisper_peft.delivery.publishing import publish
from whisper_peft.errors import UserError
from whisper_peft.evaluation.metrics import bootstrap_interval
from whisper_peft.training.defaults import selecting_metric

SEGMENTED = {
    "chinese": "而 对 楼市 成交",
    "japanese": "今日 は いい 天気",
    "kana": "ラーメン を たべる",
    "thai": "ภาษา ไทย น้ำใจ",
    "lao": "ພາສາ ລາວ",
    "khmer": "ភាសា ខ្មែរ",
    "burmese": "မြန်မာ စာ",
    "tibetan": "བོད་ སྐད་ ཡིག",
    "javanese": "ꦧꦱ ꦗꦮ",
    "traditional": "臺灣 大學",
    "rare": "\U00020000 \U00020001",
}


@pytest.mark.parametrize("language", list(SEGMENTED))
def test_row_09_spaces_in_a_script_without_word_spaces_are_no_errors(language):
    text = SEGMENTED[language]
    joined = text.replace(" ", "")
    for reference, prediction in ((text, joined), (joined, text)):
        figures = score([reference], [prediction])
        assert figures["cer_normalized"] == 0.0
        # The CER as written still counts the spaces.
        assert figures["cer"] > 0.0
        assert bootstrap_interval([reference], [prediction], metric="cer_normalized", samples=5) == (0.0, 0.0)


def test_row_09_spaces_between_words_of_other_scripts_still_count():
    assert without_word_spaces("我 用 Visual Studio 写 代码") == "我用Visual Studio写代码"
    assert score(["我 用 Visual Studio 写代码"], ["我用 Visual Studio 写 代码"])["cer_normalized"] == 0.0
    assert score(["我用 Visual Studio"], ["我用VisualStudio"])["cer_normalized"] > 0.0
    for reference, prediction in (("to day", "today"), ("नम स्ते", "नमस्ते"), ("오늘 은", "오늘은"), ("漢字 를", "漢字를")):
        assert score([reference], [prediction])["cer_normalized"] > 0.0, reference


def test_row_09_the_script_of_the_reference_decides_whether_spaces_count():
    assert not is_spaceless("漢字를 쓴다") and not is_spaceless("Word 3.5") and is_spaceless("3 月")
    assert score(["漢字를 쓴다"], ["漢字 를 쓴다"])["cer_normalized"] > 0.0
    # Beside an empty reference, both characters are errors.
    assert score([""], ["你 好"])["cer_normalized"] == 2.0
    assert score(["你好"], [""])["cer_normalized"] == 1.0


def test_row_09_the_selecting_metric_for_scripts_without_spaces_is_the_normalised_cer():
    assert selecting_metric("cer", {"ja"}, []) == "cer_normalized"
    # With a borrowed language token, the references tell the script.
    assert selecting_metric("cer", {None}, ["而 对 楼市"]) == "cer_normalized"
    assert selecting_metric("cer", {"hi"}, ["नमस्ते"]) == "cer"
    assert selecting_metric("wer", {"ja"}, []) == "wer" and selecting_metric("loss", {"ja"}, []) == "loss"
    assert is_mostly_spaceless(["我用 Python"]) is False and is_mostly_spaceless(["我用计算机写代码 OK"]) is True


def test_row_09_the_normalised_cer_selects_the_checkpoint(tiny_model, speech, tmp_path, monkeypatch):
    """The references have spaces and the transcripts have none; only the second checkpoint writes all characters."""
    from whisper_peft.training import scorer as room

    for name in ("train", "eval", "test"):
        folder = make_speech(tmp_path / name, 4, seed=1)
        lines = ["file_name,transcription", *(f"{number}.wav,今日 は いい 天気" for number in range(4))]
        (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    real = room.transcribe_rows
    texts = iter(["今日はいい", "今日はいい", "今日はいい天気", "今日はいい天気"])

    def transcribed(model, dataset, rows, **options):
        import dataclasses

        transcripts = real(model, dataset, rows, **options)
        text = next(texts)
        transcripts.transcripts = [
            dataclasses.replace(entry, text=text, reached_limit=False) for entry in transcripts.transcripts
        ]
        return transcripts

    monkeypatch.setattr(room, "transcribe_rows", transcribed)
    recipe = tiny_recipe(tiny_model, tmp_path, **{"model.language": "ja", "train.steps": 2, "evaluate.every_steps": 1})
    said = []
    result = train(recipe, output=tmp_path / "run", say=said.append)
    assert result.facts["best_metric"] == "cer_normalized" and result.facts["best_step"] == 2
    assert result.facts["after"]["cer_normalized"] == 0.0 and result.facts["after"]["cer"] > 0.0
    evaluations = [entry for entry in runs.read_jsonl(result.run / "metrics.jsonl") if "eval_cer" in entry]
    assert [entry["eval_cer_normalized"] for entry in evaluations] == [pytest.approx(2 / 7), 0.0]
    assert any("CER normalised 0.0%" in line for line in said)
    assert "normalised CER" in train_lines(result)[0] and any("CER norm." in line for line in train_lines(result))


def test_row_09_check_reports_spaces_between_words_in_scripts_without_spaces():
    def found(texts: list[str], language: str | None) -> set[int]:
        rows = [Row(b"", text) for text in texts]
        checked = check_sources([SourceRows("source", rows, "train")], language=language, audio=False)
        return {row for _, row in checked.findings.rows("spaced-words")}

    assert found(["而 对 楼市 成交", "而对楼市成交", "我用 Visual Studio 写"], "zh") == {0}
    assert found(["今日 は いい 天気"], None) == {0}
    assert found(["नमस्ते दुनिया घर पानी", "a b c d"], None) == set()
    # Thai writes spaces between phrases, so these spaces are no fault.
    assert found(["สวัสดีครับผมชื่อสมชาย ยินดีที่ได้รู้จักครับ วันนี้อากาศดีมากครับ"], "th") == set()


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_texts_can_be_scored(reference, prediction):
    figures = score([reference], [prediction])
    assert figures["cer_normalized"] >= 0.0
    assert score([reference], [reference])["cer_normalized"] == 0.0


@pytest.mark.parametrize("texts", [(["a", None], ["a", "b"]), (["a", "b"], ["a", float("nan")]), ([3], ["a"])])
def test_a_value_that_is_no_text_is_not_scored(texts):
    with pytest.raises(UserError, match=r"scoring: (reference|prediction) [12] is (None|nan|3), not a text"):
        score(*texts)


def test_row_14_every_report_shows_one_figure_under_one_generation_limit(tiny_model, speech, tmp_path):
    """The tiny model never ends a transcript, so each limit would give another figure."""
    from whisper_peft import evaluate

    recipe = tiny_recipe(tiny_model, speech, **{"train.steps": 1, "train.learning_rate": 1e-6})
    result = train(recipe, output=tmp_path / "run")
    facts = result.facts
    assert facts["before"]["max_new_tokens"] == facts["after"]["max_new_tokens"] == facts["final"]["max_new_tokens"]
    for key in ("wer", "cer", "wer_normalized", "cer_normalized", "token_loss", "reached_limit"):
        assert facts["after"][key] == facts["final"][key], key
    assert evaluate(result.run, speech / "test").wer == facts["after"]["wer"]
    rate = f"{facts['final']['wer']:.1%}"
    [after] = [line for line in train_lines(result) if line.strip().startswith("after")]
    assert rate in after
    card = publish(result.run, "me/it", base="openai/whisper-tiny", dry_run=True).card
    assert f"| WER, as written | {rate} |" in card and f"| after | {rate} |" in card


def test_row_14_the_model_card_of_an_older_run_says_that_its_limits_differ(lora_run, tmp_path):
    import shutil

    run = shutil.copytree(lora_run, tmp_path / "run")
    facts = runs.read_json(run / "run.json")
    older = {**facts["after"], "max_new_tokens": 7, "wer": 6.256}
    runs.update_facts(run, after=older, before=older)
    card = publish(run, "me/it", base="openai/whisper-tiny", dry_run=True).card
    assert f"at most 7 tokens a clip instead of {facts['final']['max_new_tokens']}" in card
    assert "instead of" not in publish(lora_run, "me/it", base="openai/whisper-tiny", dry_run=True).card
