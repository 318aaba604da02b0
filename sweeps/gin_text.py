"""What a gin text says: read by gin's own grammar, checked, and written anew for gin to act on.

gin acts while it reads: it imports and includes what a text names, looks up whatever it refers to,
and calls it. A text may be anybody's, for a sweep's storage and its records hold some. So a text is
read here into plain values that nothing evaluates, and gin is given what is written from those. It
meets no text but ours, and whatever is odd about a text (its spaces, its escapes, its encoding) is
gone by then.
"""

import io
import math
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from sweeps.errors import nearest
from thesis.config import CONFIGS, DECODERS, OF_DDSP, REFERABLE_OF_DDSP
from thesis.errors import ConfigError, UserError

OWN = ("model", *CONFIGS, "sweep", "search_space")
"""What this project's own parameters belong to."""

FROM_DDSP = "ddsp's names come with 'import thesis.from_ddsp', in place of other imports"
HINT = f"parameters belong to {', '.join(OWN)}, see gin/ for their names; {FROM_DDSP}"

_IMPORTABLE = "thesis.from_ddsp"
_OF_GIN = ("gin.macro", "gin.constant", "gin.singleton", "gin.REQUIRED")
_OWN = tuple(f"{module}.{name}" for module in ("thesis.config", "sweeps.config") for name in OWN)
_REFERABLE = tuple(f"thesis.config.{name}" for name in DECODERS) + REFERABLE_OF_DDSP

_MAX_BYTES = 1 << 19
"""Of a text. The runs that ship take 3 kB."""
_MAX_FILES = 100
_MAX_DEPTH = 24
"""Levels of brackets and of references in each other. gin takes some eight calls for one."""
_MAX_VALUES = 100_000
"""Values of all parameters when all that they refer to is in place."""
_OBJECT_COST = 1_000
"""In values: what a reference makes takes as long as so many of them."""
_MAX_STRINGS = 256
"""Strings side by side, which are one. gin reads them all again for each."""
_INT64 = 1 << 63


@contextmanager
def refusing() -> Iterator[None]:
    """Turns whatever gin, or what it calls, raises into one line that a user can mend."""
    try:
        yield
    except UserError:
        raise
    except RecursionError as error:
        raise ConfigError("gin: it is nested too deeply", hint=HINT) from error
    except Exception as error:
        raise ConfigError(
            f"gin: {_in_words(error)}", hint=FROM_DDSP if isinstance(error, ImportError) else HINT
        ) from error


def _in_words(error: Exception) -> str:
    if isinstance(error, tokenize.TokenError):
        what, (line, _) = error.args
        return f"{what} (line {line})"
    return " ".join(str(error).partition("\n")[0].split()) or type(error).__name__


