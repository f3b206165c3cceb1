"""The same model in every export format: error rates, size, speed and memory, each in its own runtime.

    python benchmarks/exports.py WORK MODEL           every missing export, in order; resumes a stopped run
    python benchmarks/exports.py WORK MODEL --only ggml
    python benchmarks/exports.py WORK MODEL --table   only the table of the finished exports

MODEL is a run, an adapter or a model that was trained on ../shared/data/malayalam. First transformers transcribes the
91 test clips and the 11-minute story with `evaluate`. Then the model is exported to each format and type of weights,
with the proof of `export`, and `evaluate` scores each export on the same sound: its runtime decodes with its own
defaults. Each step is a process of its own, whose largest memory is measured.

The format onnx needs an environment of its own: run the script there with --only onnx and the same WORK. When an export
is done, its results are written to a JSON file in benchmarks/exports/. A format whose package is not installed is
passed over.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click

import whisper_peft
from whisper_peft.runtimes.formats import EXPORT_FORMATS

HERE = Path(__file__).parent
RESULTS = HERE / "exports"
TRANSFORMERS = "transformers"
# The types of weights that are measured, the usual one of each format first.
PLAN = {
    "ctranslate2": ("float16", "float32", "int8"),
    "ggml": ("f16", "q8_0", "q5_0"),
    "openai": ("float16", "float32"),
    "onnx": ("float32", "int8"),
    "mlx": ("float16", "float32", "q8", "q4"),
}
COLUMNS = (
    "export",
    "size",
    "CER",
    "WER",
    "CER to transformers",
    "empty",
    "× real time",
    "memory",
    "story CER",
    "uncovered",
    "loops",
)


def run_command(*arguments: object) -> tuple[int, str, float]:
    """Run whisper-peft, and return its exit code, its stdout or its error line, and its largest memory in MB."""
    command = [sys.executable, "-m", "whisper_peft", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate()
    # ru_maxrss of all children is the largest of them, so each measurement is made by a child of its own.
    memory_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    if process.returncode:
        return process.returncode, err.strip().splitlines()[-1], memory_mb
    return 0, out, memory_mb


def evaluate_sources(model: Path | str, shared: Path, folder: Path) -> dict:
    """Score a model or an export on the test clips and on the story, and return the figures and the texts."""
    sources = {
        "clips": shared / "data" / "malayalam:test",
        "story": shared / "data" / "longform" / "ml_vasanavikruthi.ogg",
    }
    result: dict = {}
    for name, source in sources.items():
        output = folder / name
        if not (output / "report.json").exists():
            code, message, memory_mb = run_command(
                "evaluate", model, source, "--language", "ml", "--output", output, "--quiet"
            )
            if code:
                return {"error": message}
            (folder / f"{name}-memory.json").write_text(json.dumps(memory_mb))
        page = json.loads((output / "report.json").read_text())
        lines = [json.loads(line) for line in (output / "transcripts.jsonl").read_text().splitlines()]
        result[name] = {
            "report": page,
            "memory_mb": json.loads((folder / f"{name}-memory.json").read_text()),
            "references": [line["reference"] for line in lines if "recording" not in line],
            "texts": [line["prediction"] for line in lines if "recording" not in line],
        }
    return result


def measure_in_child(model: Path | str, shared: Path, folder: Path) -> dict:
    """Run `evaluate_sources` in a process of its own, so that its memory is that of this model alone."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, __file__, str(folder), str(model), "--measure"], check=True)
    return json.loads((folder / "result.json").read_text())


def size_of(export: Path) -> int:
    return json.loads((export / "export_report.json").read_text())["size"]


def measure_format(work: Path, model: str, shared: Path, name: str, quantization: str) -> dict:
    """Export a model in one format, and measure the export."""
    folder = work / f"{name}-{quantization}"
    result: dict = {"format": name, "quantization": quantization}
    if not folder.exists():
        code, message, _ = run_command(
            "export", model, folder, "--format", name, "--quantization", quantization, "--language", "ml", "--quiet"
        )
        result["export_error"] = message if code else None
    if not folder.exists():
        # The proof failed. What the export would have said elsewhere is not measured.
        return result
    result["size"] = size_of(folder)
    result["proof"] = json.loads((folder / "export_report.json").read_text())
    return result | measure_in_child(folder, shared, work / f"{name}-{quantization}-measured")


def show(name: str, result: dict, baseline: dict | None) -> str:
    """Return a line of the table."""
    if result.get("export_error"):
        return f"| {name} | {result['export_error']} |"
    if result.get("error"):
        return f"| {name} | {result['error']} |"
    clips = result["clips"]["report"]
    story = result["story"]["report"]["recordings"]
    sound_s = json.loads((RESULTS / "sound.json").read_text())["clips_s"]
    cells = [name, f"{result.get('size', 0) / 1e6:.0f} MB", f"{clips['cer']:.1%}", f"{clips['wer']:.1%}"]
    difference = ""
    if baseline is not None and baseline is not result:
        low, high = whisper_peft.paired_interval(
            result["clips"]["references"], baseline["clips"]["texts"], result["clips"]["texts"], metric="cer"
        )
        difference = f"{100 * low:+.1f} to {100 * high:+.1f}"
    empty = sum(not text.strip() for text in result["clips"]["texts"])
    cells += [difference, str(empty), f"{clips['seconds'] / sound_s:.2f}", f"{result['clips']['memory_mb']:.0f} MB"]
    cells += [f"{story['cer']:.1%}", f"{story['uncovered_s'] / story['speech_s']:.1%}", str(story["loops"])]
    return "| " + " | ".join(cells) + " |"


def table() -> None:
    """Print a line for each finished export."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*-*.json"))}
    baseline_file = RESULTS / f"{TRANSFORMERS}-float32.json"
    baseline = json.loads(baseline_file.read_text()) if baseline_file.exists() else None
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}")
    for name, result in results.items():
        print(show(name, result, baseline))


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--table", "only_table", is_flag=True, help="Print the table only.")
@click.option("--only", default="", help="Measure only formats whose names begin so.")
@click.option("--measure", is_flag=True, hidden=True, help="Measure MODEL into the folder WORK; for child processes.")
def main(work: Path, model: str, only_table: bool, only: str, measure: bool) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    work = work.resolve()
    if measure:
        (work / "result.json").write_text(json.dumps(evaluate_sources(model, shared, work), ensure_ascii=False))
        return
    RESULTS.mkdir(exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    rows = whisper_peft.load_source(str(shared / "data" / "malayalam:test"))
    clips_s = sum(len(whisper_peft.load_audio(row.sound())) / 16_000 for row in rows)
    (RESULTS / "sound.json").write_text(json.dumps({"clips": len(rows), "clips_s": round(clips_s, 1)}) + "\n")
    plan = [(TRANSFORMERS, "float32"), *((name, kind) for name, kinds in PLAN.items() for kind in kinds)]
    for name, quantization in plan:
        target = RESULTS / f"{name}-{quantization}.json"
        if only_table or target.exists() or not name.startswith(only):
            continue
        print(f"== {name} {quantization}", flush=True)
        if name == TRANSFORMERS:
            result = measure_in_child(model, shared, work / TRANSFORMERS)
        elif EXPORT_FORMATS[name].runtime_version() is None:
            print("   not installed here")
            continue
        else:
            result = measure_format(work, model, shared, name, quantization)
        target.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    table()


if __name__ == "__main__":
    main()
