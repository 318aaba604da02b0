import errno
import itertools
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from sweeps import storage
from sweeps.errors import DamagedError, LedgerError
from sweeps.ledger import Ledger, list_sweeps
from sweeps.storage import Location, is_name
from sweeps.trial import Attempt
from tests.sweeps.test_ledger import facts, trial


class Failing(fs.FileSystemHandler):
    """A folder of this machine behind a filesystem that fails whenever it is told to."""

    def __init__(self, folder, fails):
        self.inner = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self.fails = fails  # (what is done) -> an exception, or None
        self.done = 0

    def meets(self, what):
        error = self.fails(what)
        if error is not None:
            raise error
        self.done += 1

    def __eq__(self, other):
        return self is other

    def __ne__(self, other):
        return self is not other

    def get_type_name(self):
        return "failing"

    def normalize_path(self, path):
        return self.inner.normalize_path(path)

    def get_file_info(self, paths):
        self.meets("look")
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector):
        self.meets("list")
        return self.inner.get_file_info(selector)

    def create_dir(self, path, recursive):
        self.meets("write")
        self.inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path):
        self.meets("delete")
        self.inner.delete_dir(path)

    def delete_file(self, path):
        self.meets("delete")
        self.inner.delete_file(path)

    def move(self, source, target):
        self.meets("write")
        self.inner.move(source, target)

    def open_input_file(self, path):
        self.meets("read")
        return self.inner.open_input_file(path)

    def open_input_stream(self, path):
        self.meets("read")
        return self.inner.open_input_stream(path)

    def open_output_stream(self, path, metadata):
        self.meets("write")
        return self.inner.open_output_stream(path, metadata=metadata)

    def copy_file(self, source, target):
        raise NotImplementedError

    def delete_dir_contents(self, path, missing_dir_ok=False):
        raise NotImplementedError

    def delete_root_dir_contents(self):
        raise NotImplementedError

    def open_append_stream(self, path, metadata):
        raise NotImplementedError


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A function: the location on a filesystem that fails as told, and its handler."""
    monkeypatch.setattr(storage, "_FIRST_PAUSE_SECONDS", 1e-4)

    def failing(fails):
        (tmp_path / "store").mkdir(exist_ok=True)
        handler = Failing(tmp_path / "store", fails)
        return Location(fs.PyFileSystem(handler), "", "failing:"), handler

    return failing


def every_third(*whats):
    """Fails every third time that one of these is done, with what a lost server looks like."""
    count, errors = itertools.count(1), itertools.cycle([errno.EIO, errno.ETIMEDOUT, errno.ESTALE])

    def fails(what):
        if what in whats and next(count) % 3 == 0:
            return OSError(code := next(errors), os.strerror(code))
        return None

    return fails


@pytest.mark.parametrize(
    "whats", [("write",), ("read",), ("look", "list", "delete"), ("write", "read", "list")]
)
def test_storage_that_fails_every_third_time_loses_nothing(failing, tmp_path, whats):
    location, _ = failing(every_third(*whats))
    ledger = Ledger.create(location, "tiny", facts())
    model = tmp_path / "model"
    model.mkdir()
    for number in range(5):
        (model / f"{number}.bin").write_bytes(bytes([number]) * 100)
    for number in range(12):
        ledger.mark_started(Attempt(trial(number).candidate))
        assert ledger.append(trial(number, val_loss=number))
        if number % 5 == 4:
            ledger.put_artifacts(trial(number).id, model)
            ledger.compact()
    assert ledger.trials() == [trial(number, val_loss=number) for number in range(12)]
    assert ledger.started() == []
    ledger.get_artifacts(trial(9).id, tmp_path / "copy")
    assert sorted(p.read_bytes() for p in (tmp_path / "copy").iterdir()) == [
        bytes([number]) * 100 for number in range(5)
    ]
    left = [p.name for p in (tmp_path / "store").rglob("_*")]
    assert left == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "quota"),
        OSError(errno.EACCES, "no"),
        OSError(errno.EROFS, "no"),
        OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"),
        OSError("AWS Error ACCESS_DENIED during PutObject operation"),
    ],
    ids=str,
)
def test_failure_that_stays_is_reported_at_once(failing, monkeypatch, error):
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("waits in vain"))
    location, handler = failing(lambda what: error if what == "write" and handler.done else None)
    location.make_folder("tiny")
    with pytest.raises(LedgerError, match="cannot write") as caught:
        location.put("tiny/x", b"1")
    assert caught.value.hint
    assert caught.value.hint != "check that the storage exists and can be reached"


@pytest.mark.parametrize(
    "said",
    [
        "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.",
        "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 28",
        "AWS Error UNKNOWN (HTTP status 503) during PutObject operation",
        "google::cloud::Status(UNAVAILABLE: try again)",
    ],
)
def test_object_store_that_is_busy_is_asked_again(failing, said):
    once = iter([OSError(said)])
    location, _ = failing(lambda what: next(once, None) if what == "write" else None)
    location.make_folder("tiny")
    assert location.put("tiny/x", b"1")
    assert location.read("tiny/x") == b"1"
    assert next(once, None) is None


@pytest.mark.parametrize("kind", [pa.ArrowException, pa.ArrowInvalid, pa.ArrowNotImplementedError])
def test_what_a_filesystem_fails_with_is_an_error_of_the_storage_whatever_its_kind(
    failing, tmp_path, kind
):
    location, _ = failing(lambda what: kind("Unknown error: Azure said no\nand more"))
    for use in (
        lambda: location.read("tiny/x"),
        lambda: location.entries("tiny"),
        lambda: location.exists("tiny/x"),
        lambda: location.make_folder("tiny"),
        lambda: location.delete("tiny/x"),
        lambda: location.delete_folder("tiny"),
        lambda: location.put("tiny/x", b""),
        lambda: location.copy_out("tiny", tmp_path / "copy"),
        lambda: list_sweeps(location),
    ):
        with pytest.raises(LedgerError, match=r"Azure said no$") as caught:
            use()
        assert caught.value.hint


def test_storage_that_stays_away_is_given_up(failing, monkeypatch):
    monkeypatch.setattr(storage, "_PATIENCE_SECONDS", 0.05)
    tries = []

    def fails(what):
        tries.append(what)
        return TimeoutError("no answer")

    location, _ = failing(fails)
    for use in (
        lambda: location.read("tiny/x"),
        lambda: location.entries("tiny"),
        lambda: location.delete("tiny/x"),
        lambda: location.put("tiny/x", b""),
    ):
        tries.clear()
        with pytest.raises(LedgerError, match="no answer") as caught:
            use()
        assert len(tries) > 2
        assert "can be reached" in caught.value.hint


def test_pauses_grow_and_end_with_the_patience(monkeypatch):
    now, pauses = [0.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    def fail():
        raise TimeoutError

    monkeypatch.setattr(storage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(storage.time, "sleep", sleep)
    monkeypatch.setattr(storage.random, "uniform", lambda low, high: high)
    with pytest.raises(TimeoutError):
        storage._patiently(fail)
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert sum(pauses) == pytest.approx(storage._PATIENCE_SECONDS)


def test_link_whose_answer_was_lost_is_one_that_was_made(tmp_path, monkeypatch):
    link = Path.hardlink_to

    def link_and_lose_the_answer(self, target):
        monkeypatch.setattr(Path, "hardlink_to", link)
        link(self, target)
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(storage, "_FIRST_PAUSE_SECONDS", 1e-4)
    monkeypatch.setattr(Path, "hardlink_to", link_and_lose_the_answer)
    location = Location.of(tmp_path)
    assert location.put("x", b"mine")
    assert not location.put("x", b"yours")
    assert location.read("x") == b"mine"


def test_missing_folders_are_made_but_never_the_first(tmp_path):
    location = Location.of(tmp_path)
    with pytest.raises(LedgerError, match="No such file"):
        location.put("gone/trials/x", b"1")
    assert list(tmp_path.iterdir()) == []
    location.make_folder("here")
    assert location.put("here/trials/merged-1/x", b"1")
    assert location.read("here/trials/merged-1/x") == b"1"


# -- names of places


def test_files_of_a_uri_are_named_before_its_options():
    location = Location.of("s3://bucket/folder?region=eu-west-1&endpoint_override=127.0.0.1:1")
    assert location.show("a/b") == (
        "s3://bucket/folder/a/b?region=eu-west-1&endpoint_override=127.0.0.1:1"
    )
    assert Location.of("/what?/folder").show("a") == "/what?/folder/a"


def test_keys_in_a_uri_are_never_shown():
    location = Location.of("s3://AKIA:hush@bucket/folder?region=eu-west-1")
    assert location.show("a") == "s3://bucket/folder/a?region=eu-west-1"
    assert "hush" not in repr(location)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hush@bucket/folder?colour=red",
        "s3://AKIA:hu/sh@bucket/folder",
        "s3://AKIA:hu%sh@bucket/folder",
        "s3://bucket/folder?access_key=AKIA&secret_key=hush",
        "abfs://name:hush@c.blob.core.windows.net/x?client_secret=hush",
        "gs://user:hush@bucket/folder",
        "ftp://user:hush@host/folder",
        "s3:/AKIA:hush@bucket/folder",
        "s3:AKIA:hush@bucket/folder",
        "s3//AKIA:hush@bucket/folder",
        "\u00e93://AKIA:hush@bucket/folder",
    ],
)
def test_keys_are_not_shown_where_nobody_understands_the_uri(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LedgerError) as caught:
        Location.of(uri)
    said = f"{caught.value.message} {caught.value.hint}"
    assert not any(word in said for word in ("AKIA:", "hush", "hu/sh", "sh@", "user:"))
    assert said.isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", ["~nobody-has-this-name/runs", "s3:/bucket/x", "xy://host/a"])
def test_place_that_is_none_is_an_error_with_a_hint(storage):
    with pytest.raises(LedgerError) as caught:
        Location.of(storage)
    assert caught.value.hint
    assert caught.value.message.isprintable()


# -- names and links that others have put there

BAD_NAMES = ["..", ".", "a/../b", "../x", "/etc/passwd", "a//b", "a/", "a\\..\\b", "a\0b", "a\nb",
             "s/../../x", "s/\ud800"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leads_out_of_a_storage(failing, s3, tmp_path, name):
    (tmp_path / "store").mkdir()
    for location in (
        Location.of(tmp_path / "store"),
        failing(lambda _: None)[0],
        Location.of(s3("n")),
    ):
        for use in (
            lambda at=location: at.at(name),
            lambda at=location: at.read(name),
            lambda at=location: at.exists(name),
            lambda at=location: at.put(name, b""),
            lambda at=location: at.delete(name),
            lambda at=location: at.delete_folder(name),
            lambda at=location: at.entries(name),
            lambda at=location: at.copy_out(name, tmp_path / "out"),
        ):
            with pytest.raises(DamagedError) as caught:
                use()
            assert caught.value.message.isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@given(st.text())
def test_what_is_a_name_leads_to_a_file_in_its_folder(text):
    if is_name(text):
        assert os.path.normpath(f"/a/{text}") == f"/a/{text}"
        assert Path("/a", text).parent == Path("/a")


@pytest.fixture
def linked(tmp_path):
    """A storage in whose sweep links lead to a folder outside, that folder, and its content."""
    outside, sweep = tmp_path / "outside", tmp_path / "store" / "s"
    outside.mkdir()
    sweep.mkdir(parents=True)
    (outside / "secret").write_text("mine")
    (outside / "_old").write_text("mine")
    os.utime(outside / "_old", (0, 0))
    (sweep / "folder").symlink_to(outside)
    (sweep / "file").symlink_to(outside / "secret")
    (sweep / "inside").mkdir()
    (sweep / "inside" / "link").symlink_to(outside / "secret")
    (sweep / "around").mkdir()
    (sweep / "around" / "loop").symlink_to(sweep / "around")
    yield Location.of(tmp_path / "store"), outside
    assert sorted((p.name, p.read_text()) for p in outside.iterdir()) == [
        ("_old", "mine"),
        ("secret", "mine"),
    ]


def test_nothing_is_read_written_or_deleted_over_a_link(linked, tmp_path):
    location, _ = linked
    for use in (
        lambda: location.read("s/file"),
        lambda: location.read("s/folder/secret"),
        lambda: location.exists("s/file"),
        lambda: location.entries("s/folder"),
        lambda: location.names("s/folder", ""),
        lambda: location.put("s/folder/new", b""),
        lambda: location.put("s/file", b"", replace=True),
        lambda: location.delete("s/folder/secret"),
        lambda: location.delete_folder("s/folder"),
        lambda: location.delete_leftovers("s/folder"),
        lambda: location.copy_out("s/folder", tmp_path / "out"),
        lambda: location.copy_out("s/inside", tmp_path / "out"),
        lambda: location.copy_out("s/around", tmp_path / "out"),
    ):
        with pytest.raises(DamagedError, match="is a link"):
            use()
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_with_links_in_it_is_deleted_without_what_they_lead_to(linked):
    location, _ = linked
    location.delete_folder("s")
    assert location.entries("") == []


def test_sweep_that_is_a_link_itself_is_used(tmp_path):
    (tmp_path / "big").mkdir()
    Ledger.create(tmp_path / "big", "tiny", facts()).append(trial(1))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "tiny").symlink_to(tmp_path / "big" / "tiny")
    assert list_sweeps(tmp_path / "store") == ["tiny"]
    assert Ledger.open(tmp_path / "store", "tiny").trials() == [trial(1)]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    (tmp_path / "s").mkdir()
    make(tmp_path / "s" / "x")
    location = Location.of(tmp_path)
    with pytest.raises(LedgerError):
        location.read("s/x")
    if make is os.mkfifo:
        with pytest.raises(DamagedError, match="is no file"):
            location.copy_out("s", tmp_path / "out")


def test_name_that_is_no_unicode_is_passed_over(tmp_path):
    (tmp_path / "s").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/s/_\xff")).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/s/\xff")).touch()
    (tmp_path / "s" / "x").touch()
    location = Location.of(tmp_path)
    assert [info.base_name for info in location.entries("s")] == ["x"]
    location.delete_leftovers("s")


@pytest.mark.parametrize("key", ["../../../evil", "a/../../../../evil", "..", "a\\b", "a\nb"])
def test_key_that_leads_elsewhere_is_not_copied_out_of_an_object_store(failing, tmp_path, key):
    location, handler = failing(lambda _: None)
    location.make_folder("s/models")
    location.put("s/models/good", b"1")
    listed = handler.get_file_info_selector  # keys may be anything, those of a folder are listed

    def with_another(selector):
        another = fs.FileInfo(f"s/models/{key}", fs.FileType.File)
        return [*listed(selector), *([another] if selector.base_dir == "s/models" else [])]

    handler.get_file_info_selector = with_another
    with pytest.raises(DamagedError, match="is no name of anything"):
        location.copy_out("s/models", tmp_path / "a" / "b" / "c" / "out")
    assert list(tmp_path.rglob("*evil*")) == []


@pytest.mark.parametrize("name", ["..", ".", "", "a b", "-rf", "a\nb", "\\", "\x1b[2J"])
def test_folder_that_cannot_be_a_sweep_is_not_listed(failing, name):
    location, handler = failing(lambda _: None)
    Ledger.create(location, "tiny", facts())
    listed = handler.get_file_info_selector
    handler.get_file_info_selector = lambda selector: [
        *listed(selector),
        fs.FileInfo(name, fs.FileType.Directory),
    ]
    assert list_sweeps(location) == ["tiny"]


def test_file_of_json_that_is_huge_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MOST_BYTES", 10)
    location = Location.of(tmp_path)
    location.put("x", b"1" * 11)
    with pytest.raises(DamagedError, match="11 bytes") as caught:
        location.load("x", len, hint="mend it")
    assert caught.value.hint == "mend it"


# -- an object store


def test_bucket_that_is_not_there_is_an_error_with_a_hint(s3):
    uri = s3("x").replace("//bucket/", "//no-bucket/")
    with pytest.raises(LedgerError, match="bucket") as caught:
        Ledger.create(uri, "tiny", facts())
    assert "make the bucket" in caught.value.hint
    assert list_sweeps(s3("nothing-here")) == []


def test_small_object_takes_one_request_to_write(s3, monkeypatch):
    from werkzeug.serving import WSGIRequestHandler

    seen = []
    monkeypatch.setattr(
        WSGIRequestHandler, "log_request", lambda self, *_: seen.append(self.requestline)
    )
    location = Location.of(s3("requests"))
    location.put("tiny/x", b"1", replace=True)
    (write,) = (line for line in seen if "/requests/tiny/x" in line)
    assert write.startswith("PUT")


def test_a_folder_whose_name_is_no_text_is_one_line(tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"n\xff")
    folder.mkdir()
    with pytest.raises(LedgerError, match="is no text"):
        Location.of(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(LedgerError, match="is no text"):
        Location.of("runs")