@dataclass(frozen=True)
class Reference:
    """What stands for `@scope/name`, and with `called` for `@scope/name()`."""

    name: str
    called: bool

    def __repr__(self) -> str:
        return f"@{self.name}{'()' if self.called else ''}"

    @property
    def selector(self) -> str:
        """The name without its scopes."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Macro:
    """What stands for `%scope/NAME`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
    """Has gin's parser make of names what stands for them."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


class Key(NamedTuple):
    """What a value is bound to: a parameter of `selector`, or, with '', the macro `selector`."""

    scope: str
    selector: str
    parameter: str

    def __str__(self) -> str:
        name = f"{self.selector}.{self.parameter}" if self.parameter else self.selector
        return f"{self.scope}/{name}" if self.scope else name


@dataclass(frozen=True)
class GinText:
    """A text as what it says.

    Attributes:
      bindings: What is bound, in the order in which it was bound last. Values are None, booleans,
        whole numbers of 64 bits, finite numbers, strings, `Reference`, `Macro`, and lists, tuples
        and dictionaries (by strings) of them.
      imports: Import statements, all of `thesis.from_ddsp`.

    Raises:
      ConfigError: It says what cannot be, whoever wrote it: it names ddsp and does not import it,
        refers to itself or to gin's own functions, or would take too long to put together.
    """

    bindings: Mapping[Key, Any]
    imports: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        _check_size(self.bindings)
        for key, name in self._names():
            if _is_one_of(name, _OF_GIN):
                raise ConfigError(f"gin: '{key}' names gin's own '{name}'", hint=HINT)
            if _is_one_of(name, OF_DDSP) and not self.imports:
                raise ConfigError(f"gin: '{name}' of ddsp is named and not imported", hint=HINT)

    def __str__(self) -> str:
        """Returns the text anew: imports, then each binding in a line."""
        return "\n".join(
            [*self.imports, *(f"{key} = {value!r}" for key, value in self.bindings.items()), ""]
        )

    @property
    def macros(self) -> list[str]:
        """Names of the macros without scopes: the run's knobs."""
        return sorted(key.selector for key in self.bindings if not (key.parameter or key.scope))

    def overridden(self, overrides: Iterable[str]) -> "GinText":
        """Returns the text with some `key=value` in place, each of which is one binding.

        gin takes any macro, also one that nothing uses; a misspelt knob would have no effect. So a
        macro may be overridden only where the text has it.

        Raises:
          ConfigError: One is no binding, or it is one of a macro that is not there.
        """
        bindings = dict(self.bindings)
        for override in overrides:
            key, value = _override(override)
            if not key.parameter and key not in self.bindings:
                knobs = ", ".join(self.macros) or "none"
                raise ConfigError(
                    f"no knob named '{key}'",
                    hint=nearest(str(key), self.macros, otherwise=f"the run's knobs are {knobs}"),
                )
            bindings.pop(key, None)
            bindings[key] = value
        return GinText(bindings, self.imports)

    def completed(self, defaults: Mapping[str, Any]) -> "GinText":
        """Returns the text with values of parameters, by name, that it does not bind itself."""
        bound = {str(_short(key)) for key in self.bindings}
        missing = {name: value for name, value in defaults.items() if name not in bound}
        added = {Key("", *name.split(".")): value for name, value in missing.items()}
        return GinText({**self.bindings, **added}, self.imports)

    def require_ours(self) -> None:
        """Checks that the text is one that this project may have written, and safe to act on.

        Raises:
          ConfigError: It binds or refers to what is not this project's, or to what it does not
            itself define.
        """
        for key in self.bindings:
            if key.parameter and not _is_one_of(key.selector, (*_OWN, *OF_DDSP)):
                raise ConfigError(f"gin: '{key}' is no parameter of this project", hint=HINT)
        macros = {str(key) for key in self.bindings if not key.parameter}
        for key, value in self.bindings.items():
            for each in _references(value):
                if isinstance(each, Macro) and each.name not in macros:
                    raise ConfigError(f"gin: '{key}' names {each}, which is not there", hint=HINT)
                if isinstance(each, Reference) and not _is_one_of(each.selector, _REFERABLE):
                    raise ConfigError(f"gin: '{key}' may not refer to {each}", hint=HINT)

    def require_reached(self) -> None:
        """Raises ConfigError for a binding in a scope that nothing enters."""
        entered = set[str]()
        for value in self.bindings.values():
            for each in _references(value):
                scope = each.name if isinstance(each, Macro) else each.name.rpartition("/")[0]
                parts = scope.split("/")
                entered.update("/".join(parts[: i + 1]) for i in range(len(parts)))
        for key in self.bindings:
            if key.parameter and key.scope and key.scope not in entered:
                raise ConfigError(
                    f"gin: '{key}' reaches nothing: no reference enters '{key.scope}'",
                    hint=f"leave out '{key.scope}/'",
                )

    def require_equal(self, other: "GinText") -> None:
        """Raises ConfigError for a binding that another text, made of this one, does not have."""
        found = {_short(key): value for key, value in other.bindings.items()}
        ours = {_short(key): (key, value) for key, value in self.bindings.items()}
        for short, (key, value) in ours.items():
            if short not in found or found[short] != value:
                raise ConfigError(f"gin: '{key}' = {value!r} cannot be written down", hint=HINT)

    def _names(self) -> Iterator[tuple[Key, str]]:
        """Yields what is named, without scopes, with the binding that names it."""
        for key, value in self.bindings.items():
            if key.parameter or str(key) == "REQUIRED":  # gin would take its constant
                yield key, key.selector
            for each in _references(value):
                if isinstance(each, Reference):
                    yield key, each.selector


def read_text(text: str) -> GinText:
    """Returns what a text says that stands for itself: one that includes nothing.

    Raises:
      ConfigError: It cannot be read, imports what it may not, or has an impossible value.
    """
    if not isinstance(text, str):
        raise ConfigError("gin: it is no text", hint=HINT)
    with refusing():
        _check_length(len(text.encode()))
    return _said(_parsed(text))


