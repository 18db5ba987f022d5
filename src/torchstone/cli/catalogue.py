"""``list`` and ``show``: what there is, read from the cards."""

from __future__ import annotations

import json
import sys
from typing import Annotated, get_args

import typer

from torchstone import catalog
from torchstone.cli.arguments import output
from torchstone.errors import unknown_name


def add_to(app: typer.Typer) -> None:
    app.command("list")(list_systems)
    app.command("show")(show)


def list_systems(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORD", help="Words that must all occur in a system's card.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"One of {', '.join(get_args(catalog.Kind))}.")] = None,
    domain: Annotated[str | None, typer.Option(help="The room, such as image or graph.")] = None,
    proof: Annotated[str | None, typer.Option(help=f"One of {', '.join(get_args(catalog.Proof))}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with the names of the models.")] = False,
) -> None:
    """List the systems.

    \b
    Examples:
      torchstone list
      torchstone list attention --domain image
      torchstone list --kind model --proof official --json
    """
    cards = list(catalog.cards().values())
    for name, wanted, valid in (
        ("kind", kind, get_args(catalog.Kind)),
        ("domain", domain, {card.domain for card in cards}),
        ("proof", proof, get_args(catalog.Proof)),
    ):
        if wanted is not None and wanted not in valid:
            raise unknown_name(name, wanted, valid)
        cards = [card for card in cards if wanted is None or getattr(card, name) == wanted]
    cards = [card for card in cards if all(word.lower() in _text(card) for word in words or ())]
    if as_json:
        print(json.dumps([_facts(card) for card in cards], indent=1, ensure_ascii=False))
        return

    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("system", "kind", "domain", "proof", "models", "title"):
        table.add_column(heading, no_wrap=heading != "title", justify="right" if heading == "models" else "left")
    for card in cards:
        table.add_row(card.key, card.kind, card.domain, card.proof, str(len(card.variants)), card.title)
    output().print(table)


def _text(card: catalog.Card) -> str:
    models = [variant.name for variant in card.variants]
    facts = [card.key, card.title, card.venue, card.arxiv, card.summary, card.task]
    return " ".join([*facts, *card.parts, *models]).lower()


def _facts(card: catalog.Card) -> dict[str, object]:
    names = ("key", "title", "venue", "arxiv", "kind", "domain", "proof", "summary")
    return {**{name: getattr(card, name) for name in names}, "models": [variant.name for variant in card.variants]}


def show(key: Annotated[str, typer.Argument(metavar="KEY", help="A system, as torchstone list shows it.")]) -> None:
    """Show all that is known of one system: facts, idea, variants, claim and measured results.

    \b
    Examples:
      torchstone show inceptionnext
      torchstone show ecanet > ecanet.md
    """
    from torchstone.reporting.gallery import system_page

    page = system_page(key)
    if not sys.stdout.isatty():
        print(page, end="")
        return

    from rich.markdown import Markdown

    output().print(Markdown(page))
