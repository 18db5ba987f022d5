import multiprocessing

import pytest
from _small import outcome, small

from torchstone.training.fit import fit


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run, to be read only."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    fit(small(), path, device="cpu")
    return path


@pytest.fixture(scope="session")
def uninterrupted(finished):
    """All numbers of that run, times aside."""
    return outcome(finished)


@pytest.fixture(scope="session")
def processes():
    """Where processes come from that can be killed: a server that has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchstone.training.fit", "sklearn.datasets"])
    return context
