"""Every instrument gives findings: frozen values that can be written down, drawn, and made from the command line."""

import dataclasses
import importlib
import json

import plotly.graph_objects as go
import pytest
import typer

from torchstone.catalog import cards
from torchstone.cli import app
from torchstone.instruments.figures import page

CARDS = [
    pytest.param(card, id=card.key, marks=pytest.mark.system(card.key))
    for card in cards().values()
    if card.kind == "instrument"
]


@pytest.fixture(scope="module", params=CARDS)
def findings(request):
    """One small finding of each kind, by the name under which ``torchstone inspect`` makes it."""
    return importlib.import_module(request.param.module).examples()


def test_findings_are_frozen_values(findings):
    assert findings
    for finding in findings.values():
        assert dataclasses.is_dataclass(finding)
        field = dataclasses.fields(finding)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(finding, field, None)


def test_findings_can_be_written_down(findings):
    for finding in findings.values():
        content = finding.to_dict()
        assert json.loads(json.dumps(content, allow_nan=False)).keys() == content.keys()
        assert {field.name for field in dataclasses.fields(finding)} <= content.keys()


def test_findings_can_be_drawn(findings):
    for finding in findings.values():
        figure = finding.plot()
        assert isinstance(figure, go.Figure)
        assert figure.layout.title.text
        assert any(len(trace.x if trace.x is not None else ()) for trace in figure.data)
        assert page(figure).startswith("<!doctype html>")


def test_findings_are_made_by_the_command_line(findings):
    group = typer.main.get_command(app).commands["inspect"]
    for name in findings:
        command = group.commands[name]
        assert "Examples:" in command.help
        assert {"--json", "--plot"} <= {option for parameter in command.params for option in parameter.opts}
