import _described
import pytest

from torchstone.errors import CallError
from torchstone.instruments import Conditions, ModelDescription, measure_memory, probe_training_step

pytestmark = pytest.mark.usefixtures("warm_processes")

MB = 10**6
WIDTH = 4 * MB


def test_memory_is_that_of_weights_and_activations():
    """Four million weights, and as many activations per sample: 16 MB of each."""
    narrow = _described.WideDescription("wide", (1,), width=1)
    wide = _described.WideDescription("wide", (1,), width=WIDTH)
    base = measure_memory(narrow, batch_sizes=(1, 2))
    peaks = measure_memory(wide, batch_sizes=(2, 1))
    assert list(peaks) == [1, 2]
    assert peaks[1] - base[1] == pytest.approx(32 * MB, abs=4 * MB)
    assert peaks[2] - base[2] == pytest.approx(48 * MB, abs=4 * MB)


def test_memory_halves_with_the_precision():
    wide = _described.WideDescription("wide", (1,), width=4 * WIDTH)
    full = measure_memory(wide)[1]
    half = measure_memory(wide, conditions=Conditions(dtype="bfloat16"))[1]
    assert full == pytest.approx(128 * MB, abs=8 * MB)
    assert half == pytest.approx(64 * MB, abs=8 * MB)


def test_the_deploy_form_is_what_runs_unless_told_otherwise():
    with pytest.raises(CallError, match="does not take inputs of shape 1x7"):
        measure_memory(_described.BranchedDescription("branched", (7,)))
    assert measure_memory(_described.BranchedDescription("branched", (8,)), conditions=Conditions(deploy=False))[1] > 0


def test_a_training_step_also_holds_gradients_and_optimizer_state():
    """Weights, their gradient and AdamW's two moments: four times the weights, besides what passes."""
    probe = probe_training_step(_described.WideDescription("wide", (1,), width=WIDTH), batch_size=1, num_classes=4)
    assert probe.failure == ""
    assert 4 * 16 * MB < probe.memory_bytes < 16 * 16 * MB
    assert probe.seconds > 0


def test_a_killed_training_step_is_a_finding():
    probe = probe_training_step(_described.DeadlyDescription("deadly", (3, 8, 8)), batch_size=2, num_classes=4)
    assert probe.memory_bytes is None
    assert probe.failure == ("training on 2x3x8x8: the process was killed, most likely because memory ran out")


def test_an_unsupported_size_is_a_finding():
    description = ModelDescription("timm:vit_tiny_patch16_224", (3, 32, 32), {"num_classes": 4, "depth": 1})
    probe = probe_training_step(description, batch_size=2, num_classes=4)
    assert probe.failure.startswith("VisionTransformer does not take inputs of shape 2x3x32x32")
    assert "\n" not in probe.failure


def test_too_slow_is_a_finding():
    wide = _described.WideDescription("wide", (1,), width=WIDTH)
    probe = probe_training_step(wide, batch_size=1, num_classes=4, timeout=0.001)
    assert "took longer than 0.001 s" in probe.failure


def test_an_unknown_optimizer_is_a_finding():
    probe = probe_training_step(
        _described.WideDescription("wide", (1,)), batch_size=1, num_classes=4, optimizer="adamx"
    )
    assert "adamx" in probe.failure
