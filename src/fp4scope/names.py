"""Names that others chose, made safe to show.

A model, a linear, a pattern or a path may be called anything, and a results file may come from a
stranger. What is data stays as it is; whatever shows it asks here first, each medium with its own
function: a terminal `visible`, Markdown `markdown`, a spreadsheet `cell`, a file `file_name`.
"""

import re
import unicodedata

_REORDERING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
_ENTITIES = {"&": "&amp;", "<": "&lt;", "|": "&#124;", "`": "&#96;"}
_FORMULA = ("=", "+", "-", "@")
_LONGEST = 100


def visible(text: str) -> str:
    r"""Text on one line, with what a terminal would obey rather than show written as escapes.

    That is control characters, line ends, marks that reorder text, and the surrogates that stand
    for bytes of a path that is not UTF-8.

    Example:
        >>> visible("a\x1b[31m|b")
        'a\\x1b[31m|b'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if _is_hidden(c) else c for c in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN or character in _REORDERING


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def markdown(text: str) -> str:
    r"""Text that Markdown shows as it is: no HTML, no code, no link, no new cell of a table.

    Example:
        >>> markdown("a|b <i>")
        'a&#124;b &lt;i>'
    """
    shown = re.sub(r"[&<|`]", lambda match: _ENTITIES[match[0]], visible(text))
    return re.sub(r"\](?=[(\[:])", "&#93;", shown)


def cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula.

    Example:
        >>> cell("=1+1"), cell("q_proj")
        ("'=1+1", 'q_proj')
    """
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def file_name(text: str) -> str:
    """Text as part of a file's name: nothing in it leads to another folder.

    Example:
        >>> file_name("cells-mxfp4:floor"), file_name("../../x")
        ('cells-mxfp4-floor', '..-..-x')
    """
    return re.sub(r"[^\w.+-]", "-", text, flags=re.ASCII)[:_LONGEST]
