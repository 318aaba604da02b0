import dataclasses
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeps.ledger import Ledger, SweepFacts
from sweeps.shipping import dataset_here, ship_dataset, shipped_facts
from tests.sweeps.fakes import make_dataset
from thesis.data import CLIPS_FILE, FACTS_FILE, load_dataset, load_facts
from thesis.errors import DatasetError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddsp-sweeps" / "datasets"


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data")


@pytest.fixture
def ledger(tmp_path, dataset):
    facts = SweepFacts(
        name="s",
        gin_config="",
        dataset_fingerprint=load_facts(dataset).fingerprint,
        objectives=("val_loss", "rtf"),
    )
    return Ledger.create(tmp_path / "runs", "s", facts)


def test_a_dataset_that_is_here_is_used_where_it_is(ledger, dataset, cache):
    assert dataset_here(ledger, dataset) == dataset
    assert not cache.exists()


def test_a_dataset_that_is_not_here_is_an_error_that_names_the_machine(ledger, tmp_path):
    with pytest.raises(DatasetError, match=f"is not on {platform.node()}") as caught:
        dataset_here(ledger, str(tmp_path / "nowhere"))
    assert "--ship" in caught.value.hint


def test_another_dataset_under_the_same_path_is_not_taken_for_it(ledger, tmp_path):
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(DatasetError, match="or is another one there"):
        dataset_here(ledger, other)


def test_a_dataset_that_was_shipped_is_fetched_once(ledger, dataset, cache):
    facts = load_facts(dataset)
    ship_dataset(ledger, dataset)
    shutil.rmtree(dataset)
    here = dataset_here(ledger, dataset)
    assert Path(here).parent == cache
    assert load_facts(here) == facts
    ledger.location.delete_folder("s/dataset")
    assert dataset_here(ledger, dataset) == here


def test_a_dataset_that_is_half_shipped_is_not_there_yet(ledger, dataset, tmp_path):
    ledger.location.copy_in(Path(dataset), "s/dataset")
    with pytest.raises(DatasetError, match="is not on"):
        dataset_here(ledger, str(tmp_path / "nowhere"))


def test_several_workers_of_a_machine_may_fetch_at_once(ledger, dataset, cache):
    ship_dataset(ledger, dataset)
    shutil.rmtree(dataset)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: dataset_here(ledger, dataset), range(8)))
    assert len(found) == 1
    assert [folder.name for folder in cache.iterdir()] == [ledger.facts.dataset_fingerprint]


def alter(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_dataset_that_was_altered_here_is_an_error(ledger, dataset):
    alter(Path(dataset, CLIPS_FILE))
    with pytest.raises(DatasetError, match="altered, cut short"):
        dataset_here(ledger, dataset)


def test_a_copy_that_was_damaged_is_fetched_again(ledger, dataset, cache):
    ship_dataset(ledger, dataset)
    shutil.rmtree(dataset)
    here = Path(dataset_here(ledger, dataset))
    alter(here / CLIPS_FILE)
    assert load_dataset(dataset_here(ledger, dataset)).path == here
    assert [folder.name for folder in cache.iterdir()] == [here.name]


@pytest.mark.parametrize("name", [CLIPS_FILE, FACTS_FILE])
def test_what_was_damaged_in_the_storage_does_not_arrive(ledger, dataset, cache, name):
    ship_dataset(ledger, dataset)
    shutil.rmtree(dataset)
    shipped = ledger.location.local_folder / "s" / "dataset"
    if name == CLIPS_FILE:
        alter(shipped / name)
    else:
        (shipped / name).write_text("[")
    with pytest.raises(DatasetError) as caught:
        dataset_here(ledger, dataset)
    assert "--ship" in caught.value.hint
    assert not cache.exists() or list(cache.iterdir()) == []


def test_what_a_launch_that_came_to_nothing_has_shipped_is_replaced(ledger, dataset, tmp_path):
    other = make_dataset(tmp_path / "other", seed=1)
    ledger.location.copy_in(Path(other), "s/dataset")
    ledger.location.put("s/dataset/complete", b"")
    ship_dataset(ledger, dataset)
    assert shipped_facts(ledger.location, "s") == load_facts(dataset)


def test_nothing_but_the_dataset_is_shipped(ledger, dataset):
    Path(dataset, "diary.txt").write_text("dear diary")
    ship_dataset(ledger, dataset)
    there = {info.base_name for info in ledger.location.entries("s/dataset")}
    assert there == {CLIPS_FILE, FACTS_FILE, "complete"}


def test_nothing_but_the_dataset_arrives(ledger, dataset):
    ship_dataset(ledger, dataset)
    shutil.rmtree(dataset)
    ledger.location.put("s/dataset/diary.txt", b"dear diary")
    here = Path(dataset_here(ledger, dataset))
    assert {file.name for file in here.iterdir()} == {CLIPS_FILE, FACTS_FILE}


@pytest.mark.parametrize("missing", [CLIPS_FILE, FACTS_FILE])
def test_what_is_missing_in_the_storage_is_an_error(ledger, dataset, missing):
    ship_dataset(ledger, dataset)
    shutil.rmtree(dataset)
    ledger.location.delete(f"s/dataset/{missing}")
    with pytest.raises(DatasetError):
        dataset_here(ledger, dataset)


def test_a_dataset_is_shipped_by_an_object_store(dataset, ledger, s3, tmp_path):
    there = Ledger.create(s3(f"shipping-{tmp_path.name}"), "s", ledger.facts)
    facts = load_facts(dataset)
    for _ in range(2):
        ship_dataset(there, dataset)
    shutil.rmtree(dataset)
    assert load_facts(dataset_here(there, dataset)) == facts


@pytest.mark.parametrize("fingerprint", ["", "..", "../../data", "/etc", "F" * 64])
def test_a_fingerprint_that_is_none_never_becomes_a_path(ledger, dataset, cache, fingerprint):
    facts = dataclasses.replace(ledger.facts, dataset_fingerprint=fingerprint)
    with pytest.raises(DatasetError, match="is no fingerprint of a dataset"):
        dataset_here(Ledger(ledger.location, facts), dataset)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_to_is_an_error(ledger, dataset, tmp_path, monkeypatch):
    ship_dataset(ledger, dataset)
    shutil.rmtree(dataset)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match="cannot keep the dataset") as caught:
        dataset_here(ledger, dataset)
    assert "XDG_CACHE_HOME" in caught.value.hint
