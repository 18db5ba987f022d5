import importlib.util
import sys
import types

import pytest
from _toy import ADAPTER, CARD, Toy, convert, toy_factory

from torchstone import catalog
from torchstone.models import registry


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The toy's card, module and adapter, as if they were part of the package."""
    (tmp_path / "toy.toml").write_text(CARD)
    card = catalog.read_card(tmp_path / "toy.toml")
    module = types.ModuleType("torchstone.models.image.toy")
    module.Toy, module.convert = Toy, convert
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made = [toy_factory("toy_mini32", num_classes=5), toy_factory("toy_base"), toy_factory("toy_grey", in_chans=1)]
    monkeypatch.setattr(registry, "_factories", {factory.__name__: factory for factory in made})
    monkeypatch.setattr(catalog, "cards", lambda: {"toy": card})
    monkeypatch.setattr(catalog, "variants", lambda: {variant.name: card for variant in card.variants})
    (tmp_path / "adapter.py").write_text(ADAPTER)
    spec = importlib.util.spec_from_file_location("toy_adapter", tmp_path / "adapter.py")
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    verify = importlib.import_module("torchstone.verification.verify")  # the package shows the function by that name
    monkeypatch.setattr(verify, "load_adapter", lambda key: adapter)
    return types.SimpleNamespace(card=card, adapter=adapter)
