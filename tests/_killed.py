"""A run that is killed and goes on, beside one that was never interrupted."""

import pytest

from torchstone.training.fit import fit


def whole_and_resumed(recipe, folder, epoch):
    """Both runs of a recipe, the second killed in an epoch; they must have the same weights and metrics."""

    def kill(progress):
        if progress.epoch == epoch:
            raise KeyboardInterrupt

    whole = fit(recipe, folder / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, folder / "killed", device="cpu", progress=kill)
    resumed = fit(recipe, folder / "killed", device="cpu")
    assert 0 < resumed.trained < recipe.train.epochs
    weights = sorted(path.name for path in whole.path.glob("*.safetensors"))
    assert weights
    for file in weights:
        assert (whole.path / file).read_bytes() == (resumed.path / file).read_bytes(), file
    rows = [[{**row, "seconds": 0} for row in run.rows] for run in (whole, resumed)]
    assert rows[0] == rows[1]
    return whole, resumed
