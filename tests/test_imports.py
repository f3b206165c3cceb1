"""Imports go one way through the rooms, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import whisper_peft

PACKAGE = ROOT / "whisper_peft"

# Each module may import those before it in its room, and every room before its own.
ROOMS = {
    "": ("errors", "files", "settings", "recipe", "recipe_dicts", "recipe_files", "runs", "progress"),
    "pages": ("text", "templates", "charts", "player"),
    "data": (
        "structure", "xing", "mpeg_audio", "frames", "truncation", "mixing", "decoded_clip", "soundfile_decoder",
        "ffmpeg_decoder", "decoding", "seeking", "audio", "languages", "text", "rows", "spoken", "archives", "tables",
        "split_names", "common_voice", "recordings", "folders", "audio_files", "cues", "rolling", "subtitles",
        "addresses", "segments", "columns", "column_types", "cards", "parquet", "hub",
        "typed_tables", "sources", "doubtful_times", "words", "features",
        "augmentation", "stitching", "dataset", "batching", "streams", "samplers", "collator",
    ),
    "model": (
        "devices", "architecture", "attention", "head", "trained_weights", "activations", "memory", "windows",
        "specaugment", "quantizing", "fields", "foreign", "from_pretrained", "weights", "tensor_matching",
        "adapter_configs", "identity", "locating", "tokenizer_files", "vocabulary", "extractor", "generation_defaults",
        "generation_config", "config_fields", "configs", "loading", "lora", "weight_checks", "build",
    ),
    "runtimes": (
        "formats", "exports", "runtime", "faster_whisper_runtime", "ggml_file", "whisper_cpp_runtime",
        "openai_whisper_runtime", "onnx_runtime", "mlx_whisper_runtime", "opening",
    ),
    "evaluation": (
        "generation", "clip_transcripts", "loading", "languages", "pieces", "stretches", "longform", "chunks",
        "word_times", "subtitle_cues", "transcript_files", "transcriber", "exported", "transcribing", "normalizers",
        "metrics", "recording_scores", "whole_recordings", "evaluation_result", "scoring",
    ),
    "checking": (
        "report", "findings", "limits", "threads", "headers", "contradictions", "texts", "sound_measures", "sound",
        "duplicates", "speech_rate", "shifted_texts", "model_evidence", "pairing", "checks", "fix",
        "neighbour_losses", "page", "check",
    ),
    "training": (
        "loss", "callbacks", "trainer", "resolved", "arguments", "defaults", "splits", "converter_files", "artefacts",
        "facts", "fitting", "planning", "resuming", "first_look", "prepare", "starting", "scorer", "session", "train",
    ),
    "delivery": (
        "check_clips", "provenance", "merging", "loaded_files", "exporting.source", "exporting.ctranslate2",
        "exporting.openai_names", "exporting.ggml", "exporting.openai", "exporting.onnx", "exporting.mlx",
        "exporting.formats",
        "exporting.report", "exporting.proof", "exporting.export", "card", "repository", "publishing", "pushing",
        "demo_page", "voices", "demo",
    ),
    "cli": ("quiet", "printer", "lines", "score_lines", "export_lines", "options", "transcribe", "recipes", "commands"),
    "__main__": (),
}  # fmt: skip
HEAVY = (
    "torch", "transformers", "datasets", "peft", "evaluate", "jiwer", "pandas", "av", "soundfile", "soxr",
    "accelerate", "bitsandbytes", "tokenizers", "safetensors", "gradio", "jinja2",
)  # fmt: skip
LIGHT = {*sys.stdlib_module_names, "numpy", "click", "markupsafe", "whisper_peft"}
# These modules subclass classes of transformers, so they import transformers at their top.
IMPORTED_LAZILY = (
    "whisper_peft.training.trainer", "whisper_peft.training.callbacks", "whisper_peft.model.windows",
)  # fmt: skip


def position(module: str) -> tuple[int, int]:
    """Return the place of a module in the order; the __init__ of a room stands before its modules."""
    room, *inside = module.split(".")[1:] or [""]
    if not room:
        # This is the package itself.
        return (-1, 0)
    # This is a module at the top of the package.
    if not inside and room not in ROOMS:
        room, inside = "", [room]
    if inside == []:
        return (list(ROOMS).index(room), 0)
    name = ".".join(inside)
    listed = ROOMS.get(room, ())
    within = [place for place, entry in enumerate(listed) if entry == name or entry.startswith(f"{name}.")]
    if not within:
        raise AssertionError(f"{module} has no place in the order of the rooms; give it one here")
    # A folder within a room stands before its modules.
    return (list(ROOMS).index(room), 1 + within[0])


def modules() -> dict[str, Path]:
    """Return every module of the package, except those of the quickstart."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] != "quickstart":
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


MODULES = modules()