def read_file(file: Path, folders: Sequence[Path]) -> GinText:
    """Returns what a file and those that it includes say.

    Args:
      file: The file.
      folders: Where included files are looked for, first one first.

    Raises:
      ConfigError: As `read_text`, or a file is not there, or includes itself.
    """
    return _said(_Files(folders).statements(file, ()))


def _said(statements: Iterable[Any]) -> GinText:
    imports, bindings = dict[str, None](), dict[Key, Any]()
    for statement in statements:
        if isinstance(statement, config_parser.IncludeStatement):
            raise ConfigError("gin: it includes a file, and stands for itself", hint=HINT)
        if isinstance(statement, config_parser.ImportStatement):
            imports[statement.format()] = None
        elif isinstance(statement, config_parser.BindingStatement):
            key = _key(statement)
            bindings.pop(key, None)  # the last one counts, and comes last
            bindings[key] = statement.value
    return GinText(bindings, tuple(imports))


@dataclass
class _Files:
    """Reads files and what they include."""

    folders: Sequence[Path]
    read: int = 0

    def statements(self, file: Path, including: tuple[Path, ...]) -> Iterator[Any]:
        """Yields the statements of a file, with those of included ones in their places."""
        text, real = _content(file), file.resolve()
        if real in including:
            raise ConfigError(f"gin: '{file.name}' includes itself", hint="leave out one include")
        self.read += 1
        if self.read > _MAX_FILES:
            raise ConfigError(
                f"gin: more than {_MAX_FILES} files are included",
                hint="include each of them once",
            )
        for statement in _parsed(text, file.name):
            if isinstance(statement, config_parser.IncludeStatement):
                found = self._find(statement.filename, file.name)
                yield from self.statements(found, (*including, real))
            else:
                yield statement

    def _find(self, name: str, by: str) -> Path:
        for folder in self.folders:
            path = folder / name
            if is_file(path):
                return path
        raise ConfigError(
            f"gin: '{by}' includes {name!r}, which is not there",
            hint=f"it is looked for in {', '.join(map(str, self.folders))}",
        )


def is_file(path: Path) -> bool:
    """Whether a path is that of a file, whatever a user has given for it."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _content(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
        _check_length(len(data), file.name)
        # A line ends as in any file that Python opens as text.
        return io.TextIOWrapper(io.BytesIO(data), "utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"gin: '{file}' is no text in UTF-8 (byte {error.start})", hint="save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"gin: cannot read '{file}': {why}", hint="name a gin file") from error


def _check_length(n_bytes: int, name: str = "it") -> None:
    if n_bytes > _MAX_BYTES:
        raise ConfigError(
            f"gin: {name} is larger than {_MAX_BYTES // 1024} KiB", hint="is it a gin file?"
        )


def _parsed(text: str, name: str | None = None) -> list[Any]:
    """Returns a text's statements as gin's grammar has them; what is bound is plain data."""
    source: Any = io.StringIO(text)
    source.name = name  # what gin's errors call it
    statements: list[Any] = []
    with refusing():
        _check_tokens(text)
        parser = config_parser.ConfigParser(source, _Delegate())
        # Iterated over, the parser would take an exception of the tokenizer's for its end.
        while statement := parser.parse_statement():
            _check_statement(statement)
            statements.append(statement)
    return statements


def _check_statement(statement: Any) -> None:
    """Raises ConfigError for an import of what may not be, and for a value that is no data."""
    if isinstance(statement, config_parser.ImportStatement):
        if statement.module != _IMPORTABLE:
            raise ConfigError(
                f"gin: '{statement.module}' is imported, and only '{_IMPORTABLE}' may be",
                hint=FROM_DDSP,
            )
    elif isinstance(statement, config_parser.BindingStatement):
        _check_value(_key(statement), statement.value)


def _key(statement: config_parser.BindingStatement) -> Key:
    return Key(statement.scope, statement.selector, statement.arg_name)


def _check_tokens(text: str) -> None:
    """Raises SyntaxError for what gin's parser takes very long for, or passes over."""
    strings, before = 0, ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.COMMENT):
            continue
        if before == "-" and token.type != tokenize.NUMBER:
            raise SyntaxError(f"'-' goes before a number (line {token.start[0]})")
        strings = strings + 1 if token.type == tokenize.STRING else 0
        if strings > _MAX_STRINGS:
            raise SyntaxError(f"a string of over {_MAX_STRINGS} pieces (line {token.start[0]})")
        before = token.string


