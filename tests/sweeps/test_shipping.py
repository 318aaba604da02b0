import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeps.ledger import Ledger, SweepFacts
from sweeps.shipping import dataset_here, ship_dataset
from tests.sweeps.fakes import make_dataset
from thesis.data import load_facts
from thesis.errors import DatasetError

FINGERPRINT = "a" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddsp-sweeps" / "datasets"


@pytest.fixture
def ledger(tmp_path):
    facts = SweepFacts(
        name="s", gin_config="", dataset_fingerprint=FINGERPRINT, objectives=("val_loss", "rtf")
    )
    return Ledger.create(tmp_path / "runs", "s", facts)


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data", FINGERPRINT)


def test_a_dataset_that_is_here_is_used_where_it_is(ledger, dataset, cache):
    assert dataset_here(ledger, dataset) == dataset
    assert not cache.exists()


def test_a_dataset_that_is_not_here_is_an_error_that_names_the_machine(ledger, tmp_path):
    with pytest.raises(DatasetError, match=f"is not on {platform.node()}") as caught:
        dataset_here(ledger, str(tmp_path / "nowhere"))
    assert "--ship" in caught.value.hint


def test_another_dataset_under_the_same_path_is_not_taken_for_it(ledger, tmp_path):
    other = make_dataset(tmp_path / "other", "b" * 64)
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
    assert [folder.name for folder in cache.iterdir()] == [FINGERPRINT]
