"""Count how readable the package is: size, layers, imports, comments, docstrings, plain language.

    python -m scripts.code_metrics              # this checkout
    python -m scripts.code_metrics --root DIR   # another checkout of the project
    python -m scripts.code_metrics --idioms     # each phrase that the language rules avoid

Definitions: a *room* is a top-level entry of `imsm/` (a package or a module), an *arrow* a pair of
rooms of which one imports the other, and the *floors* are the longest chain of arrows. The number
of frames above the training loop is measured by `tests/pipeline/test_run.py`, not here.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

TEXTS = ("README.md", "docs/**/*.md", "conf/**/*.yaml", "imsm/**/*.py", "experiments/*/README.md")
IDIOMS = {
    "go on (resume, continue)": r"\bgo(?:es|ing)? on\b|\bwent on\b",
    "tell, say (report, print, raise)": r"\b(?:is|are|was|be) (?:told|said)\b|\btells?\b|\bsays?\b",
    "to be had (available)": r"\bbe had\b",
    "of one's own (custom)": r"\bof (?:one's|its|their|your) own\b",
    "let go": r"\blet(?:s)? go\b",
    "lie, stand (be, be stored)": r"\b(?:lies|lie|stands|stand) (?:in|under|beside|there|at|on|for)\b",
    "beside (next to)": r"\bbeside\b",
    "apart (separate)": r"\bapart\b",
    "whole (complete)": r"\b(?:is|are|be|not|as) whole\b",
    "so many (N)": r"\bso (?:many|much)\b",
    "who (of a thing)": r"\bwho (?:answers|speaks|waits|writes|asks)\b",
    "is no (is not a)": r"\b(?:is|are|was) no\b",
    "ask (run, query)": r"\b(?:is|are|was|be) asked\b|\basks? (?:it|for|the model)\b",
    "judge (evaluate)": r"\bjudg(?:e|es|ed|ing|ement)\b",
    "leave (write, exit)": r"\bleaves? (?:a|its|the|behind)\b",
    "carry out (run)": r"\bcarr(?:y|ies|ied) (?:it |one run |the training )?out\b",
    "arm (method)": r"\barms?\b",
    "ledger (response cache)": r"\bledgers?\b",
    "twin (synthetic dataset)": r"\btwins?\b",
    "what it gives": r"\bwhat (?:it|this|that|they) (?:gives?|is given|has|says?|made)\b",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--idioms", action="store_true", help="list every hit")
    arguments = parser.parse_args()
    if arguments.idioms:
        for path, line, phrase, text in idioms(arguments.root):
            print(f"{path}:{line}: {phrase}: {text}")
        return
    for name, value in metrics(arguments.root).items():
        print(f"{name:<64} {value}")


def metrics(root: Path) -> dict[str, str]:
    """Each count by its name, as text."""
    files = sorted((root / "imsm").rglob("*.py"))
    lines = sum(len(_source(file).splitlines()) for file in files)
    functions = [node for file in files for node in ast.walk(_tree(file)) if isinstance(node, ast.FunctionDef)]
    long = sum(node.end_lineno - node.lineno >= 60 for node in functions if node.end_lineno)
    public = [node for file in files for node in _public(_tree(file))]
    rooms, arrows = _rooms(root / "imsm")
    words = sum(len(text.split()) for path in _texts(root) for _, text in _prose(path))
    hits = sum(1 for _ in idioms(root))
    readme = _source(root / "README.md").splitlines()
    first = next((number for number, line in enumerate(readme, 1) if line.startswith("```")), 0)
    modules = [f for f in files if f.name not in ("__init__.py", "__main__.py")]
    mirrored = sum(_mirrored(root, file) for file in modules)
    documented = sum(ast.get_docstring(node) is not None for node in public)
    return {
        "lines of the package": f"{lines:,}",
        "top-level entries of the package": str(len(rooms)),
        "imports inside functions, per 1,000 lines": f"{1000 * _local_imports(files) / lines:.1f}",
        "rooms / floors / arrows of the import graph": f"{len(rooms)} / {_floors(rooms, arrows)} / {len(arrows)}",
        "comment lines, share": f"{100 * sum(map(_comments, files)) / lines:.1f} %",
        "idioms per 1,000 words": f"{1000 * hits / words:.1f} ({hits} in {words:,})",
        "README words / first code block at line": f"{sum(len(line.split()) for line in readme):,} / {first}",
        "functions over 60 lines": f"{100 * long / len(functions):.1f} % ({long} of {len(functions)})",
        "docstrings of public names": f"{100 * documented / len(public):.0f} %",
        "modules with a test at the same path": f"{100 * mirrored / len(modules):.0f} % ({mirrored}/{len(modules)})",
    }


def idioms(root: Path) -> Iterator[tuple[Path, int, str, str]]:
    """Each hit: file, line, the idiom with its plain words, and the text around it."""
    for path in _texts(root):
        for line, text in _prose(path):
            for phrase, pattern in IDIOMS.items():
                for _ in re.finditer(pattern, text, re.IGNORECASE):
                    yield path.relative_to(root), line, phrase, text.strip()[:100]


def _texts(root: Path) -> list[Path]:
    return [path for pattern in TEXTS for path in sorted(root.glob(pattern))]


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that a person reads: Markdown, comments, and string constants with a space."""
    source = _source(path)
    if path.suffix == ".md":
        yield from enumerate(source.splitlines(), 1)
        return
    for number, line in enumerate(source.splitlines(), 1):
        if path.suffix == ".yaml" and "#" in line:
            yield number, line[line.index("#") :]
        elif path.suffix == ".py" and line.lstrip().startswith("#"):
            yield number, line
    if path.suffix == ".py":
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield from ((node.lineno + offset, line) for offset, line in enumerate(node.value.splitlines()))


def _rooms(package: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Top-level entries of the package, and which imports which."""
    entries = {file.relative_to(package).parts[0].removesuffix(".py") for file in package.rglob("*.py")} - {"__init__"}
    arrows = set()
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for name in _imported(_tree(file)):
            target = name.split(".")[1] if name.startswith("imsm.") else None
            if room in entries and target in entries and target != room:
                arrows.add((room, target))
    return entries, arrows


def _floors(rooms: set[str], arrows: set[tuple[str, str]]) -> int:
    """The longest chain of imports; a circle counts as one floor more for each of its rooms."""

    def depth(room: str, above: tuple[str, ...]) -> int:
        below = [target for source, target in arrows if source == room and target not in above]
        return 1 + max((known(target, (*above, room)) for target in below), default=0)

    found: dict[str, int] = {}

    def known(room: str, above: tuple[str, ...]) -> int:
        if room not in found:
            found[room] = depth(room, above)
        return found[room]

    return max(known(room, ()) for room in sorted(rooms))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _local_imports(files: list[Path]) -> int:
    found = set()
    for file in files:
        for node in ast.walk(_tree(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= {(file, n.lineno) for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)}
    return len(found)


def _comments(file: Path) -> int:
    """Lines that hold a comment alone; directives of linters do not count."""
    directives = ("# type:", "# noqa", "# fmt:", "#!")
    lines = (line.strip() for line in _source(file).splitlines())
    return sum(line.startswith("#") and not line.startswith(directives) for line in lines)


def _public(tree: ast.Module) -> Iterator[Any]:
    """Public functions and classes of a module, and the classes' public methods."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))


def _mirrored(root: Path, module: Path) -> bool:
    place = module.relative_to(root / "imsm")
    return (root / "tests" / place.parent / f"test_{place.name}").is_file()


@cache
def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(_source(file))


if __name__ == "__main__":
    main()
