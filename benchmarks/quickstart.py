"""Whether the quickstart learns: three seeds in both modes, and a control on shuffled transcripts.

    python benchmarks/quickstart.py        runs what is missing, and adds each run to benchmarks/quickstart.json

The WER is measured on the 60 test clips, whose voices and sentences are not in training, before and after 200 steps of
16 clips. The control trains on the same clips with their transcripts permuted. It can learn the language but not the
speech, so its WER shows how much the language alone explains.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import torch

import whisper_peft

RESULTS = Path(__file__).with_suffix(".json")
RUNS = [(mode, seed, False) for mode in ("lora", "full") for seed in (1, 2, 3)]
RUNS += [("lora", 1, True), ("full", 1, True)]


def shuffled(source: str, folder: Path, seed: int) -> str:
    rows = whisper_peft.load_source(source)
    texts = [row.text for row in rows]
    random.Random(seed).shuffle(texts)
    manifest = folder / "shuffled.jsonl"
    lines = [json.dumps({"audio": row.audio, "text": text}) for row, text in zip(rows, texts, strict=True)]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    return str(manifest)


def main() -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {(row["mode"], row["seed"], row["shuffled"]) for row in results}
    for mode, seed, shuffle in RUNS:
        if (mode, seed, shuffle) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            recipe = whisper_peft.load_recipe("quickstart")
            changes: dict[str, object] = {"train.mode": mode, "train.seed": seed}
            if shuffle:
                changes["data.train"] = [shuffled(recipe.data.train[0], Path(folder), seed)]
            facts = whisper_peft.train(recipe, changes=changes, output=Path(folder) / "run", progress=True).facts
        results.append(
            {
                "mode": mode,
                "seed": seed,
                "shuffled": shuffle,
                "wer_before": facts["before"]["wer"],
                "wer_after": facts["after"]["wer"],
                "cer_after": facts["after"]["cer"],
                "seconds": facts["seconds"],
                "threads": torch.get_num_threads(),
                "versions": facts["versions"],
            }
        )
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{'mode':6}{'seed':>5}  {'texts':12}{'WER before':>11}{'WER after':>11}{'CER after':>11}{'seconds':>9}")
    for row in results:
        kind = "shuffled" if row["shuffled"] else "as spoken"
        print(
            f"{row['mode']:6}{row['seed']:>5}  {kind:12}{row['wer_before']:>11.1%}{row['wer_after']:>11.1%}"
            f"{row['cer_after']:>11.1%}{row['seconds']:>9.0f}"
        )


if __name__ == "__main__":
    main()
