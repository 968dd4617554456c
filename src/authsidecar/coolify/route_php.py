"""As much of PHP's syntax as a route file is written in: tokens, and the values they spell.

Nothing is run and nothing is guessed: what is not a literal becomes `Opaque`, and whoever needs
its value says so, with the line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, TypeVar


class PhpError(Exception):
    """Something that cannot be read; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        """Keep the line beside the message."""
        super().__init__(message)
        self.line = line


class Lexeme(StrEnum):
    """What sort of token it is."""

    NAME = "name"
    VARIABLE = "variable"
    STRING = "string"
    NUMBER = "number"
    PUNCTUATION = "punctuation"
    END = "end of file"


class PhpToken(NamedTuple):
    """One token; a string's text is its value, escapes resolved."""

    lexeme: Lexeme
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Text:
    """A string."""

    value: str
    line: int


@dataclass(frozen=True, slots=True)
class ClassName:
    """`X::class` as the name that was written, and the text that is joined to it."""

    name: str
    line: int
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Items:
    """An array: its values with their keys; a value without a key has None."""

    pairs: tuple[tuple[str | None, "Value"], ...]
    line: int


@dataclass(frozen=True, slots=True)
class Closure:
    """A function without a name: the position of the first token of its body."""

    body: int
    line: int


@dataclass(frozen=True, slots=True)
class Opaque:
    """Any other expression; begins with `text`."""

    text: str
    line: int


_T = TypeVar("_T")

Value = Text | ClassName | Items | Closure | Opaque

_SKIPPED: Final = re.compile(r"\s+|(?://|#(?!\[))(?:(?!\?>)[^\r\n])*|/\*.*?\*/", re.DOTALL)
_TOKEN: Final = re.compile(
    r"(?P<variable>\$[A-Za-z_]\w*)"
    r"|(?P<name>\\?[A-Za-z_]\w*(?:\\[A-Za-z_]\w*)*)"
    r"|(?P<number>[0-9][0-9A-Za-z_.]*)"
    r"|(?P<single>'(?:[^'\\]|\\.)*')"
    r'|(?P<double>"(?:[^"\\]|\\.)*")'
    r"|(?P<punctuation>::|->|\?->|=>|\?\?=?|\?>|<<<|#\[|&&|\|\||[=!<>]=+|[-+*/%&|^~!<>=?:;,.@()\[\]{}\\`])",
    re.DOTALL | re.ASCII,
)
_SINGLE_ESCAPE: Final = re.compile(r"\\(['\\])")
_DOUBLE_ESCAPE: Final = re.compile(
    r"\\(?:([nrtvef\\$\"])|([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u\{([0-9A-Fa-f]+)\})"
)
_CONTROL: Final = {"n": "\n", "r": "\r", "t": "\t", "v": "\v", "e": "\x1b", "f": "\f"}
_INTERPOLATION: Final = re.compile(r"(?<!\\)(?:\\\\)*(?:\$[A-Za-z_{]|\{\$)")

CLOSING: Final[Mapping[str, str]] = {"(": ")", "[": "]", "{": "}", "#[": "]"}
_OPENING_TAG: Final = re.compile(r"\ufeff?<\?php(?=\s)")


def tokens(source: str) -> tuple[PhpToken, ...]:
    """All tokens of a PHP file, comments gone, ending with one of Lexeme.END.

    Raises:
        PhpError: the text is not one block of PHP that can be cut into tokens.
    """
    tag = _OPENING_TAG.match(source)
    if tag is None:
        raise PhpError(1, "the file does not begin with <?php")
    found: list[PhpToken] = []
    at, line = tag.end(), 1
    while at < len(source):
        skipped = _SKIPPED.match(source, at)
        match = skipped or _TOKEN.match(source, at)
        if match is None:
            raise PhpError(line, f"cannot read from {source[at : at + 12]!r}")
        if skipped is None:
            found.append(_token(match, line))
        line += match.group().count("\n")
        at = match.end()
    if found and found[-1].text == "?>" and found[-1].lexeme is Lexeme.PUNCTUATION:
        del found[-1]
    return (*found, PhpToken(Lexeme.END, "", line))


def _token(match: re.Match[str], line: int) -> PhpToken:
    text = match.group()
    match match.lastgroup:
        case "variable":
            return PhpToken(Lexeme.VARIABLE, text, line)
        case "name":
            return PhpToken(Lexeme.NAME, text, line)
        case "number":
            return PhpToken(Lexeme.NUMBER, text, line)
        case "single":
            return PhpToken(Lexeme.STRING, _SINGLE_ESCAPE.sub(r"\1", text[1:-1]), line)
        case "double":
            if _INTERPOLATION.search(text):
                return PhpToken(Lexeme.VARIABLE, text, line)  # its value is not in the file
            return PhpToken(Lexeme.STRING, _DOUBLE_ESCAPE.sub(_unescaped, text[1:-1]), line)
        case _:
            if text == "<<<":
                raise PhpError(line, "a heredoc")
            if text == "`":
                raise PhpError(line, "a shell command")
            return PhpToken(Lexeme.PUNCTUATION, text, line)


