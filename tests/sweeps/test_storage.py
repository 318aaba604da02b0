import errno
import itertools
import os
from pathlib import Path

import pytest
from pyarrow import fs

from sweeps import storage
from sweeps.errors import LedgerError
from sweeps.ledger import Ledger, list_sweeps
from sweeps.storage import Location
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
    with pytest.raises(LedgerError) as caught:
        Location.of("s3://AKIA:hush@bucket/folder?colour=red")
    assert "hush" not in caught.value.message


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
