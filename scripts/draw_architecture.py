"""Draw the packages of imsm and their imports as they are: docs/assets/architecture.svg.

    python -m scripts.draw_architecture [FILE]

Rows are the layers that import-linter enforces (pyproject.toml), from the command line at the top to
`utils` at the bottom. A line connects two packages of which the upper one imports the lower one; its
width grows with the number of importing modules.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH, ROW, BOX, HEIGHT, MARGIN = 860, 92, 400, 58, 24


def main() -> None:
    """Write the picture."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "assets" / "architecture.svg"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(draw(), encoding="utf-8")
    print(file)


def draw() -> str:
    """The SVG as text."""
    rows = layers()
    places = {}
    for number, row in enumerate(rows):
        width = BOX if len(row) == 1 else (WIDTH - 3 * MARGIN) / 2
        for column, name in enumerate(row):
            left = (WIDTH - width) / 2 if len(row) == 1 else MARGIN + column * (width + MARGIN)
            places[name] = (left, MARGIN + number * ROW, width)
    height = 2 * MARGIN + (len(rows) - 1) * ROW + HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif">',
        "<title>Packages of imsm and the imports between them</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        "<style>.box{fill:#eef3fb;stroke:#3b5b8c}.line{stroke:#7a8fb3;fill:none;opacity:.45}"
        ".name{font-weight:600;font-size:16px;fill:#1c2b45}.about{font-size:11.5px;fill:#34435e}</style>",
    ]
    for (upper, lower), count in sorted(imports().items()):
        parts.append(_line(places[upper], places[lower], width=min(5.0, 0.8 + count / 6)))
    for name, (left, top, width) in places.items():
        modules = len([f for f in (ROOT / "imsm" / name).rglob("*.py") if f.name != "__init__.py"])
        parts += [
            f'<rect class="box" x="{left:g}" y="{top:g}" width="{width:g}" height="{HEIGHT}" rx="8"/>',
            f'<text class="name" x="{left + 14:g}" y="{top + 24:g}">{name}/'
            f'<tspan class="about" dx="10">{modules} modules</tspan></text>',
            f'<text class="about" x="{left + 14:g}" y="{top + 44:g}">{escape(purpose(name))}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def layers() -> list[list[str]]:
    """Packages by layer, the highest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip().removeprefix("imsm.") for name in row.split("|")] for row in rows]


def imports() -> Counter[tuple[str, str]]:
    """Number of modules of one package that import another, by (importing, imported)."""
    found: Counter[tuple[str, str]] = Counter()
    for file in sorted((ROOT / "imsm").glob("*/**/*.py")):
        package = file.relative_to(ROOT / "imsm").parts[0]
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        targets = {name.split(".")[1] for name in names if name.startswith("imsm.")}
        found.update((package, target) for target in targets - {package} if (ROOT / "imsm" / target).is_dir())
    return found


def purpose(package: str) -> str:
    """First line of the package's docstring, without its full stop."""
    tree = ast.parse((ROOT / "imsm" / package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")


def _line(upper: tuple[float, float, float], lower: tuple[float, float, float], *, width: float) -> str:
    start = (upper[0] + upper[2] / 2, upper[1] + HEIGHT)
    end = (lower[0] + lower[2] / 2, lower[1])
    skipped = max(0.0, (end[1] - start[1]) / ROW - 0.4)
    bend = 46 * skipped * (1 if (start[0] + end[0]) / 2 >= WIDTH / 2 else -1)
    middle = ((start[0] + end[0]) / 2 + bend, (start[1] + end[1]) / 2)
    return (
        f'<path class="line" stroke-width="{width:.1f}" d="M{start[0]:g},{start[1]:g} '
        f'Q{middle[0]:g},{middle[1]:g} {end[0]:g},{end[1]:g}"/>'
    )


if __name__ == "__main__":
    main()
