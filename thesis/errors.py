"""Errors that a user can mend: one line that says what is wrong, one hint on what to do."""


class UserError(Exception):
    """Something that the user can mend.

    Attributes:
      message: One line: what is wrong, with the offending value.
      hint: One line: what to do about it. May be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries; the default would drop the keyword-only hint.
        return (_rebuild, (type(self), self.message, self.hint))


def printable(text: str, *, keep: str = "") -> str:
    r"""Returns a text as one line that a terminal shows and does not obey.

    Names and messages may hold what a stranger wrote. Control characters could move the cursor, set
    the window's title or hide a line; directional marks could turn words around. They are shown as
    escapes, such as '\x1b', and so are line breaks and what is no text at all.

    Args:
      text: Of any origin.
      keep: Characters that are left as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def first_line(error: BaseException) -> str:
    """Returns what an error says first, printable and of 300 characters at the most.

    It may be another library's, and quote pages of what that could not read.
    """
    return printable(str(error).strip().partition("\n")[0][:300])


def _rebuild(cls: type[UserError], message: str, hint: str) -> UserError:
    return cls(message, hint=hint)


class OutputError(UserError):
    """A file or stream that cannot be written to."""


class AudioError(UserError):
    """A recording that cannot be read or used."""


class DatasetError(UserError):
    """A dataset that is missing, broken, or of another schema version."""


class ConfigError(UserError):
    """A gin file, binding or value that the models do not accept."""


class ExportError(UserError):
    """A model whose exported form is missing, broken, or differs from the trained one."""


class StreamError(UserError):
    """Controls or states that a stream does not take."""


class BundleError(UserError):
    """A model bundle that is incomplete, tampered with, or in the way."""


class MissingRuntimeError(UserError):
    """A runtime that is not installed, or that there is none of."""


class BenchError(UserError):
    """Something that cannot be benched."""