def _check_value(key: Key, value: Any) -> None:
    """Raises ConfigError for a value that is no plain data."""
    match value:
        case None | bool() | Reference() | Macro():
            return
        case int() if -_INT64 <= value < _INT64:
            return
        case int():
            why = "holds a whole number of more than 64 bits"
        case float() if math.isfinite(value):
            return
        case float():
            why = f"holds {value!r}, and numbers are finite"
        case str():
            if _is_unicode(value):
                return
            why = "holds a string that is no Unicode"
        case list() | tuple():
            for each in value:
                _check_value(key, each)
            return
        case dict() if all(isinstance(name, str) and _is_unicode(name) for name in value):
            for each in value.values():
                _check_value(key, each)
            return
        case dict():
            why = "holds a dictionary with a key that is no string"
        case _:
            why = f"holds a value of type {type(value).__name__}"
    raise ConfigError(
        f"gin: '{key}' {why}",
        hint="values are numbers, strings, True, False, None, and tuples and dictionaries of them",
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_size(bindings: Mapping[Key, Any]) -> None:
    """Raises ConfigError for what refers to itself, or is too much with all that it refers to."""
    bound: dict[str, list[Any]] = {}
    for key, value in bindings.items():
        # Whatever the scope: what is called in a scope also has the bindings outside it.
        owner = _short(key).selector if key.parameter else f"%{key}"
        bound.setdefault(owner, []).append(value)
    known: dict[str, tuple[int, int]] = {}

    def look(value: Any, path: tuple[str, ...]) -> tuple[int, int]:
        """Returns how many values a value comes to, and on how many levels."""
        if isinstance(value, Reference | Macro):
            return refer(value, path)
        parts = value.values() if isinstance(value, dict) else value
        if not isinstance(value, dict | list | tuple) or not parts:
            return 1, 1
        sizes, levels = zip(*(look(part, path) for part in parts), strict=True)
        return within(1 + sum(sizes), 1 + max(levels))

    def refer(to: Reference | Macro, path: tuple[str, ...]) -> tuple[int, int]:
        called = isinstance(to, Reference)
        owner = to.selector.rpartition(".")[2] if isinstance(to, Reference) else f"%{to.name}"
        if owner in path:
            raise ConfigError(f"gin: {to} refers to itself", hint="give one of them a value")
        if owner not in known:
            within(1, len(path))
            looked = [look(value, (*path, owner)) for value in bound.get(owner, ())]
            size = sum(size for size, _ in looked) + (_OBJECT_COST if called else 0)
            known[owner] = within(size, 1 + max((levels for _, levels in looked), default=0))
        return known[owner]

    def within(size: int, levels: int) -> tuple[int, int]:
        if size > _MAX_VALUES or levels > _MAX_DEPTH:
            what = "is nested too deeply" if levels > _MAX_DEPTH else "comes to too many values"
            raise ConfigError(f"gin: what is bound {what}", hint="look at what refers to what")
        return size, levels

    total = 0
    with refusing():
        for owner, values in bound.items():
            sizes = [look(value, (owner,))[0] for value in values]
            if not owner.startswith("%"):  # a macro comes to nothing where nothing names it
                total += sum(sizes)
        within(total, 0)


def _override(override: str) -> tuple[Key, Any]:
    """Returns the one binding that a `key=value` means."""
    key, equals, value = (part.strip() for part in override.partition("="))
    # A bare word, which gin would refuse, is meant as a string.
    word = value.isidentifier() and value not in ("True", "False", "None")
    statements: list[Any] = []
    if key and equals and value:
        statements = _parsed(f"{key} = {value!r}" if word else f"{key} = {value}")
    if len(statements) == 1 and isinstance(statements[0], config_parser.BindingStatement):
        return _key(statements[0]), statements[0].value
    raise ConfigError(f"override {override!r} is no key=value", hint="--set STEPS=500")


def _references(value: Any) -> Iterator[Reference | Macro]:
    if isinstance(value, Reference | Macro):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _references(part)


def _short(key: Key) -> Key:
    """Returns a key whose selector is its last name: gin takes any beginning that it has."""
    return key._replace(selector=key.selector.rpartition(".")[2])


def _is_one_of(selector: str, complete: Iterable[str]) -> bool:
    """Whether a selector, as gin reads it, may mean one of some complete ones: it ends like it."""
    return any(f".{each}".endswith(f".{selector}") for each in complete)
