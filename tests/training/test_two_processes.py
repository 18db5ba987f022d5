"""Training shared by processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _small import small

from torchstone.training.fit import fit
from torchstone.training.runs import load_run

SCRIPT = """
import os
import sys
import torch
from pathlib import Path
from _small import small
from torchstone.training.fit import fit
from test_two_processes import CHANGES

torch.set_num_threads(1)
result = fit(small(**CHANGES), sys.argv[1], device="cpu")
os.write(1, f"score {result.score} trained {result.trained}\\n".encode())  # in one piece
"""

# Nothing random but the order, so that the processes do one process's arithmetic, up to its order.
CHANGES = {
    "model": {"args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "train": {"epochs": 2, "optimizer": "sgd", "lr": 0.05, "clip_grad": 1.0, "mixup": 0.0, "drop_path": None},
}


def test_two_processes_under_torchrun_train_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    shared = subprocess.run(
        [*torchrun, tmp_path / "script.py", tmp_path / "shared"],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (shared.returncode, shared.stderr) == (0, "")
    alone = fit(small(**CHANGES), tmp_path / "alone", device="cpu")
    assert shared.stdout.splitlines() == [f"score {alone.score} trained 2"] * 2

    rows = [json.loads(line) for line in (tmp_path / "shared" / "metrics.jsonl").read_text().splitlines()]
    for row, expected in zip(rows, alone.rows, strict=True):
        assert row == pytest.approx({**expected, "seconds": row["seconds"]}, rel=1e-5)
    for a, b in zip(_weights(tmp_path / "shared"), _weights(tmp_path / "alone"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def _weights(run):
    return load_run(run)[0].state_dict().values()


def _environment():
    import os

    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
