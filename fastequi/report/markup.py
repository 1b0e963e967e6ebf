"""HTML as strings: every attribute is escaped here, every text by :func:`text`."""

from __future__ import annotations

from html import escape

_VOID = ("img", "meta", "line", "rect", "path", "polyline", "circle", "br")


def text(value: object) -> str:
    """A value as text in markup."""
    return escape(str(value), quote=False)


def tag(name: str, /, *content: str, **attributes: object) -> str:
    """An element around markup; `class_` stands for class, `stroke_width` for stroke-width.

    Attributes that are None are left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return f"<{name}{given}>" if name in ("img", "meta", "br") else f"<{name}{given}/>"
    return f"<{name}{given}>{''.join(content)}</{name}>"


def table(caption: str, head: list[str], rows: list[list[str]], *, numbers: int = 1) -> str:
    """A table in a box of its own that scrolls sideways where the screen is narrow.

    Args:
        caption, head, rows: as markup; the first cell of a row is its heading.
        numbers: the first column that holds figures, which are set flush right.
    """
    titles = (tag("th", h, scope="col", class_=_side(i, numbers)) for i, h in enumerate(head))
    first = tag("tr", *titles)
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=_side(i, numbers)) for i, cell in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    inner = tag("thead", first) + tag("tbody", *body)
    heading = tag("caption", tag("span", caption))
    return scroll(tag("table", heading, inner), "table")


def _side(column: int, numbers: int) -> str | None:
    return "n" if column >= numbers else None


def scroll(inner: str, label: str) -> str:
    """A box that scrolls sideways, with the keyboard as well."""
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=label)


def number(value: float, digits: int = 3) -> str:
    """A figure of so many significant digits as people read it: 12,400, 0.0213, 3.1e−7."""
    if value == 0 or value != value:  # NaN
        return "0" if value == 0 else "–"
    if abs(value) >= 10**6 or abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        shown = f"{mantissa}e{int(exponent)}"
    elif abs(value) >= 10 ** (digits - 1):
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:.{digits}g}"
    return shown.replace("-", "−")


def two(value: float) -> str:
    """R² and its like, with two decimals and a true minus; nothing is minus zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference: as :func:`two`, with its sign."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def duration(seconds: float) -> str:
    """42 s, 3 min 30 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