def _unescaped(match: re.Match[str]) -> str:
    letter, octal, hexadecimal, unicode = match.groups()
    if letter:
        return _CONTROL.get(letter, letter)
    code = int(octal, 8) % 256 if octal else int(hexadecimal or unicode, 16)
    return chr(code) if code <= 0x10FFFF else match.group()


class Cursor:
    """A position in a file's tokens, moved forward by reading."""

    def __init__(self, source: tuple[PhpToken, ...], at: int = 0) -> None:
        """Start at a token; the last token is Lexeme.END and is never passed."""
        self._tokens = source
        self.at = at

    @property
    def token(self) -> PhpToken:
        """The token that is read next."""
        return self._tokens[self.at]

    def ahead(self, steps: int) -> PhpToken:
        """A token further on, or the end."""
        return self._tokens[min(self.at + steps, len(self._tokens) - 1)]

    def next(self) -> PhpToken:
        """Read one token."""
        token = self.token
        if token.lexeme is not Lexeme.END:
            self.at += 1
        return token

    def sees(self, *texts: str) -> bool:
        """Whether the next token is one of these names or punctuation marks."""
        return self.token.lexeme in {Lexeme.NAME, Lexeme.PUNCTUATION} and self.token.text in texts

    def takes(self, *texts: str) -> bool:
        """Read the next token if it is one of these."""
        if self.sees(*texts):
            self.next()
            return True
        return False

    def expect(self, text: str) -> PhpToken:
        """Read this token.

        Raises:
            PhpError: it is another.
        """
        if not self.sees(text):
            found = self.token.text or self.token.lexeme.value
            raise PhpError(self.token.line, f"expected {text}, found {found}")
        return self.next()

    def skip(self, *ends: str) -> None:
        """Go to the next of these that is not within brackets, or to the end of the file."""
        closing: list[str] = []
        while self.token.lexeme is not Lexeme.END:
            if not closing and self.sees(*ends):
                return
            token = self.next()
            if token.lexeme is not Lexeme.PUNCTUATION:
                continue
            if token.text in CLOSING:
                closing.append(CLOSING[token.text])
            elif closing and token.text == closing[-1]:
                closing.pop()

    def arguments(self) -> tuple[Value, ...]:
        """Read `(value, ...)`."""
        self.expect("(")
        return self._listed(")", self.value)

    def value(self) -> Value:
        """Read one expression; literals, arrays, class names and closures are understood."""
        start, first = self.at, self.token
        value = self._literal()
        ends = (",", ")", "]", ";")
        if value is not None and self.sees(*ends, "=>"):
            return value
        self.at = start
        arrow = first.text == "fn" or self.ahead(1).text == "fn"
        self.skip(*ends, *(() if arrow else ("=>",)))
        return Opaque(first.text, first.line)

    def _literal(self) -> Value | None:
        line = self.token.line
        if self.takes("["):
            return Items(self._listed("]", self._pair), line)
        if self.sees("array") and self.ahead(1).text == "(":
            self.next()
            self.next()
            return Items(self._listed(")", self._pair), line)
        if self.token.lexeme is Lexeme.STRING:
            text = self._joined()
            return None if text is None else Text(text, line)
        self.takes("static")
        if self.takes("function"):
            return self._closure(line)
        name = self.next()
        if name.lexeme is Lexeme.NAME and self.takes("::") and self.takes("class"):
            suffix = self._joined() if self.takes(".") else ""
            return None if suffix is None else ClassName(name.text, line, suffix)
        return None

    def _joined(self) -> str | None:
        """Strings joined by dots, or None if anything else is among them."""
        parts = []
        while self.token.lexeme is Lexeme.STRING:
            parts.append(self.next().text)
            if not self.takes("."):
                return "".join(parts)
        return None

    def _closure(self, line: int) -> Closure | None:
        if not self.sees("("):
            return None
        self.skip("{", ";", ")")
        if not self.takes("{"):
            return None
        body = self.at
        self.skip("}")
        return Closure(body, line) if self.takes("}") else None

    def _pair(self) -> tuple[str | None, Value]:
        value = self.value()
        if not self.takes("=>"):
            return None, value
        return (value.value if isinstance(value, Text) else ""), self.value()

    def _listed(self, end: str, read: Callable[[], _T]) -> tuple[_T, ...]:
        """Values with commas between them, and perhaps one after the last."""
        found: list[_T] = []
        while not self.takes(end):
            before = self.at
            found.append(read())
            if not self.sees(end):
                self.expect(",")
            if self.at == before:
                raise PhpError(self.token.line, f"expected {end}")
        return tuple(found)
