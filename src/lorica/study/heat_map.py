"""Where the rank went, as inline SVG: a square a site, layers across and roles down, the darker the more it kept.

Colours come from the page's style, so that the drawing follows its light and its dark look.
"""

from collections.abc import Iterator
from html import escape

from lorica.adapter.ranks import RankGrid

WIDTH, LETTER, ROW = 760, 6.8, 24
"""Of the drawing; of a letter of its text, about; of a line."""
WIDEST_CELL, NARROWEST_TEXT = 40, 17
"""A cell narrower than this has its number in its title alone."""
FAINTEST, DARK = 0.08, 0.72
"""Opacity of one kept value of many; from DARK on the number stands in the page's own colour."""


def heat_map(grid: RankGrid) -> str:
    """The drawing with its legend."""
    left = 12 + LETTER * max(len("layer"), *map(len, grid.roles))
    cell = min(WIDEST_CELL, (WIDTH - left) / len(grid.layers))
    height = ROW * (len(grid.roles) + 1)
    parts = [*_columns(grid, left, cell), *_rows(grid, left, cell)]
    label = escape(f"{grid.total} singular values at {len(grid.kept)} sites, at most {grid.most} at one", quote=True)
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'{drawing}<p class="legend">{_told(grid)}</p>'


def _told(grid: RankGrid) -> str:
    empty = sum(count == 0 for count in grid.kept.values())
    bare = f"; {empty} kept none" if empty else ""
    return f"{grid.total} singular values are kept at {len(grid.kept)} sites, at most {grid.most} at one{bare}"


def _columns(grid: RankGrid, left: float, cell: float) -> Iterator[str]:
    stride = max(1, round(NARROWEST_TEXT * 1.3 / cell))
    yield f'<text x="{left - 10:.1f}" y="{ROW - 8}" text-anchor="end">layer</text>'
    for column, layer in list(enumerate(grid.layers))[::stride]:
        yield f'<text x="{left + (column + 0.5) * cell:.1f}" y="{ROW - 8}" text-anchor="middle">{escape(layer)}</text>'


def _rows(grid: RankGrid, left: float, cell: float) -> Iterator[str]:
    for row, role in enumerate(grid.roles, 1):
        yield f'<text x="{left - 10:.1f}" y="{row * ROW + 16}" text-anchor="end">{escape(role)}</text>'
        for column, layer in enumerate(grid.layers):
            if (role, layer) in grid.kept:
                yield _cell(grid, role, layer, left + column * cell, row * ROW, cell)


def _cell(grid: RankGrid, role: str, layer: str, x: float, y: float, width: float) -> str:
    count = grid.kept[role, layer]
    shade = FAINTEST + (1 - FAINTEST) * count / grid.most if count else 0
    title = escape(f"layer {layer} {role}: {count}" if layer else f"{role}: {count}")
    box = (
        f'<rect class="cell" x="{x + 1:.1f}" y="{y + 1}" width="{width - 2:.1f}" height="{ROW - 2}" rx="3" '
        f'fill-opacity="{shade:.2f}"><title>{title}</title></rect>'
    )
    if width < NARROWEST_TEXT:
        return box
    kind = "on" if shade >= DARK else "off"
    return f'{box}<text class="{kind}" x="{x + width / 2:.1f}" y="{y + 16}" text-anchor="middle">{count}</text>'
