"""The oldest versions in ``pyproject.toml`` as constraints: ``python tests/oldest.py``.

Every requirement ``name>=version`` of the package and of the extras that the suite needs becomes
``name==version``; torch is left to the caller.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

EXTRAS = ("test", "tables", "patches")


def requirements(text: str) -> list[str]:
    """The requirements of the package and of :data:`EXTRAS`, without a parser of TOML."""
    found = re.findall(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)
    for extra in EXTRAS:
        found += re.findall(rf"^{extra} = \[(.*?)\]\s*$", text, re.M | re.S)
    return re.findall(r'"([^"]+)"', "".join(found))


def constraints(text: str) -> list[str]:
    """``name==version`` of each lower bound, with its marker."""
    lines = []
    for requirement in requirements(text):
        bound = re.match(r"([\w.-]+)>=([\d.]+)(\s*;.*)?$", requirement)
        if bound and bound[1] != "torch":
            lines.append(f"{bound[1]}=={bound[2]}{bound[3] or ''}")
    return lines


if __name__ == "__main__":
    project = Path(__file__).parent.parent / "pyproject.toml"
    sys.stdout.write("\n".join(constraints(project.read_text())) + "\n")
