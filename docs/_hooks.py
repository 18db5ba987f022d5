"""mkdocs hook: the home page is the README, and every system's page is made from its card and docstring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from torchstone import catalog
from torchstone.reporting.gallery import gallery, system_page

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: Any) -> Files:
    readme = (ROOT / "README.md").read_text().replace("docs/images/", "images/").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "systems/index.md", content=f"# Systems\n\n{gallery(link='{key}.md')}\n"))
    for key in catalog.cards():
        files.append(File.generated(config, f"systems/{key}.md", content=system_page(key)))
    return files
