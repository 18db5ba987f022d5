"""Kills a comparison or a training at random moments and checks that it ends with the numbers of an undisturbed one.

A reference runs once. Then the same command runs in another folder, is killed (SIGKILL, with all its processes) after a
random part of the time that the reference trained, and is started again, until it ends; then another folder begins. The
weights, metrics and results of every folder must equal the reference's bit for bit, times and measured costs aside.

    python benchmarks/kill_resume.py                    # compare: 20 kills, half of them with 2 loader workers
    python benchmarks/kill_resume.py --verb train       # the same for a single run
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "resume" / "kill_resume.json"
MODELS = ("inceptionnext_mini32", "timm:test_resnet")
LIMIT = 600  # training images

Outcome = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verb", choices=("compare", "train"), default="compare")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="loader workers; they share the kills")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    moments = random.Random(options.seed)
    results: dict[str, Any] = {"verb": options.verb, "threads": options.threads}
    with tempfile.TemporaryDirectory(prefix="kill_resume_") as scratch:
        for place, workers in enumerate(options.workers):
            share = options.kills // len(options.workers) + (place < options.kills % len(options.workers))
            case = Case(options.verb, workers, options.threads, options.epochs, Path(scratch) / f"workers{workers}")
            results[f"{workers} workers"] = disturb(case, share, moments)

    from torchstone.environment import write_result

    changed = "".join(
        f" --{name} {value}"
        for name, value in (("verb", options.verb), ("kills", options.kills), ("threads", options.threads))
        if value != parser.get_default(name)
    )
    write_result(
        options.result, command=f"python benchmarks/kill_resume.py{changed}", seeds=[options.seed], results=results
    )
    different = sum(results[f"{workers} workers"]["different"] for workers in options.workers)
    print(f"{options.kills} kills: {'all results are equal' if not different else f'{different} results differ'}")
    return int(different > 0)


@dataclass(frozen=True)
class Case:
    """One command in a folder of its own."""

    verb: str
    workers: int
    threads: int
    epochs: int
    folder: Path

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        for lock in out.rglob(".lock"):  # their coming back shows when training begins
            lock.unlink()
        words = [sys.executable, "-m", "torchstone", self.verb, "--out", str(out), "--device", "cpu", "--quiet"]
        if self.verb == "compare":
            words += ["--data", "digits", "--limit", str(LIMIT), "--epochs", str(self.epochs), "--batch-size", "60"]
            words += ["--seeds", "2", "--workers", str(self.workers), "--models", *MODELS]
        else:
            words += ["inceptionnext_digits", f"train.epochs={self.epochs}", f"data.workers={self.workers}"]
            words += [f"data.limit={LIMIT}", "model.args.drop_rate=0.1", "train.drop_path=0.1", "train.mixup=0.2"]
        return subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
            start_new_session=True,
        )


def disturb(case: Case, kills: int, moments: random.Random) -> dict[str, Any]:
    """Run the reference, then spend the kills; says what they met and how the results compare."""
    reference = case.folder / "reference"
    process = case.start(reference)
    began = training_begins(case, reference, process)
    finish(process)
    seconds = time.monotonic() - began
    expected = outcome(reference)
    print(f"{case.workers} workers: the reference trained for {seconds:.0f} s")

    spent, completed, different, half_written = 0, 0, 0, 0
    epochs_at_kills: list[int] = []
    while spent < kills or not different + completed:
        out = case.folder / f"disturbed{completed + different}"
        ended = False
        while not ended:
            process = case.start(out)
            training_begins(case, out, process)
            if spent < kills:
                try:
                    process.wait(moments.uniform(0, seconds))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    spent += 1
                    half_written += any(out.rglob("*.part"))
                    epochs_at_kills.append(epochs(out))
                    print(f"kill {spent} of {kills}: {epochs_at_kills[-1]} epochs in checkpoints")
                    continue
            finish(process)
            ended = True
        same = outcome(out) == expected
        completed, different = completed + same, different + (not same)
        print(f"{out.name}: {'equal' if same else 'DIFFERENT'}")
        if same:
            shutil.rmtree(out)
    return {
        "kills": spent,
        "of them inside a write": half_written,
        "epochs finished at each kill": epochs_at_kills,
        "equal": completed,
        "different": different,
        "weights": sorted({run["weights"] for run in expected["runs"].values()}),
    }


def training_begins(case: Case, out: Path, process: subprocess.Popen[bytes]) -> float:
    """Wait until the command has begun to train, or to look at what it has trained already; the moment of that."""
    folder = out if case.verb == "train" else out / "runs"
    while not any(folder.rglob(".lock")) and process.poll() is None:
        time.sleep(0.05)
    return time.monotonic()


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, process.args))} failed:\n{errors.decode()}")  # type: ignore[arg-type]


def run_directories(out: Path) -> list[Path]:
    return sorted(file.parent for file in out.rglob("identity.json"))


def epochs(out: Path) -> int:
    """Epochs that the checkpoints in a folder have behind them."""
    import torch

    checkpoints = [run / "checkpoint" for run in run_directories(out) if (run / "checkpoint").exists()]
    return sum(torch.load(checkpoint, weights_only=True)["epochs_done"] for checkpoint in checkpoints)


def outcome(out: Path) -> Outcome:
    """All numbers of a folder but times and measured costs."""
    runs = {}
    for run in run_directories(out):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((run / "result.json").read_text())
        runs[str(run.relative_to(out))] = {
            "weights": digest(run / "model.safetensors"),
            "rows": [without_seconds(row) for row in rows],
            "result": without_seconds(result),
            "test": digest(run / "test.safetensors") if (run / "test.safetensors").exists() else None,
        }
    found: Outcome = {"runs": runs}
    if (out / "results.json").exists():
        results = json.loads((out / "results.json").read_text())
        names = ("name", "status", "reason", "lr", "trials", "score", "low", "high", "confusion", "tied_with")
        found["candidates"] = [
            {name: candidate[name] for name in names} | {"runs": [without_seconds(run) for run in candidate["runs"]]}
            for candidate in results["candidates"]
        ]
        found["data"], found["protocol"] = results["data"], results["protocol"]
    return found


def without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "seconds"}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
