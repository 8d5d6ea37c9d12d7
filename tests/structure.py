"""The size and the imports of the package, counted: ``python tests/structure.py``.

Prints lines of code by package (without docstrings, comments and blank lines), the longest files
and functions, the imports from a lower layer to a higher one, the circles of modules, and the
number of public names.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "flowkit"
#: From the lowest to the highest; packages in one entry know nothing of each other.
LAYERS: list[tuple[str, ...]] = [
    ("errors",),
    ("checks", "arrays"),
    ("shapes",),
    ("config", "files"),
    ("numerics",),
    ("statistics", "plotting"),
    ("kernels",),
    ("scalar",),
    ("conditioners",),
    ("bases",),
    ("energies",),
    ("transforms",),
    ("ends",),
    ("density",),
    ("pushforward",),
    ("change_of_variables",),
    ("stochastic", "support", "summary"),
    ("distribution",),
    ("flow",),
    ("mixture",),
    ("content",),
    ("io",),
    ("data",),
    ("datasets",),
    ("toys",),
    ("dependence",),
    ("objectives",),
    ("training",),
    ("recipes",),
    ("molecules",),
    ("estimators", "interop"),
    ("cli",),
    ("testing",),
]


def files(root: Path = ROOT) -> list[Path]:
    """All modules of the package."""
    return sorted((root / PACKAGE).rglob("*.py"))


def code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: no docstrings, comments or blank lines."""
    skip = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENCODING, tokenize.ENDMARKER,
    }  # fmt: skip
    with path.open("rb") as file:
        lines = {
            line
            for token in tokenize.tokenize(file.readline)
            if token.type not in skip
            for line in range(token.start[0], token.end[0] + 1)
        }
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for statement in body:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    text = statement.value
                    if isinstance(text.value, str):
                        lines -= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function of a file with the lines of code of its body."""
    lines = code_lines(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
            yield node.name, len(lines & set(body))


def module_name(path: Path, root: Path = ROOT) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """What every module imports of the package, for typing and inside functions too."""
    names = {module_name(path, root) for path in files(root)}
    graph: dict[str, set[str]] = {}
    for path in files(root):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in names else node.module)
        name = module_name(path, root)
        graph[name] = {other for other in found if other in names and other != name}
    return graph


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports from a lower layer of :data:`LAYERS` to a higher one, or beside it."""
    level = {name: i for i, names in enumerate(LAYERS) for name in names}

    def part(module: str) -> str:
        return module.split(".")[1] if "." in module else ""

    pairs = []
    for module, others in graph.items():
        for other in others:
            here, there = part(module), part(other)
            if here in ("", "__main__") or here == there:
                continue
            if there == "" or level.get(there, 99) >= level.get(here, -1):
                pairs.append((module, other))
    return sorted(pairs)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle; a package counts as its modules."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while True:
                group.append(stack.pop())
                if group[-1] == node:
                    break
            if len(group) > 1:
                groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def public_names() -> dict[str, list[str]]:
    """What the package and its parts name in ``__all__``, each object once, where it is first."""
    flowkit = importlib.import_module(PACKAGE)
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    parts = [f"{PACKAGE}.{part.name}" for part in pkgutil.iter_modules(flowkit.__path__)]
    for name in [PACKAGE, *(part for part in parts if not part.endswith("__main__"))]:
        names = getattr(importlib.import_module(name), "__all__", [])
        found[name] = [item for item in names if item not in seen]
        seen |= set(names)
    return {name: names for name, names in found.items() if names}


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    sizes: Counter[str] = Counter()
    for path in files(root):
        parts = module_name(path, root).split(".")
        sizes[parts[1] if len(parts) > 1 else PACKAGE] += len(code_lines(path))
    for name, size in sizes.most_common():
        print(f"{name:15} {size:6}")
    print(f"{'all':15} {sum(sizes.values()):6}")
    long = [(len(path.read_text().splitlines()), module_name(path, root)) for path in files(root)]
    print("files over 400 lines:", sorted(pair for pair in long if pair[0] > 400))
    bodies = [
        (size, f"{module_name(path, root)}.{name}")
        for path in files(root)
        for name, size in functions(path)
    ]
    print("functions over 60 lines:", sorted(pair for pair in bodies if pair[0] > 60))
    graph = imports(root)
    print("upward imports:", len(upward(graph)), *upward(graph), sep="\n  ")
    print("circles:", len(circles(graph)), *circles(graph), sep="\n  ")
    if root == ROOT:
        names = public_names()
        print("public names:", sum(map(len, names.values())))
        for name, own in names.items():
            print(f"  {name} {len(own)}: {' '.join(own)}")


if __name__ == "__main__":
    main()
