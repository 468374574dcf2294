"""The words of a statement's text, one after the other, without its comments. Pure, no SQL parser.

What a comment hides from the server is passed over; what stands in `/*! */` or `/*M! */` counts, because the server has
blanked those that it did not execute before it wrote the text into its binlog. Neither the time nor the memory depends
on what stands there: a text has a bound (`rows.QUERY_BYTES_MAX`), and so have its words.
"""

import re
from collections import deque
from enum import Enum
from typing import NamedTuple

from cluster.binlog.rows import Query

WORDS_MAX = 20_000
"""So many words are read: an ALTER of every column of the widest table has fewer."""


class Unreadable(Exception):
    """The text goes on behind what is read of it, or a quotation or comment in it does not end."""


class Sort(Enum):
    """What a word is."""

    PLAIN = "plain"
    """A keyword, a number or a name without quotes."""
    NAME = "name"
    """In backquotes or double quotes: never a keyword."""
    TEXT = "text"
    MARK = "mark"
    """One other character."""
    END = "end"


class Word(NamedTuple):
    """A word, without its quotes."""

    sort: Sort
    text: str

    @property
    def key(self) -> str:
        """Return the keyword or the mark that this may be, in capitals; nothing for what is quoted."""
        return self.text.upper() if self.sort in (Sort.PLAIN, Sort.MARK) else ""


END = Word(Sort.END, "")
# No possessive quantifiers: Debian's Python 3.11.2 takes some texts that they match for others (CPython's gh-106052, mended in
# 3.11.5). Nothing comes behind a repetition of a group that could fail and have it tried again.
_SKIPPED = re.compile(r"(?:\s+|/\*(?!M?!).*?\*/|--(?=[\x00-\x20\x7f]|\Z)[^\n]*|\#[^\n]*)*", re.DOTALL)
_FRAME = re.compile(r"/\*M?!(?:\d{5,6})?")
_PLAIN = re.compile(r"[^\x00-\x23\x25-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f\s]+")
"""Letters, digits, `_`, `$`, and everything that is not ASCII."""
_QUOTE = {quote: re.compile(quote) for quote in "`'\""}
_QUOTE_OR_ESCAPE = {quote: re.compile(rf"{quote}|\\") for quote in "'\""}


class Words:
    """Reads words on demand, in order."""

    def __init__(self, query: Query) -> None:
        self._text, self._whole = query.text, query.whole
        self._quotes = _QUOTE | ({"'": _QUOTE_OR_ESCAPE["'"]} if query.backslash else {})
        if query.backslash and not query.ansi_quotes:
            self._quotes['"'] = _QUOTE_OR_ESCAPE['"']
        self._ahead = deque[Word]()
        self._at = self._read = 0
        self._framed = False

    def peek(self, ahead: int = 0) -> Word:
        """Return the next word, or one behind it, without taking it. Raises Unreadable."""
        while len(self._ahead) <= ahead:
            self._ahead.append(self._next())
        return self._ahead[ahead]

    def take(self) -> Word:
        """Take the next word; `END` for ever at the end. Raises Unreadable."""
        word = self.peek()
        self._ahead.popleft()
        return word

    def accept(self, *keys: str) -> bool:
        """Take these keywords or marks when they come next, all of them. Raises Unreadable."""
        if any(self.peek(number).key != key for number, key in enumerate(keys)):
            return False
        for _ in keys:
            self._ahead.popleft()
        return True

    def accept_any(self, *keys: str) -> bool:
        """Take the next word when it is one of these. Raises Unreadable."""
        return self.peek().key in keys and bool(self.take())

    # -- below ------------------------------------------------------------------------------------------------------

    def _next(self) -> Word:
        self._skip()
        text, at = self._text, self._at
        if at >= len(text):
            if not self._whole:
                raise Unreadable
            return END
        if (plain := _PLAIN.match(text, at)) is not None:
            self._at = plain.end()
            return Word(Sort.PLAIN, plain[0])
        quote = text[at]
        self._at = at + 1
        if quote not in self._quotes:
            if quote == "/" and text.startswith("/*", at):
                raise Unreadable
            return Word(Sort.MARK, quote)
        self._at = self._end_of_quoted(quote)
        inner = text[at + 1 : self._at - 1].replace(quote * 2, quote)
        return Word(Sort.TEXT if quote == "'" else Sort.NAME, inner)

    def _end_of_quoted(self, quote: str) -> int:
        """Return where the quotation ends that we are in: behind a quote that is neither escaped nor doubled."""
        text, at = self._text, self._at
        while (found := self._quotes[quote].search(text, at)) is not None:
            at = found.end()
            if found[0] == quote and not text.startswith(quote, at):
                return at
            at += 1
        raise Unreadable

    def _skip(self) -> None:
        """Go to the next word: over white space, comments, and the frames of what the server executes."""
        while True:
            self._read += 1
            if self._read > WORDS_MAX:
                raise Unreadable
            skipped = _SKIPPED.match(self._text, self._at)
            self._at = skipped.end() if skipped else self._at
            frame = _FRAME.match(self._text, self._at)
            if frame is not None:
                self._at, self._framed = frame.end(), True
            elif self._framed and self._text.startswith("*/", self._at):
                self._at, self._framed = self._at + 2, False
            else:
                return
