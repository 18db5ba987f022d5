"""The one command that measures on a GPU says clearly what it cannot do."""

import os
import stat
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


def run(*words, python=sys.executable):
    environment = {**os.environ, "PYTHON": str(python), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so_and_changes_nothing():
    done = run()
    assert done.returncode == 3, done.stderr
    assert "no GPU that PyTorch can use here" in done.stderr
    assert "nothing was measured" in done.stderr


def test_a_name_that_no_benchmark_has_is_refused_with_those_there_are():
    done = run("long_convolution")
    assert done.returncode == 2
    assert "there is no benchmarks/gpu/long_convolution.py" in done.stderr
    assert "benchmarks/gpu/long_conv.py" in done.stderr


def test_it_tells_when_a_benchmark_fails(tmp_path):
    python = tmp_path / "python"  # claims a GPU, and fails at every script
    python.write_text('#!/bin/sh\n[ "$1" = -c ]\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    done = run("long_conv", python=python)
    assert done.returncode == 1
    assert "failed, exit code 1: benchmarks/gpu/long_conv.py" in done.stderr
