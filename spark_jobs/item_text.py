"""The text of an item, built from catalogue columns (data.columns.text)."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F

_NESTED = "array<string>"  # an entry that is not a string comes as its JSON text


def text_pieces(text: str | Sequence[str]) -> list[list[tuple[str, str | None]]]:
    """Each piece as (words, the column that follows them or None), in order.

    >>> text_pieces(["title", "by {brand}"])
    [[('', 'title')], [('by ', 'brand')]]
    """
    pieces = [text] if isinstance(text, str) else list(text)
    return [
        [(words, column) for words, column, _, _ in string.Formatter().parse(piece)] if "{" in piece else [("", piece)]
        for piece in pieces
    ]


def text_columns(text: str | Sequence[str]) -> list[str]:
    """The catalogue columns that a text uses, each once."""
    named = [column for piece in text_pieces(text) for _, column in piece if column is not None]
    return list(dict.fromkeys(named))


def joined_text(text: str | Sequence[str], columns: Mapping[str, Column]) -> Column:
    """The pieces joined by one space. A piece with a blank column is left out; null if none is left.

    Args:
        columns: column name -> its value as a string.
    """
    values = {name: _value(column) for name, column in columns.items()}
    pieces = []
    for piece in text_pieces(text):
        parts: list[Column] = []
        for words, column in piece:
            parts += [F.lit(words)] + ([values[column]] if column is not None else [])
        pieces.append(F.concat(*parts))  # null if one part is null
    return F.nullif(F.concat_ws(" ", *pieces), F.lit(""))


def _value(column: Column) -> Column:
    """A string unchanged, a JSON array as its entries, nested ones too; null if blank."""
    outer = F.from_json(column, _NESTED)
    inner = F.transform(outer, lambda entry: F.coalesce(_entries(entry), F.array(entry)))
    flat = F.concat_ws(", ", F.filter(F.flatten(inner), lambda entry: F.trim(entry) != ""))
    plain = F.when(F.trim(column).startswith("["), F.coalesce(F.when(outer.isNotNull(), flat), column))
    value = plain.otherwise(column)
    return F.when(F.trim(value) != "", value)


def _entries(entry: Column) -> Column:
    return F.when(F.trim(entry).startswith("["), F.from_json(entry, _NESTED))
