"""Draws local_attention.png: what kernel, dilation and border of `attnops.local_attention` mean.

python docs/pictures/draw_local_attention.py
"""

from __future__ import annotations

from matplotlib.patches import Rectangle
from panels import figure, save

SIDE = 11
PANELS = (  # title, query, kernel, dilation, border
    ("kernel_size=3\ndilation=1", (5, 5), (3, 3), (1, 1), "zero"),
    ("kernel_size=5\ndilation=2", (5, 5), (5, 5), (2, 2), "zero"),
    ("kernel_size=(3, 5)\ndilation=(3, 1)", (5, 5), (3, 5), (3, 1), "zero"),
    ('border="zero"', (1, 2), (5, 5), (2, 2), "zero"),
    ('border="mask"', (1, 2), (5, 5), (2, 2), "mask"),
)
QUERY, NEIGHBOUR, PADDED, MAP = "#c0392b", "#5b9bd5", "#d9e6f5", "#f4f4f4"


def neighbours(query, kernel, dilation):
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield (
                query[0] + (i - kernel[0] // 2) * dilation[0],
                query[1] + (j - kernel[1] // 2) * dilation[1],
            )


def draw_panel(axes, title, query, kernel, dilation, border) -> None:
    for row in range(SIDE):
        for column in range(SIDE):
            axes.add_patch(Rectangle((column, row), 1, 1, fc=MAP, ec="#bbbbbb", lw=0.6))
    for row, column in neighbours(query, kernel, dilation):
        inside = 0 <= row < SIDE and 0 <= column < SIDE
        if inside:
            axes.add_patch(Rectangle((column, row), 1, 1, fc=NEIGHBOUR, ec="#bbbbbb", lw=0.6))
        elif border == "zero":
            axes.add_patch(Rectangle((column, row), 1, 1, fc=PADDED, ec=NEIGHBOUR, lw=0.8, ls=":"))
            axes.text(column + 0.5, row + 0.52, "0", ha="center", va="center", fontsize=11)
        else:
            axes.plot([column + 0.2, column + 0.8], [row + 0.2, row + 0.8], color="#999999", lw=0.9)
            axes.plot([column + 0.2, column + 0.8], [row + 0.8, row + 0.2], color="#999999", lw=0.9)
    row, column = query
    axes.add_patch(Rectangle((column, row), 1, 1, fc="none", ec=QUERY, lw=2))
    axes.set_xlim(-2.6, SIDE + 0.3)
    axes.set_ylim(SIDE + 0.3, -3.2)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=15)


def main() -> None:
    drawn, panels = figure(len(PANELS), height=3.3)
    for axes, panel in zip(panels, PANELS, strict=True):
        draw_panel(axes, *panel)
    save(drawn, "local_attention", colours=64)


if __name__ == "__main__":
    main()
