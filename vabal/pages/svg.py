"""An inline SVG that follows the page's light or dark theme.

matplotlib draws with stand-in colours, one a role; they become CSS variables of the page (`page.css` holds them).
Letters stay letters, so that the page's fonts apply and a name can be searched. The same numbers give the same bytes.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"  # stand-ins, see _themed

_SETTINGS: Any = {
    "svg.hashsalt": "vabal",
    "svg.fonttype": "none",
    "text.parse_math": False,  # "$" in a class's name is a dollar
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",  # matplotlib's own; the page puts another one over it
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
}


@contextmanager
def canvas(size: tuple[float, float], label: str, prefix: str) -> Iterator[tuple[Any, Callable[[], Markup]]]:
    """A figure, and a function that ends it and gives its SVG; `prefix` keeps ids of several figures apart."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # The page's fonts have letters that matplotlib's lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=size, dpi=72, facecolor="none")
        yield figure, lambda: _svg(figure, label, prefix)


def plain(axes: Any, grid: str = "y") -> None:
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis=grid, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5, width=0.6)


def _svg(figure: Any, label: str, prefix: str) -> Markup:
    written = io.StringIO()
    FigureCanvasSVG(figure)
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(written, format="svg", metadata=nothing)
    drawing = written.getvalue()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))
    # Tags alone are changed: a class may be named "#010101" or "0.12345", and keeps its name.
    body = re.sub(r"<[^>]*>", lambda tag: _themed(_with_own_ids(tag[0], used, prefix)), body)
    width, height = 72 * figure.get_size_inches()
    head = f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width:g} {height:g}">'
    return Markup(head + re.sub(r"\s*\n\s*", "\n", body).strip())  # noqa: S704 -- matplotlib escapes what is written


def _with_own_ids(tag: str, used: set[str], prefix: str) -> str:
    """Ids that something refers to get the figure's prefix; the others go."""
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", tag, count=1)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", tag).replace("xlink:href", "href")


def _themed(tag: str) -> str:
    """Stand-in colours become the page's variables, numbers lose digits that no eye sees."""
    for stand_in, role in ((INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (PAPER, "paper")):
        tag = tag.replace(stand_in, f"var(--{role})")
    tag = re.sub(r"#05([0-9a-f]{2})05", lambda found: f"var(--own-{int(found[1], 16)})", tag)
    tag = re.sub(r"#06([0-9a-f]{2})06", lambda found: f"var(--other-{int(found[1], 16)})", tag)
    return re.sub(r"(?<![\w#-])-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag)
