"""A run folder appears whole or not at all, and a killed process leaves nothing that looks complete."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from whisper_peft import runs
from whisper_peft.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Folders


def test_a_new_folder_appears_only_when_it_is_whole(tmp_path):
    with runs.new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("1", encoding="utf-8")
        assert not (tmp_path / "deep" / "out").exists()
        # The folder is made beside its final place, so that the rename stays on one disk.
        assert folder.parent == tmp_path / "deep"
    assert (tmp_path / "deep" / "out" / "a").read_text(encoding="utf-8") == "1"
    assert names(tmp_path / "deep") == ["out"]
    # Others may read the folder.
    assert stat.S_IMODE((tmp_path / "deep" / "out").stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), runs.new_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").touch()
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link"])
def test_an_existing_path_is_refused_before_any_work(tmp_path, kind):
    out = tmp_path / "out"
    if "folder" in kind:
        out.mkdir()
        if kind == "folder":
            (out / "mine").touch()
    elif kind == "file":
        out.write_text("mine", encoding="utf-8")
    else:
        (tmp_path / "mine").mkdir()
        out.symlink_to(tmp_path / "mine")
    before = names(tmp_path)
    with (
        pytest.raises(UserError, match=r"out: exists already; name another one\."),
        runs.new_folder(out, "name another one"),
    ):
        raise AssertionError("the block ran")
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_a_path_that_appears_meanwhile_is_not_overwritten(tmp_path, kind):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="exists already"), runs.new_folder(out) as folder:
        (folder / "ours").touch()
        if kind == "file":
            out.write_text("mine", encoding="utf-8")
        else:
            out.mkdir()
            if kind == "folder":
                (out / "mine").touch()
    assert names(tmp_path) == ["out"]
    assert out.read_text(encoding="utf-8") == "mine" if kind == "file" else names(out) == ["mine"][: kind == "folder"]


# JSON


def test_a_failed_write_of_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.json"
    runs.write_json(path, {"a": "हिन्दी"})
    assert runs.read_json(path) == {"a": "हिन्दी"}
    assert "हिन्दी" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        runs.write_json(path, {"a": object()})
    assert runs.read_json(path) == {"a": "हिन्दी"}
    assert names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_the_error_names_a_json_file_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: (no such file|not JSON|not UTF-8)"):
        runs.read_json(path)


def test_new_facts_are_added_to_the_old_ones(tmp_path):
    assert runs.update_facts(tmp_path, a=1, b=1) == {"a": 1, "b": 1}
    assert runs.update_facts(tmp_path, b=2) == {"a": 1, "b": 2}
    assert runs.read_json(tmp_path / runs.FACTS) == {"a": 1, "b": 2}


def test_jsonl_gives_back_the_records_that_were_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert runs.read_jsonl(path) == []
    runs.append_jsonl(path, {"step": 1, "text": "एक\u2028दो\u0085\n\x0b"}, {"step": 2})
    runs.append_jsonl(path)
    runs.append_jsonl(path, {"step": 3})
    assert [record["step"] for record in runs.read_jsonl(path)] == [1, 2, 3]
    assert runs.read_jsonl(path)[0]["text"] == "एक\u2028दो\u0085\n\x0b"
    assert path.read_text(encoding="utf-8").count("\n") == 3


@pytest.mark.parametrize("n_bytes", [1, 5, 12])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path, n_bytes):
    path = tmp_path / "metrics.jsonl"
    runs.append_jsonl(path, {"step": 1}, {"step": 2})
    last = json.dumps({"step": 3, "text": "हिन्दी"}, ensure_ascii=False).encode()
    with path.open("ab") as file:
        file.write(last[:n_bytes])
    assert [record["step"] for record in runs.read_jsonl(path)] == [1, 2]
    # The resumed run appends to the file.
    runs.append_jsonl(path, {"step": 3})
    assert [record["step"] for record in runs.read_jsonl(path)] == [1, 2, 3]


def test_a_last_line_that_ends_within_a_character_is_dropped(tmp_path):
    path = tmp_path / "left_out.jsonl"
    runs.append_jsonl(path, {"row": 1})
    with path.open("ab") as file:
        file.write(b'{"reason": "' + "ह".encode()[:2])
    assert runs.read_jsonl(path) == [{"row": 1}]


def test_jsonl_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    runs.append_jsonl(path, {"step": 1}, {"step": 2})
    runs.rewrite_jsonl(path, [{"step": 1}])
    assert runs.read_jsonl(path) == [{"step": 1}]
    with pytest.raises(TypeError):
        runs.rewrite_jsonl(path, [{"step": 9}, {"step": object()}])
    assert runs.read_jsonl(path) == [{"step": 1}]
    runs.rewrite_jsonl(path, [])
    assert runs.read_jsonl(path) == []
    assert path.exists()


# Checkpoints


def make_checkpoint(run: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = run / runs.CHECKPOINTS / f"checkpoint-{step}"
    (checkpoint / "adapter").mkdir(parents=True)
    (checkpoint / "adapter" / "weights").write_bytes(b"1")
    if complete:
        runs.mark_complete(checkpoint, step=step)
    return checkpoint


def steps_of(run: Path) -> list[int]:
    return [runs.checkpoint_step(path) for path in runs.complete_checkpoints(run)]


def test_only_checkpoints_marked_complete_count_in_the_order_of_their_steps(tmp_path):
    assert runs.complete_checkpoints(tmp_path) == []
    for step in (900, 1000, 90):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 1100, complete=False)
    assert steps_of(tmp_path) == [90, 900, 1000]
    assert runs.read_json(runs.complete_checkpoints(tmp_path)[0] / runs.COMPLETE) == {"step": 90}


def test_a_half_written_mark_does_not_make_a_checkpoint_complete(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 10, complete=False)
    # The process was killed before the rename.
    (checkpoint / f".{runs.COMPLETE}.part").write_text("{", encoding="utf-8")
    assert steps_of(tmp_path) == []


@pytest.mark.parametrize(
    ("keep", "best", "expected"),
    [
        (1, None, [50]),
        (1, 20, [20, 50]),
        (1, 50, [50]),
        (2, 10, [10, 40, 50]),
        (2, 40, [40, 50]),
        (9, None, [10, 20, 30, 40, 50]),
    ],
)
def test_the_newest_and_the_best_checkpoints_stay(tmp_path, keep, best, expected):
    for step in (10, 20, 30, 40, 50):
        make_checkpoint(tmp_path, step)
    best_folder = best and tmp_path / runs.CHECKPOINTS / f"checkpoint-{best}"
    runs.remove_old_checkpoints(tmp_path, keep, best_folder)
    assert steps_of(tmp_path) == expected
    assert names(tmp_path / runs.CHECKPOINTS) == [f"checkpoint-{step}" for step in expected]


def test_an_unfinished_checkpoint_does_not_push_a_complete_one_out(tmp_path):
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20, complete=False)
    runs.remove_old_checkpoints(tmp_path, 1, None)
    assert steps_of(tmp_path) == [10]


def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    for step in (10, 20):
        make_checkpoint(tmp_path, step)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.remove_old_checkpoints(tmp_path, 1, None)
    assert steps_of(tmp_path) == [20]


def test_a_run_folder_has_a_recipe_and_facts(tmp_path):
    assert not runs.is_run(tmp_path)
    runs.update_facts(tmp_path)
    assert not runs.is_run(tmp_path)
    (tmp_path / runs.RECIPE).touch()
    assert runs.is_run(tmp_path)
    assert not runs.is_run(tmp_path / "none")


def test_a_new_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "page.html"
    with pytest.raises(RuntimeError), runs.new_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert not list(path.parent.iterdir())
    with runs.new_file(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(UserError, match="exists already; name another"), runs.new_file(path, "name another"):
        raise AssertionError("nothing is to be made")
    late = tmp_path / "late.html"
    with pytest.raises(UserError, match="exists already"), runs.new_file(late) as part:
        late.write_text("somebody else's, meanwhile")
    assert late.read_text() == "somebody else's, meanwhile"
    with pytest.raises(UserError, match="cannot be made in"), runs.new_file(path / "below" / "page.html"):
        pass
