"""The frame of a page: head, verdict, methods to choose from, charts, tables; style and script inside the file."""

from collections.abc import Iterable, Sequence
from html import escape

from scalarfl.experiment.pages.chart import style, swatch

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Nothing is fetched from anywhere: the browser is told to refuse it."""


def document(title: str, made: str, verdict: Sequence[str], methods: Sequence[str], *parts: str, again: int = 0) -> str:
    """The page. made: when and by what. methods: names, whose curves can be hidden. again: seconds until it reloads."""
    chart_style, page_style, script = map(style, ("chart.css", "page.css", "page.js"))
    hiding = "".join(f":root:has(#m{n}:not(:checked)) .curve.m{n} {{ display: none }}\n" for n in range(len(methods)))
    refresh = f'<meta http-equiv="refresh" content="{again}">\n' if again else ""
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
{refresh}<title>{escape(title)}</title>
<style>
{chart_style}{page_style}{hiding}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{_theme()}
</header>
<p class="soft">{escape(made)}</p>
<main>
<section class="verdict" aria-label="Verdict">{sentences}</section>
{_choice(methods)}
{"".join(parts)}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _theme() -> str:
    options = "".join(
        f'<label><input type="radio" name="theme" id="{name}"{" checked" * (name == "auto")}>{name}</label>'
        for name in ("auto", "light", "dark")
    )
    return f'<fieldset class="theme"><legend>theme</legend>{options}</fieldset>'


def _choice(methods: Sequence[str]) -> str:
    """A box for each method; the style hides the curves of the others."""
    boxes = "".join(
        f'<label><input type="checkbox" id="m{number}" checked>{swatch(number)}{escape(name)}</label>'
        for number, name in enumerate(methods)
    )
    return f'<fieldset class="methods"><legend>show</legend>{boxes}</fieldset>'


def charts(figures: Iterable[tuple[str, str, str]]) -> str:
    """(title, SVG, caption) side by side; those without an SVG are left out."""
    made = "".join(
        f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for title, svg, caption in figures
        if svg
    )
    return f'<div class="charts">{made}</div>'


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it; nothing where there is nothing."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>" if any(parts) else ""


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where the window is narrow; numbers are aligned to the right."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    made = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    label = escape(caption, quote=True)
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{made}</div>'
    return f'<p class="soft">{escape(caption)}</p>{region}'


def side_by_side(*parts: str) -> str:
    """Sections in as many columns as the window is wide."""
    return f'<div class="tables">{"".join(parts)}</div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, in two columns."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in pairs)
    return f'<table class="words"><tbody>{rows}</tbody></table>' if rows else ""


def notes(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>' if items else ""


def text(content: str) -> str:
    """Text as it is."""
    return f"<pre>{escape(content)}</pre>"


def folded(title: str, content: str) -> str:
    """Text as it is, which a click unfolds."""
    return f"<details><summary>{escape(title)}</summary>{text(content)}</details>" if content else ""
