"""A warning follows a model that was not trained for whole recordings, from training to publishing."""

from __future__ import annotations

import shutil

import pytest
from conftest import tiny_recipe

from whisper_peft import merge, publish, train
from whisper_peft.training.facts import warn_of_recordings

QUICK = {"train.steps": 2, "evaluate.every_steps": 2, "evaluate.compare_clips": 0, "evaluate.max_clips": 1}


@pytest.mark.parametrize(
    ("features", "full_windows", "words"),
    [
        ({"timestamps": 0.0, "stitch": 0.0}, 0.0, ["without times and without windows", "timestamps=", "stitch="]),
        ({"timestamps": 0.5, "stitch": 0.0}, 0.0, ["Trained without windows full of speech", "stitch="]),
        ({"timestamps": 0.0, "stitch": 0.2}, 0.0, ["Trained without times:", "timestamps="]),
        ({"timestamps": 0.0, "stitch": 0.0}, 0.9, ["Trained without times:", "timestamps="]),
        # An older version made this run.
        ({"timestamps": 0.0}, None, ["Trained without times:"]),
        ({"timestamps": 0.5, "stitch": 0.2}, 0.0, None),
        ({"timestamps": 0.5, "stitch": 0.0}, 0.9, None),
        ({}, None, None),
    ],
)
def test_the_warning_names_what_the_training_lacked(features, full_windows, words):
    line = warn_of_recordings({"features": features}, full_windows)
    if words is None:
        assert line is None
        return
    assert "\n" not in line
    assert all(word in line for word in words)


def warnings_in(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("Warning: Trained without times and without windows")]


def test_train_merge_and_publish_each_warn_once(tiny_model, speech, tmp_path):
    said = []
    changes = {**QUICK, "features.timestamps": 0.0, "features.stitch": 0.0}
    run = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", say=said.append).run
    assert len(warnings_in(said)) == 1

    said = []
    merge(run, tmp_path / "merged", dtype="float32", say=said.append)
    assert len(warnings_in(said)) == 1

    # The facts that the warning needs lie beside the weights.
    moved = shutil.copytree(tmp_path / "merged", tmp_path / "elsewhere")
    for model in (run, moved):
        said = []
        publish(model, "me/it", base="openai/whisper-tiny", dry_run=True, say=said.append)
        assert len(warnings_in(said)) == 1


def test_there_is_no_warning_if_times_and_full_windows_were_trained(tiny_model, speech, tmp_path):
    said = []
    changes = {**QUICK, "features.timestamps": 0.5, "features.stitch": 0.5}
    run = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", say=said.append).run
    merge(run, tmp_path / "merged", dtype="float32", say=said.append)
    assert not [line for line in said if line.startswith("Warning: Trained")]
