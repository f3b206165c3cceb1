"""The transcribe command finds recordings, writes each when it is ready, and continues after a bad one."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from conftest import make_tiny_model, make_wave

from whisper_peft import UserError, evaluate, load_audio, load_model, transcribe, transcribe_each
from whisper_peft.data.audio_files import find_recordings
from whisper_peft.evaluation import chunks, longform, stretches, transcriber, transcribing
from whisper_peft.evaluation.chunks import transcribe_in_chunks
from whisper_peft.evaluation.generation import generate
from whisper_peft.evaluation.longform import transcribe_short_wave, transcribe_waves
from whisper_peft.evaluation.pieces import Decoding, prompt_ids
from whisper_peft.evaluation.word_times import _cheapest_path, add_word_times


@pytest.fixture
def once(monkeypatch):
    """Switch the fallback off, because a random model is never sure and would repeat each window many times."""
    monkeypatch.setitem(stretches.FALLBACK, "temperature", (0.0,))


@pytest.fixture(autouse=True)
def brief(monkeypatch, request):
    """Limit the output to 12 tokens, because a random model always uses its limit; the real model keeps its own."""
    if request.node.get_closest_marker("slow"):
        return
    for module in (longform, stretches, transcriber, chunks):
        monkeypatch.setattr(module, "tokens_left", lambda preparation, decoding: 12)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """Load the tiny model, whose window is 3 s, and its preparation."""
    model, preparation, _ = load_model(tiny_model)
    return model, preparation


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs the command line in this process: (arguments) -> exit code, stdout, stderr."""
    from whisper_peft.cli.commands import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["whisper-peft", "transcribe", *map(str, arguments)])
        # Everything that was printed before is dropped.
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def talks(tmp_path):
    """Make a folder with short recordings, a folder inside it, and a file that is no sound."""
    folder = tmp_path / "talks"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("b.wav", "a.flac", "more/a.wav")):
        soundfile.write(folder / name, make_wave(0.5 + 0.1 * number, number), 16000)
    (folder / "notes.txt").write_text("not a recording")
    return folder


def write_wave(path, seconds: float, seed: int = 0):
    soundfile.write(path, make_wave(seconds, seed), 16000)
    return path


# --- finding the recordings ---


def test_recordings_are_found_by_files_folders_and_patterns(talks, monkeypatch):
    monkeypatch.chdir(talks.parent)
    (talks / ".hidden.wav").write_bytes(b"x")
    recordings = find_recordings(["talks", talks / "b.wav", "talks/*.wav", "talks/**/a.*", "nowhere/*.mp3", "gone.wav"])
    assert [(recording.path, recording.place) for recording in recordings] == [
        ("talks/a.flac", "a.flac"),
        ("talks/b.wav", "b.wav"),
        ("talks/more/a.wav", "more/a.wav"),
        (str(talks / "b.wav"), "b.wav"),
        ("talks/b.wav", "b.wav"),
        ("talks/a.flac", "a.flac"),
        ("talks/more/a.wav", "a.wav"),
        ("nowhere/*.mp3", "nowhere/*.mp3"),
        ("gone.wav", "gone.wav"),
    ]
    assert [recording.problem for recording in recordings if recording.problem] == ["no file matches this pattern"]
    (talks / "empty").mkdir()
    assert "without sound files" in find_recordings([talks / "empty"])[0].problem
    (talks / "what[1].wav").write_bytes((talks / "b.wav").read_bytes())
    # A file of exactly this name exists, so it is not a pattern.
    assert find_recordings([talks / "what[1].wav"])[0].place == "what[1].wav"