def imports_of(module: str, tree: ast.AST, path: Path) -> list[tuple[int, str]]:
    """Return (line, module of ours) for every import in a file, also for imports inside functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                is_module = (ROOT / Path(*inner.split("."))).is_dir() or (ROOT / Path(*inner.split("."))).with_suffix(
                    ".py"
                ).is_file()
                if origin == "whisper_peft" and not is_module:
                    assert alias.name == "__version__", f"{path}:{node.lineno}: the package's lazy names are for users"
                imports.append((node.lineno, inner if is_module else origin))
    return [(line, name) for line, name in imports if name.split(".")[0] == "whisper_peft"]


def top_level_imports(tree: ast.Module) -> list[tuple[int, str]]:
    """Return (line, top-level package) for every import that runs when the module is imported."""
    imports = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            imports.extend((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imports.append((node.lineno, node.module.split(".")[0]))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return imports


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_rooms_and_modules_before_it(module):
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = position(module)
    for line, name in imports_of(module, tree, path):
        at = f"{path.relative_to(ROOT)}:{line}"
        assert not name.startswith("whisper_peft.quickstart"), f"{at} imports the quickstart"
        assert name != module
        assert position(name) < here, f"{at}: {module} imports {name}, which stands above it"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_light_packages_at_its_top(module):
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = LIGHT | ({"torch", "transformers"} if module in IMPORTED_LAZILY else set())
    for line, name in top_level_imports(tree):
        assert name in allowed, f"{path.relative_to(ROOT)}:{line} imports {name} at the top of the module"
    # The package's own __getattr__ loads the public names.
    if module != "whisper_peft":
        named = {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in ast.walk(tree)}
        assert not named & {"import_module", "__import__"}, f"{path}: an import that this test cannot see"


def test_no_module_imports_a_lazy_module_at_its_top():
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            for node in ast.walk(function)
        }
        # Imports that only the type checker reads do not run.
        for block in ast.walk(tree):
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
                inside |= {id(node) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in inside:
                names = [name for _, name in imports_of(module, node, path)]
                lazy = module not in IMPORTED_LAZILY and set(IMPORTED_LAZILY) & set(names)
                assert not lazy, f"{path}:{node.lineno}"


def test_the_import_rule_sees_imports_inside_functions():
    page = "def f():\n from ..training.train import train\n import whisper_peft.runs\n from whisper_peft import files\n"
    path = PACKAGE / "data" / "audio.py"
    names = [name for _, name in imports_of("whisper_peft.data.audio", ast.parse(page), path)]
    assert names == ["whisper_peft.training.train", "whisper_peft.runs", "whisper_peft.files"]
    at = position("whisper_peft.data.audio")
    assert [position(name) < at for name in names] == [False, True, True]
    assert position("whisper_peft.data.dataset") < position("whisper_peft.data.batching")
    assert position("whisper_peft.data.collator") < position("whisper_peft.model.build")
    assert (
        position("whisper_peft.delivery.merging")
        < position("whisper_peft.cli.commands")
        < position("whisper_peft.__main__")
    )
    with pytest.raises(AssertionError, match="lazy names"):
        imports_of("whisper_peft.data.audio", ast.parse("from whisper_peft import train"), path)


def in_fresh_process(code: str, *arguments: str) -> dict:
    """Run code that prints JSON in a new process, which shares no module with this one."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOADED = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def test_importing_any_module_loads_nothing_heavy():
    names = [name for name in MODULES if name not in (*IMPORTED_LAZILY, "whisper_peft.__main__")]
    loaded = in_fresh_process(f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n{LOADED}")
    assert "whisper_peft" in loaded
    assert not set(HEAVY) & set(loaded)


def test_the_package_imports_where_the_module_resource_is_missing():
    """Windows has no module resource; the test imports psutil first because psutil needs resource on Linux."""
    names = [name for name in MODULES if name != "whisper_peft.__main__"]
    code = (
        "import importlib, sys, psutil\nsys.modules['resource'] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "from whisper_peft.training.facts import peak_memory_bytes\n"
        "print(peak_memory_bytes())"
    )
    assert in_fresh_process(code) > 10**7


def test_help_loads_nothing_heavy():
    code = (
        "import runpy, sys; sys.argv = ['whisper-peft', '--help']\n"
        "try: runpy.run_module('whisper_peft', run_name='__main__')\n"
        f"except SystemExit as end: assert not end.code\n{LOADED}"
    )
    loaded = in_fresh_process(code)
    assert "click" in loaded
    assert not set(HEAVY) & set(loaded)


def test_help_takes_less_than_one_second_of_cpu_time(run_cli):
    # The first call writes the bytecode and is not measured.
    run_cli("--help")
    walls, used = [], []
    for _ in range(3):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = run_cli("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.monotonic() - began)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
        assert "train" in done.stdout
    assert min(used) < 1.0, "seconds of CPU time; a heavy import costs several"
    # The bound is generous because the machine may be busy.
    assert min(walls) < 5.0


def test_public_names_resolve():
    assert whisper_peft.__all__ == sorted(set(whisper_peft.__all__))
    for name in whisper_peft.__all__:
        assert callable(getattr(whisper_peft, name)), name
        assert name in dir(whisper_peft)
    assert whisper_peft.__version__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = whisper_peft.trian
    with pytest.raises(ImportError):
        from whisper_peft import trian  # noqa: F401 - it is the import that fails


SCRIPTS = sorted(path for folder in ("benchmarks", "recipes", "tools") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_import_only_names_that_exist(path):
    """No other test runs the benchmarks, so no other test notices when a name moves."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "whisper_peft":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
