"""The functions that open, parse and show files safely, each with every kind of bad input."""

from __future__ import annotations

import json
import os
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft.errors import UserError
from whisper_peft.files import (
    UnusableFileError,
    open_file,
    parse_json,
    parse_yaml,
    printable,
    printable_json,
    read_json_file,
    read_text,
    short_repr,
)
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_dicts import parse_settings
from whisper_peft.recipe_files import load_recipe

GROWING = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("read", [open_file, read_text, read_json_file, load_recipe])
def test_row_34_a_fifo_and_a_device_are_refused_before_they_are_opened(read, fifo):
    for path in (fifo, "/dev/zero", "/proc/self/mem", fifo.parent):
        with pytest.raises(
            UserError, match=r"a pipe|a device|the file is empty|cannot be read|a folder|no such recipe"
        ):
            read(path)


def test_a_file_without_read_permission_is_refused_with_its_name(tmp_path, monkeypatch):
    path = tmp_path / "secret.json"
    path.write_text("{}")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnusableFileError, match=r"secret\.json: no permission to read it\."):
        read_json_file(path)


@pytest.mark.parametrize("text", [GROWING, "[" * 10_000, "d: 2024-02-31", f"n: {'9' * 5000}", "a: &a [*a]"])
def test_row_32_and_36_growing_or_invalid_yaml_is_refused_within_seconds(text, tmp_path):
    began = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ValueError):
        parse_yaml(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    # Growing YAML used to take over a minute. The bound is no measure of speed.
    assert time.monotonic() - began < 30
    page = tmp_path / "page.yaml"
    page.write_text(text)
    with pytest.raises(UserError, match=r"page\.yaml"):
        load_recipe(page)
    with pytest.raises(UserError, match=r"--set"):
        parse_settings(Recipe(), [f"train.steps={text}"], place="--set ")


@pytest.mark.parametrize("page", ["train: {steps: 1}\ntrain: {mode: full}\n", "train:\n  steps: 1\n  steps: 2\n"])
def test_a_setting_that_stands_twice_in_a_recipe_is_refused(page, tmp_path):
    path = tmp_path / "page.yaml"
    path.write_text(page)
    with pytest.raises(
        UserError, match=r"page\.yaml: not a YAML page \('(train|steps)' stands twice, again in line [23]"
    ):
        load_recipe(path)


@pytest.mark.parametrize("content", ["model: {}".encode("utf-16"), b"model: {name: \xed\xa0\x80}", b"\xff\xfe\x00"])
def test_row_32_a_recipe_that_is_not_utf8_is_refused_in_one_line(content, tmp_path):
    page = tmp_path / "page.yaml"
    page.write_bytes(content)
    with pytest.raises(UserError, match=r"page\.yaml: not UTF-8"):
        load_recipe(page)


def test_an_integer_of_many_digits_is_shortened_in_the_message():
    with pytest.raises(UserError) as caught:
        parse_settings(Recipe(), [f"train.batch_size={'9' * 4000}"], place="--set ")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("setting", ["train.batch_size=1000000000", "evaluate.beams=1000000", "lora.rank=1000000"])
def test_row_33_settings_too_large_for_any_machine_are_refused(setting):
    with pytest.raises(UserError, match="expected at most"):
        parse_settings(Recipe(), [setting])


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[1, 2]", "nul", '{"a": ' * 200 + "1" + "}" * 200, "9" * 5000])
def test_json_that_holds_no_object_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(UnusableFileError, match=r"facts\.json: (not JSON|its content is)"):
        read_json_file(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
    ],
)
def test_row_22_a_file_that_a_failed_download_left_is_recognised(content, words, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UnusableFileError, match=words):
        read_json_file(path)


def test_row_41_escape_codes_never_reach_the_terminal(run_cli, tmp_path):
    name = "a\x1b]0;owned\x07b\r.wav"
    done = run_cli("evaluate", "quickstart", tmp_path / name)
    assert done.returncode == 1
    assert not {"\x1b", "\x07", "\r"} & set(done.stderr + done.stdout)
    assert "a\\x1b]0;owned" in done.stderr


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_any_text_is_shown_without_control_characters(text):
    shown = printable(text)
    assert shown.isprintable() or not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    shown.encode("utf-8")
    restored_text = json.loads(printable_json(json.dumps(text, ensure_ascii=False)))
    assert restored_text == text


@settings(deadline=None, max_examples=200)
@given(
    st.text(),
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ),
)
def test_any_json_or_yaml_is_parsed_or_refused(text, value):
    for parse in (parse_json, parse_yaml):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)
    assert parse_json(json.dumps(value)) == value
    assert len(short_repr(value)) < 2000