def test_the_list_of_recordings_can_come_from_stdin(lora_run, talks, tmp_path):
    listed = f"{talks / 'b.wav'}\r\n\n{talks / 'more'}\n"
    done = subprocess.run(
        [sys.executable, "-m", "whisper_peft", "transcribe", str(lora_run), "-", "--output", str(tmp_path / "out")],
        input=listed,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt"]


# --- formats and files ---


def test_short_and_long_recordings_are_written_in_every_format(lora_run, talks, tmp_path, once, call):
    long = write_wave(tmp_path / "long.wav", 4.0)
    out = tmp_path / "out"
    code, printed, said = call(lora_run, talks, long, "--format", "all", "--output", out, "--word-times")
    assert code == 0 and printed == "" and "Wrote the transcripts of 4 recordings" in said
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    suffixes = ("json", "srt", "tsv", "txt", "vtt")
    assert names == sorted(f"{name}.{suffix}" for name in ("a", "b", "long", "more/a") for suffix in suffixes)
    for name in ("a", "long"):
        page = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        assert page["language"] == "hi" and page["text"] == (out / f"{name}.txt").read_text(encoding="utf-8")[:-1]
        for segment in page["segments"]:
            assert "".join("".join(word["word"] for word in segment["words"]).split()) == "".join(
                segment["text"].split()
            )
        spoken = [word for segment in page["segments"] for word in segment["words"]]
        assert all(word["start"] <= word["end"] for word in spoken)
        assert all(first["end"] <= second["start"] for first, second in pairwise(spoken))
        ends = [segment["end"] for segment in page["segments"]]
        assert ends == sorted(ends) and max(ends, default=0) <= 4.5
    assert (out / "long.vtt").read_text(encoding="utf-8").startswith("WEBVTT\n")
    assert not list(out.rglob(".*"))


def test_a_short_recording_has_times_only_if_they_are_asked_for(tiny_model, talks, once):
    file = talks / "b.wav"
    (plain,) = transcribe(tiny_model, [file], language="hi")
    (timed,) = transcribe(tiny_model, [file], language="hi", times=True)
    assert "segments" not in plain and plain["language"] == "hi"
    assert timed["segments"] and all(0 <= segment["start"] <= segment["end"] <= 0.5 for segment in timed["segments"])


def test_one_format_of_one_recording_goes_to_stdout(lora_run, talks, once, call):
    code, printed, _ = call(lora_run, talks / "b.wav", "--format", "tsv")
    assert code == 0 and printed.startswith("start\tend\ttext\n")
    code, _, said = call(lora_run, talks, "--format", "srt")
    assert code == 2 and "several recordings need --output" in said
    code, _, said = call(lora_run, talks / "b.wav", "--format", "srt,vtt")
    assert code == 2 and "several formats need --output" in said
    code, _, said = call(lora_run, talks / "b.wav", "--format", "docx")
    assert code == 1 and "--format docx: expected txt, srt, vtt, tsv, json or all." in said
    code, _, said = call(lora_run, talks / "b.wav", "--output", talks / "a.flac")
    assert code == 1 and "a file; --output names a folder" in said


def test_recordings_of_the_same_name_get_different_files(lora_run, talks, tmp_path, call):
    out = tmp_path / "out"
    recording = talks / "a.flac"
    code, _, _ = call(lora_run, recording, talks / "more" / "a.wav", recording, "--output", out)
    assert code == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.txt"))
    assert written == ["more/a.txt", "talks/a.txt"]


# --- recordings that are done, bad or interrupted ---


def test_recordings_that_are_done_are_skipped_and_never_overwritten(lora_run, talks, tmp_path, call, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.txt").write_text("mine")
    code, _, said = call(lora_run, talks, "--output", out)
    assert code == 0 and "1 of 3 recordings were done before" in said and "delete its files" in said
    assert (out / "b.txt").read_text() == "mine"
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.txt")}
    # Every recording is done, so no model is loaded.
    monkeypatch.setattr(transcribing, "load_to_run", None)
    code, _, said = call(lora_run, talks, "--output", out)
    assert code == 0 and "3 of 3 recordings were done before" in said
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.txt")}
    monkeypatch.undo()
    # Only the missing format is added.
    code, _, _ = call(lora_run, talks, "--output", out, "--format", "txt,tsv")
    assert code == 0 and len(list(out.rglob("*.tsv"))) == 3 and (out / "b.txt").read_text() == "mine"


def test_a_bad_recording_is_named_and_the_others_are_transcribed(lora_run, tmp_path, call):
    """One command gets 100 short files, of which four are broken in different ways."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(96):
        soundfile.write(folder / f"{number:03}.wav", make_wave(0.2, number), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF but nothing of the kind")
    (folder / "empty.wav").write_bytes(b"")
    whole = (folder / "000.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    code, printed, said = call(lora_run, folder, folder / "gone.wav", "--output", out, "--quiet")
    assert code == 1 and printed == ""
    lines = said.splitlines()
    for name in ("broken.wav", "empty.wav", "cut.wav", "gone.wav"):
        assert len([line for line in lines if name in line and line.startswith("Error: ")]) == 1, said
    assert lines[-1] == "Error: 4 of 100 recordings could not be used; the others are done."
    assert len(list(out.iterdir())) == 96
    code, printed, said = call(lora_run, folder / "001.wav", folder / "gone.wav", "--json")
    report = json.loads(printed)
    assert code == 1 and len(report["transcripts"]) == 1 and report["failed"][0]["error"] == "no such file"
    code, printed, said = call(lora_run, folder / "broken.wav", "--json")
    assert (code, printed) == (1, "") and said.count("\n") == 1


def test_a_transcript_that_cannot_be_written_does_not_stop_the_others(lora_run, tmp_path, call):
    folder = tmp_path / "in"
    folder.mkdir()
    write_wave(folder / ("x" * 240 + ".wav"), 0.3)
    write_wave(folder / "y.wav", 0.3, 1)
    code, _, said = call(lora_run, folder, "--output", tmp_path / "out", "--quiet")
    assert code == 1 and "a name too long for a new file" in said
    assert said.splitlines()[-1] == "Error: 1 of 2 recordings could not be used; the others are done."
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["y.txt"]
    code, _, said = call(lora_run, folder, "--output", folder / "y.wav" / "out")
    assert code == 1 and said.count("\n") == 1 and "cannot be made" in said


def test_file_names_of_any_bytes_are_printed_and_written(lora_run, tmp_path, call):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate((b"caf\xe9.wav", b"a\nb\x1b[2J.wav")):
        write_wave(folder / "new.wav", 0.3, number)
        os.rename(folder / "new.wav", os.fsencode(folder) + b"/" + name)
    code, printed, _ = call(lora_run, folder)
    assert code == 0 and len(printed.splitlines()) == 2
    assert "caf\\xe9.wav: " in printed and "a\\nb\\x1b[2J.wav: " in printed
    code, printed, _ = call(lora_run, folder, "--json")
    assert code == 0 and len(json.loads(printed)["transcripts"]) == 2
    code, _, _ = call(lora_run, folder, "--output", tmp_path / "out", "--format", "all")
    written = os.listdir(os.fsencode(tmp_path / "out"))
    assert code == 0 and b"caf\xe9.json" in written and b"a\nb\x1b[2J.vtt" in written and len(written) == 10


def test_each_recording_is_transcribed_in_the_language_that_the_model_hears(
    tiny_model, talks, tmp_path, once, monkeypatch, call
):
    """Each short, long or chunked recording is transcribed as if the user had named its language."""
    files = [talks / "b.wav", write_wave(tmp_path / "one.wav", 3.5), write_wave(tmp_path / "two.wav", 7.0, 2)]
    codes = {str(files[0]): "hi", str(files[1]): "th", str(files[2]): "hi"}
    heard: list[tuple[str, float | None]] = []

    def listen(model, preparation, rows):
        heard.extend((row.audio, row.end_s) for row in rows)
        return [dataclasses.replace(row, language=codes[row.audio]) for row in rows]

    monkeypatch.setattr(transcriber, "listen_for_languages", listen)
    for options in ({}, {"chunked": True}, {"times": True, "word_times": True}):
        transcripts = transcribe(tiny_model, files, language="auto", **options)
        assert [transcript["language"] for transcript in transcripts] == ["hi", "th", "hi"]
        for file, transcript in zip(files, transcripts, strict=True):
            assert transcribe(tiny_model, [file], language=codes[str(file)], **options) == [transcript]
    assert heard[:3] == [(str(files[0]), None), (str(files[1]), None), (str(files[2]), 3.0)]
    monkeypatch.undo()
    code, printed, _ = call(tiny_model, talks / "b.wav", "--language", "auto", "--json", "--format", "json")
    assert code == 0 and json.loads(printed)["transcripts"][0]["language"]
    code, _, said = call(tiny_model, talks / "b.wav", "--language", "klingon")
    assert code == 1 and said.count("\n") == 1


def test_the_command_prints_in_the_given_order_and_the_function_when_ready(
    lora_run, talks, tmp_path, once, call, monkeypatch
):
    long = write_wave(tmp_path / "long.wav", 4.0)
    files = [long, talks / "b.wav", talks / "a.flac", long]
    code, printed, _ = call(lora_run, *files)
    assert code == 0
    names = [line.split(": ")[0].rsplit("/")[-1] for line in printed.splitlines()]
    assert names == ["long.wav", "b.wav", "a.flac", "long.wav"]
    numbers = [number for number, _ in transcribe_each(lora_run, files)]
    # The short recordings come first.
    assert sorted(numbers) == [0, 1, 2, 3] and numbers[0] == 1


STOPPED = """
import os, signal, sys
from whisper_peft.evaluation import transcriber
transcriber.tokens_left = lambda preparation, decoding: 12
heard = transcriber.Transcriber._transcribe_short
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
calls = []
def stop_at_the_third(self, batch):
    calls.append(batch)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.{name})
    return heard(self, batch)
transcriber.Transcriber._transcribe_short = stop_at_the_third
from whisper_peft.cli.commands import main
main()
"""


@pytest.mark.parametrize(
    ("name", "code", "written"),
    [
        ("SIGINT", 130, True),
        ("SIGTERM", 143, False),
        pytest.param("SIGINT", 130, False, marks=pytest.mark.slow),
        pytest.param("SIGTERM", 143, True, marks=pytest.mark.slow),
    ],
)
def test_row_54_recordings_done_before_an_interruption_stay(name, code, written, lora_run, tmp_path):
    for number in range(12):
        write_wave(tmp_path / f"{number:02}.wav", 0.3, number)
    out = ["--output", str(tmp_path / "out")] if written else []
    files = [str(tmp_path / f"{number:02}.wav") for number in range(12)]
    arguments = ["transcribe", str(lora_run), *files, "--batch-size", "3", *out]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED.replace("{name}", name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Stopped: 6 of 12 recordings are done")
    names = [f"{number:02}" for number in range(6)]
    if written:
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.txt" for name in names]
    else:
        printed = [line.split(": ")[0].rsplit("/")[-1] for line in done.stdout.splitlines()]
        assert printed == [f"{name}.wav" for name in names]


# --- long recordings ---


@pytest.mark.parametrize("beams", [1, 2])
def test_recordings_transcribed_together_equal_each_one_alone(beams, tiny, once):
    model, preparation = tiny
    waves = [make_wave(seconds, seed) for seed, seconds in enumerate((7.3, 2.0, 14.5, 3.2))]
    decoding = Decoding("hi", beams=beams)
    alone = [next(transcribe_waves(model, preparation, [(0, wave)], decoding))[1] for wave in waves]
    shares: dict[int, list[float]] = {}
    together = dict(
        transcribe_waves(
            model,
            preparation,
            enumerate(waves),
            decoding,
            at_once=3,
            progress=lambda key, share: shares.setdefault(key, []).append(share),
        )
    )
    assert [together[number] for number in range(4)] == alone
    assert all(told == sorted(told) and told[-1] < 1 for told in shares.values()) and len(shares) == 4


def test_a_doubtful_stretch_is_repeated_without_changing_other_recordings(tiny, monkeypatch):
    """With the fallback, each recording is still transcribed as if it were alone."""
    model, preparation = tiny
    monkeypatch.setitem(stretches.FALLBACK, "temperature", (0.0, 1.0))
    waves = [make_wave(3.5, 1), make_wave(4.0, 2)]
    decoding = Decoding("hi")
    alone = [next(transcribe_waves(model, preparation, [(0, wave)], decoding))[1] for wave in waves]
    together = dict(transcribe_waves(model, preparation, enumerate(waves), decoding, at_once=2))
    assert [together[0], together[1]] == alone
    doubts = []
    monkeypatch.setattr(stretches, "_is_doubtful", lambda *arguments: doubts.append(1) and False)
    calm = dict(transcribe_waves(model, preparation, enumerate(waves), decoding, at_once=2))
    # The stretches of a random model are doubtful.
    assert doubts and [calm[0], calm[1]] != alone


@pytest.mark.slow
def test_a_long_recording_is_transcribed_in_order_and_in_constant_memory(tiny, once, monkeypatch):
    """The recording is 20 windows long, and the number of tensors that are kept does not grow with it."""
    import torch

    model, preparation = tiny
    vocabulary, kept = model.config.vocab_size, []

    def count(key, share: float) -> None:
        alive = [
            tensor for tensor in gc.get_objects() if type(tensor) is torch.Tensor and tensor.shape == (vocabulary,)
        ]
        kept.append(len(alive))

    monkeypatch.setattr(stretches, "STRETCH_WINDOWS", 1)
    wave = np.tile(make_wave(3.0), 20)
    ((_, transcript),) = transcribe_waves(model, preparation, [("hour", wave)], Decoding("hi"), progress=count)
    starts = [segment["start"] for segment in transcript["segments"]]
    assert starts == sorted(starts) and starts[-1] > 50
    assert all(first["end"] <= second["start"] for first, second in pairwise(transcript["segments"]))
    assert len(kept) >= 20 and max(kept) <= 3


def test_segments_of_chunks_are_in_order_and_within_the_recording(tiny):
    model, preparation = tiny
    wave = make_wave(10.0)
    shares: list[float] = []
    transcript = transcribe_in_chunks(model, preparation, wave, Decoding("hi"), at_once=2, progress=shares.append)
    assert transcript == transcribe_in_chunks(model, preparation, wave, Decoding("hi"), at_once=5)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 1
    assert transcript["text"] and all(
        0 <= segment["start"] <= segment["end"] <= 10 for segment in transcript["segments"]
    )
    assert all(first["end"] <= second["start"] for first, second in pairwise(transcript["segments"]))


@pytest.mark.parametrize("seconds", [2.0, 3.0, 3.1, 8.0, 8.95])
def test_chunks_equal_those_of_the_pipeline_of_transformers(seconds, tiny):
    from transformers.pipelines.automatic_speech_recognition import chunk_iter

    _, preparation = tiny
    n_samples = round(seconds * 16000)
    window, stride = preparation.window_samples, preparation.window_samples // 6
    extract = type("Extractor", (), {"sampling_rate": 16000, "__call__": lambda self, wave, **options: {"n": [0]}})()
    theirs = [their_chunk["stride"] for their_chunk in chunk_iter(np.zeros(n_samples), extract, window, stride, stride)]
    assert [chunk[1:] for chunk in chunks._chunks(preparation, n_samples)] == theirs


# --- words, prompts, precision ---


def test_the_cheapest_path_follows_the_low_costs():
    cost = np.full((4, 12), 1.0)
    for row, (first, last) in enumerate(((0, 3), (3, 5), (5, 9), (9, 12))):
        cost[row, first:last] = -1.0
    assert _cheapest_path(cost).tolist() == [0, 3, 5, 9]


def test_word_times_need_alignment_heads(tmp_path, talks, tiny_model, call):
    from transformers import GenerationConfig

    model = make_tiny_model(tmp_path / "model")
    config = GenerationConfig.from_pretrained(model)
    for heads in ([[7, 0]], None):
        config.alignment_heads = heads
        config.save_pretrained(model)
        code, printed, said = call(model, talks / "b.wav", "--language", "hi", "--word-times")
        errors = [line for line in said.splitlines() if not line.startswith("Note: ")]
        assert (code, printed, len(errors)) == (1, "", 1) and "names no alignment_heads" in errors[0]
        assert ("alignment_heads left out" in said) == (heads is not None)


def test_word_times_are_in_order_and_within_the_recording(tiny, once):
    model, preparation = tiny
    wave = make_wave(7.0)
    ((_, transcript),) = transcribe_waves(model, preparation, [(0, wave)], Decoding("hi"))
    add_word_times(model, preparation, wave, transcript["segments"], language="hi", task="transcribe")
    words = [word for segment in transcript["segments"] for word in segment["words"]]
    assert words and all(0 <= word["start"] <= word["end"] <= 7.0 for word in words)
    assert all(first["end"] <= second["start"] for first, second in pairwise(words))
    assert all(word["word"].startswith(" ") for word in words[1:] if word["word"].strip())


def test_a_prompt_stands_before_every_window(tiny, once, monkeypatch):
    model, preparation = tiny
    ids, n_cut = prompt_ids(preparation, "पानी किताब")
    assert ids[0] == preparation.token_id("<|startofprev|>") and n_cut == 0
    assert preparation.tokenizer.decode(list(ids[1:])).strip() == "पानी किताब"
    assert prompt_ids(preparation, " ") == ((), 0)
    long, n_cut = prompt_ids(preparation, "पानी किताब " * 300)
    assert len(long) == preparation.max_prompt_tokens + 1 and n_cut > 100
    seen: list[list[int]] = []
    hook = model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    transcribe_waves(model, preparation, [(0, make_wave(7.0))], Decoding("hi", prompt_ids=ids))
    list(transcribe_waves(model, preparation, [(0, make_wave(7.0))], Decoding("hi", prompt_ids=ids)))
    firsts = [tokens for tokens in seen if len(tokens) > 1]
    assert len(firsts) >= 3 and all(tuple(tokens[: len(ids)]) == ids for tokens in firsts)
    seen.clear()
    for limit in (ids, long):
        transcript = transcribe_short_wave(model, preparation, make_wave(1.0), Decoding("hi", prompt_ids=limit))
        # The prompt is not a part of the text.
        assert "पानी किताब पानी" not in transcript["text"]
        assert tuple(seen[0][: len(limit)]) == limit
        seen.clear()
    hook.remove()


def test_the_command_takes_a_prompt_and_says_if_it_is_cut(lora_run, talks, call):
    code, printed, said = call(lora_run, talks, "--prompt", "पानी " * 400)
    assert code == 0 and len(printed.splitlines()) == 3 and "tokens were cut at its start" in said


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_model_runs_in_each_precision(precision, lora_run, full_run, speech, once, tmp_path):
    import torch

    from whisper_peft.evaluation.loading import load_to_run

    model, _, _, chosen = load_to_run(lora_run, base=None, quantize="as-trained", precision=precision)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert chosen == precision and {parameter.dtype for parameter in model.parameters()} == {wanted}
    long = write_wave(tmp_path / "long.wav", 4.0)
    files = [speech / "test" / "0.wav", long]
    transcripts = transcribe(lora_run, files, precision=precision, word_times=True, chunked=precision == "bf16")
    assert all("words" in segment for transcript in transcripts for segment in transcript["segments"])
    report = evaluate(full_run, speech / "test", precision=precision)
    assert report.precision == precision and np.isfinite(report.token_loss)
    assert abs(report.token_loss - evaluate(full_run, speech / "test").token_loss) < 0.05


def test_the_default_precision_depends_on_the_device(lora_run, monkeypatch):
    import torch

    from whisper_peft.model import devices

    # On a CPU the default is fp32, even if the CPU can compute in bf16.
    assert devices.running_precision("auto") == "fp32"
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(devices, "best_precision", lambda: "bf16")
    assert devices.running_precision("auto") == "bf16" and devices.running_precision("fp32") == "fp32"
    with pytest.raises(UserError, match="--precision half: expected one of auto, fp32, bf16, fp16"):
        devices.running_precision("half")


def test_generation_with_times_begins_with_a_time(tiny):
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    model, preparation = tiny
    features = torch.from_numpy(preparation.encode_stretch(make_wave(2.0), preparation.window_frames))[None]
    with torch.no_grad():
        states = BaseModelOutput(last_hidden_state=model.get_encoder()(features).last_hidden_state)
    (ids,) = generate(model, preparation, states, language="hi", task="transcribe", max_new_tokens=8, timestamps=True)
    assert ids[0] >= preparation.first_timestamp


# --- the real model ---


@pytest.mark.slow
def test_minutes_of_real_speech_are_transcribed_alone_together_and_in_chunks(shared):
    """Each way of transcribing an English story gives nearly the same text, and words have the right times."""
    story = next((shared / "data" / "longform").glob("en_*.mp3"))
    model, preparation, _ = load_model(str(shared / "models" / "whisper-base"))
    waves = [load_audio(story, start_s=start_s, end_s=start_s + 60.0) for start_s in (0.0, 60.0)]
    decoding = Decoding("en")
    alone = [next(transcribe_waves(model, preparation, [(0, wave)], decoding))[1] for wave in waves]
    together = dict(transcribe_waves(model, preparation, enumerate(waves), decoding, at_once=2))
    assert [together[number]["text"] for number in range(2)] == [transcript["text"] for transcript in alone]
    chunked = transcribe_in_chunks(model, preparation, waves[0], decoding, at_once=4)
    from whisper_peft import score

    assert score([alone[0]["text"]], [chunked["text"]])["wer_normalized"] < 0.15
    segments = alone[0]["segments"]
    before = [(segment["start"], segment["end"]) for segment in segments]
    add_word_times(model, preparation, waves[0], segments, language="en", task="transcribe")
    apart = [abs(segment["start"] - start) for segment, (start, _) in zip(segments, before, strict=True)]
    assert sorted(apart)[len(apart) // 2] < 0.5
