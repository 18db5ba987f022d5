"""``python -m torchstone.run SCRIPT ...``: run a script that builds its models through timm, with ours registered.

    python -m torchstone.run train.py --model inceptionnext_mini32 ...
    python -m torchstone.run validate.py --model ecanet_mini32 ...

The script runs as it would with ``python SCRIPT ...``: as ``__main__``, with its own arguments and folder.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Register our models with timm, then run a script.

    Args:
        arguments: the script and what it is given.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    script = Path(arguments[0])
    if not script.is_file():
        print(f"error: there is no script {script}", file=sys.stderr)
        raise SystemExit(2)

    from torchstone.models.registry import register_with_timm

    register_with_timm()
    sys.argv = [str(script), *arguments[1:]]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
