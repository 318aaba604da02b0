"""Credentials that users put into URIs: what may be printed, and what may be written down.

Standard library only, as whatever prints asks it.
"""

import re
from urllib.parse import unquote

_START = (
    r"(?<![\w/])(?:[^\W\d_][\w+.-]*:/+"
    r"|(?:s3|gs|gcs|abfss?|hdfs|viewfs)(?::[/\\]*|[/\\]{2,}))"
)
"""How a URI begins, also where the user has misspelt what follows a scheme of pyarrow's."""

_URI = re.compile(rf"{_START}\S+", re.IGNORECASE)

_USER_IS_NO_SECRET = {"abfs", "abfss", "hdfs", "viewfs"}
"""Schemes that have a container, or a name, where others have a key."""

_SAFE_OPTIONS = {
    "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "background_writes",
    "blob_storage_authority", "credential_kind", "dfs_storage_authority", "enable_tls",
    "endpoint_override", "project_id", "region", "replication", "retry_limit_seconds", "scheme",
}  # fmt: skip
"""Options of pyarrow's URIs that hold no secret. Whatever is not known may hold one."""

_HIDDEN = "***"


def without_credentials(text: str) -> str:
    """Returns a text without the credentials of URIs in it, as `safe_uri` shows them."""
    return _URI.sub(lambda found: safe_uri(found[0]), text)


def safe_uri(uri: str) -> str:
    """Returns a URI without user, password, key and token; a path as it is.

    Options that are not known to be harmless read '***'. A URI whose secret is not escaped, such as
    'key:se/cret@bucket', is cut at its last '@'.
    """
    match = re.match(_START, uri, re.IGNORECASE)
    if not match:
        return uri
    scheme = re.split(r"[:/\\]", uri, maxsplit=1)[0].lower()
    rest = uri[match.end() :]
    user, at, place = rest.rpartition("@")
    if at and (":" in unquote(user) or "/" not in user.partition("?")[0]):
        kept = user if scheme in _USER_IS_NO_SECRET and ":" not in unquote(user) else ""
        kept = user if user == "anonymous" else kept
        rest = f"{kept}@{place}" if kept else place
    place, question_mark, query = rest.partition("?")
    options = [_safe_option(option) for option in re.split("[&;]", query)] if query else []
    # A port is a number. What else follows the first colon may be a password that was cut off.
    place = re.sub(
        r"^([^/@:\[]*):(?!\d{0,5}(?!\w))[^/]*", rf"\1:{_HIDDEN}", place.partition("#")[0]
    )
    return match[0] + place + question_mark + "&".join(options)


def has_credentials(text: str) -> bool:
    """Returns whether a text has a URI in it that cannot be shown, or written down, as it is."""
    return any(safe_uri(uri) != uri for uri in _URI.findall(text))


def is_misspelt_uri(text: str) -> bool:
    """Returns whether a text begins as a URI does that pyarrow would take for a folder."""
    match = re.match(_START, text, re.IGNORECASE)
    return "://" not in text and bool(match) and text[1:2] != ":"


def _safe_option(option: str) -> str:
    name, equals, value = option.partition("=")
    harmless = name in _SAFE_OPTIONS and "@" not in unquote(value)
    return option if harmless else f"{name}{equals}{_HIDDEN}" if equals else _HIDDEN
