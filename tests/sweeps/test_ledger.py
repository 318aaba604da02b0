import dataclasses
import errno
import itertools
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import fs

from sweeps import ledger as ledger_module
from sweeps import records as records_module
from sweeps import storage as storage_module
from sweeps.errors import LedgerError, SweepError, TrialError
from sweeps.lease import leased
from sweeps.ledger import SCHEMA, Ledger, SweepFacts, Tail, find_trial, list_sweeps
from sweeps.objectives import Limit, at_most, objective
from sweeps.pareto import REASONS, pareto_front
from sweeps.standing import Outcomes, Standing
from sweeps.storage import Location
from sweeps.trial import (
    METRICS,
    SCHEMA_VERSION,
    Attempt,
    Candidate,
    Measurement,
    Provenance,
    Reason,
    Status,
    Trial,
)
from thesis.metrics import Quality

OBJECTIVES = [objective("val_loss"), objective("rtf_ratio")]


def facts(name="tiny", **changes):
    values = {
        "name": name,
        "gin_config": "train.steps = 300\ntrain.seed = 0",
        "dataset_fingerprint": "d1",
        "objectives": ("val_loss", "rtf_ratio"),
        "created_at": 1.0,
    }
    return SweepFacts(**{**values, **changes})


def trial(number, sweep="tiny", reason=None, **metrics):
    return Trial(
        sweep,
        Candidate.of({"number": number}),
        Measurement(**metrics),
        reason,
        provenance=Provenance(
            host="a", host_fingerprint="h", versions={"onnx": "1.17"}, finished_at=float(number)
        ),
    )


def plain(value):
    """A form in which NaN equals NaN."""
    return json.dumps(dataclasses.asdict(value), default=str, sort_keys=True)


def in_memory(_):
    return Location(*fs.FileSystem.from_uri("mock:///store"), "mock:///store")


def subtree(folder):
    return Location(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "", "subtree:")


STORAGES = {
    "path": str,
    "uri": lambda folder: folder.as_uri(),
    "subtree": subtree,
    "memory": in_memory,
}


@pytest.fixture(params=[*STORAGES, "s3"])
def storage(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3")(tmp_path.name)
    return STORAGES[request.param](tmp_path)


@pytest.fixture
def ledger(storage):
    return Ledger.create(storage, "tiny", facts())


# -- what holds on every filesystem


def test_new_sweep_is_empty(ledger):
    assert (ledger.trials(), ledger.ids(), ledger.started()) == ([], set(), [])
    assert ledger.front(OBJECTIVES).finished == 0


def test_recorded_trial_is_found_by_another_process(ledger):
    assert ledger.append(trial(1, val_loss=1.5, parameters=2446))
    again = Ledger.open(ledger.location, "tiny")
    assert again.trials() == [trial(1, val_loss=1.5, parameters=2446)]
    assert again.ids() == {trial(1).id}
    assert again.facts == ledger.facts


def test_failures_are_records_too(ledger):
    for number, reason in enumerate(Reason):
        ledger.append(trial(number, reason=reason))
    assert [t.reason for t in ledger.trials()] == list(Reason)


@pytest.mark.parametrize("compacted", [False, True])
def test_first_record_of_an_id_stays(ledger, compacted):
    ledger.append(trial(0))
    ledger.append(trial(1, val_loss=1.0))
    if compacted:
        ledger.compact()
    assert not ledger.append(trial(1, val_loss=2.0))
    assert not Ledger.open(ledger.location, "tiny").append(trial(1, val_loss=2.0))
    assert ledger.get(trial(1).id).metric("val_loss") == 1.0
    assert len(ledger.trials()) == 2


def test_trials_come_in_the_order_in_which_they_finished(ledger):
    for number in (3, 1, 2):
        ledger.append(trial(number))
    assert ledger.trials() == [trial(1), trial(2), trial(3)]


def test_extend_records_many_and_passes_over_known_ones(ledger):
    ledger.append(trial(1, val_loss=1.0))
    assert ledger.extend([trial(1, val_loss=9.0), trial(2), trial(3), trial(3)]) == 2
    assert ledger.trials() == [trial(1, val_loss=1.0), trial(2), trial(3)]
    assert ledger.extend([trial(2)]) == 0


def test_compaction_changes_no_record(ledger):
    for number in range(7):
        ledger.append(trial(number, val_loss=number / 3))
    before = ledger.trials()
    assert ledger.compact() == 7
    assert ledger.trials() == before
    assert ledger.ids() == {t.id for t in before}
    assert ledger.location.names("tiny/trials", ".parquet") == []
    assert ledger.compact() == 0


def test_many_compactions_leave_few_files(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "_FAN_IN", (2, 3, 3))
    for number in range(17):
        ledger.append(trial(2 * number))
        ledger.append(trial(2 * number + 1))
        ledger.compact()
    assert len(ledger.trials()) == 34
    assert len(ledger._files()) <= 2 + 2 + 1  # 17 = 2 + 3 * (2 + 3 * 1)


def test_compaction_that_died_before_deleting_costs_and_doubles_nothing(ledger, monkeypatch):
    for number in range(5):
        ledger.append(trial(number))
    with monkeypatch.context() as patch:
        patch.setattr(Location, "delete", lambda *_: None)
        ledger.compact()
    assert len(ledger._files()) == 6
    assert ledger.trials() == [trial(number) for number in range(5)]
    assert not ledger.append(trial(3))
    ledger.compact()
    assert ledger.trials() == [trial(number) for number in range(5)]


def compact_before_listing(moment, monkeypatch):
    """Has somebody else compact the sweep just before a reader's first, second, ... listing."""
    names, listings = Location.names, []

    def compact_and_list(location, folder, suffix):
        listings.append(folder)
        if len(listings) == moment:
            Ledger.open(location, "tiny").compact()
        return names(location, folder, suffix)

    monkeypatch.setattr(Location, "names", compact_and_list)


def test_record_that_was_merged_comes_before_one_that_raced_it(ledger, monkeypatch):
    ledger.append(trial(0))
    ledger.append(trial(1, val_loss=1.0))
    ledger.compact()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_is_merged", lambda *_: False)
        assert ledger.append(trial(1, val_loss=2.0))
    for number in (2, 3, 4, 5):
        assert ledger.trials()[:2] == [trial(0), trial(1, val_loss=1.0)]
        assert ledger.get(trial(1).id).metric("val_loss") == 1.0
        ledger.append(trial(number))
        monkeypatch.setattr(ledger_module, "_FAN_IN", (2, number % 2 + 1, 2))
        ledger.compact()


def test_clock_that_runs_backwards_costs_nothing_but_order(tmp_path, monkeypatch):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    # A trial's times are what its machine thought. Nothing but the order of `trials` asks them.
    hours = itertools.count(1e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(hours))
    written = []
    for number in range(6):
        ended = Provenance(started_at=time.time(), finished_at=time.time())
        one = dataclasses.replace(trial(number, val_loss=number), provenance=ended)
        assert ledger.append(one)
        assert not ledger.append(dataclasses.replace(one, detail="a second record"))
        written.append(one)
        if number % 2:
            ledger.compact()
    assert ledger.trials() == written[::-1]
    assert all(ledger.get(one.id) == one for one in written)
    assert ledger.ids() == {one.id for one in written}


def test_of_two_writers_of_one_object_all_readers_see_one(s3, tmp_path, monkeypatch):
    # Where a taken name cannot be refused: both look, both see nothing, both write.
    ledger = Ledger.create(s3(tmp_path.name), "tiny", facts())
    with monkeypatch.context() as patch:
        patch.setattr(Location, "exists", lambda _, name: name.endswith("sweep.json"))
        assert ledger.append(trial(1, val_loss=1.0))
        assert ledger.append(trial(1, val_loss=2.0))
    ledger.append(trial(2))
    for _ in range(2):
        for reader in (ledger, Ledger.open(ledger.location, "tiny")):
            assert reader.trials() == [trial(1, val_loss=2.0), trial(2)]
            assert not reader.append(trial(1, val_loss=3.0))
        ledger.compact()


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_reader_misses_nothing_when_records_move_while_it_lists(ledger, monkeypatch, moment):
    # Every compaction takes every record from wherever it is to the highest level.
    monkeypatch.setattr(ledger_module, "_FAN_IN", (1, 1, 1))
    ledger.extend([trial(number) for number in range(5)])
    for number in range(5, 10):
        ledger.append(trial(number))
    compact_before_listing(moment, monkeypatch)
    assert len(ledger.trials()) == 10


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_ids_miss_nothing_when_records_move_while_they_are_listed(ledger, monkeypatch, moment):
    monkeypatch.setattr(ledger_module, "_FAN_IN", (1, 1, 1))
    ledger.extend([trial(number) for number in range(5)])
    ledger.append(trial(5))
    compact_before_listing(moment, monkeypatch)
    assert len(ledger.ids()) == 6


def test_reader_looks_again_when_records_move_before_it_reads(ledger, monkeypatch):
    for number in range(5):
        ledger.append(trial(number))
    load, loads = Ledger._load, []

    def compact_before_reading(self, *args):
        loads.append(args)
        if len(loads) == 1:
            Ledger.open(self.location, "tiny").compact()
        return load(self, *args)

    monkeypatch.setattr(Ledger, "_load", compact_before_reading)
    assert len(ledger.trials()) == 5


def test_reader_gives_up_on_files_that_never_stay(ledger, monkeypatch):
    def gone(*_):
        raise FileNotFoundError

    ledger.append(trial(1))
    monkeypatch.setattr(Ledger, "_load", gone)
    with pytest.raises(LedgerError, match="move faster"):
        ledger.trials()


def test_leftover_temporary_file_is_ignored(ledger):
    ledger.append(trial(1))
    ledger.mark_started(Attempt(Candidate.of({"number": 2})))
    for name in ("tiny/trials/_0123456789.parquet", "tiny/started/_0123456789.json"):
        ledger.location._write(ledger.location.at(name), b"half a rec")
    assert ledger.trials() == [trial(1)]
    assert ledger.ids() == {trial(1).id}
    assert ledger.started() == [Attempt(Candidate.of({"number": 2}))]
    assert ledger.compact() == 0
    assert len(list_all(ledger, "_")) == 2


def list_all(ledger, beginning):
    """Every file of a sweep whose name begins so."""
    selector = fs.FileSelector(ledger.location.at("tiny"), recursive=True)
    found = ledger.location.filesystem.get_file_info(selector)
    return [info for info in found if info.is_file and info.base_name.startswith(beginning)]


def test_compaction_removes_what_writers_left_behind_a_day_ago(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    ledger.append(trial(1))
    ledger.mark_started(Attempt(trial(2).candidate))
    ages = {"day": 25 * 3600, "hour": 3600, "future": -25 * 3600}
    for folder in ("", "trials", "started"):
        for name, age in ages.items():
            path = tmp_path / "tiny" / folder / f"_{name}.0123"
            path.write_bytes(b"half")
            os.utime(path, (time.time() - age,) * 2)
    ledger.compact()
    left = {info.base_name for info in list_all(ledger, "_")}
    assert left == {"_hour.0123", "_future.0123"}
    assert ledger.trials() == [trial(1)]
    assert len(ledger.started()) == 1


def test_nothing_but_records_is_left_behind(ledger):
    for number in range(3):
        ledger.mark_started(Attempt(trial(number).candidate))
        ledger.append(trial(number))
        ledger.append(trial(number))
    found = ledger.location.filesystem.get_file_info(
        fs.FileSelector(ledger.location.at("tiny"), recursive=True)
    )
    files = {info.base_name for info in found if info.is_file}
    assert files == {"sweep.json", *(f"{trial(n).id}.parquet" for n in range(3))}


def test_started_and_unfinished_candidates_are_in_flight(ledger):
    candidates = [trial(number).candidate for number in range(3)]
    for candidate in candidates:
        ledger.mark_started(Attempt(candidate))
        ledger.mark_started(Attempt(candidate))
    ledger.append(trial(1))
    assert set(ledger.started()) == {Attempt(candidates[0]), Attempt(candidates[2])}


def test_mark_that_outlived_its_trial_is_passed_over(ledger):
    ledger.append(trial(1))
    ledger.mark_started(Attempt(trial(1).candidate))
    assert ledger.started() == []


def test_trial_is_found_by_the_start_of_its_id(ledger):
    ledger.extend([trial(number, val_loss=number) for number in range(20)])
    ledger.append(trial(20, val_loss=20))
    for number in (0, 7, 20):
        assert ledger.get(trial(number).id) == trial(number, val_loss=number)
        assert ledger.get(trial(number).id[:6]) == trial(number, val_loss=number)


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of three trials, files of two groups."""
    monkeypatch.setattr(ledger_module, "GROUP_ROWS", 3)
    monkeypatch.setattr(records_module, "GROUP_ROWS", 3)
    monkeypatch.setattr(ledger_module, "_MAX_GROUPS", 2)


def mixed(ledger):
    """Twenty-two trials, some of them in merged files, some on their own, in order."""
    trials = [trial(n, val_loss=n, rtf_ratio=100 - n, parameters=n * n) for n in range(22)]
    ledger.extend(trials[:4])
    ledger.extend(trials[4:11])
    ledger.compact(fully=True)
    ledger.extend(trials[11:13])
    for one in trials[13:]:
        ledger.append(one)
    return trials


def test_scan_yields_each_trial_once_and_few_at_a_time(ledger, small_groups):
    trials = mixed(ledger)
    batches = [*ledger.scan(("parameters", "candidate"))]
    assert max(map(len, batches)) == 3
    found = {
        trial_id: (candidate, value)
        for batch in batches
        for trial_id, candidate, value in zip(
            batch.ids, batch.texts("candidate"), batch.column("parameters").values, strict=True
        )
    }
    assert sum(map(len, batches)) == len(found) == 22
    assert found == {t.id: (t.candidate.to_json(), t.measurement.parameters) for t in trials}


def test_scan_leaves_out_what_is_known(ledger, small_groups):
    trials = mixed(ledger)
    known = {t.id for t in trials[3:20]}
    left = [i for batch in ledger.scan(("reason",), known=known) for i in batch.ids]
    assert sorted(left) == sorted(t.id for t in [*trials[:3], *trials[20:]])
    assert [*ledger.scan(("reason",), known=ledger.ids())] == []


def test_scan_goes_on_when_records_move_on_its_way(ledger, small_groups):
    trials = mixed(ledger)
    met = []
    for batch in ledger.scan(SCHEMA.names):
        met += batch.trials()
        Ledger.open(ledger.location, "tiny").compact(fully=True)
    assert sorted(met, key=lambda t: t.provenance.finished_at) == trials


def test_large_files_are_split_and_merged_files_are_few(ledger, small_groups):
    trials = mixed(ledger)
    for number in range(3):
        ledger.compact(fully=True)
        assert ledger.trials() == trials, number
    sizes = [len(numbers) for numbers in ledger._numbers_of_merged(level=1)]
    assert sum(sizes) == 22
    assert max(sizes) == 6


def test_history_is_the_front_and_then_the_latest(ledger, small_groups):
    def one(number, loss, cost, reason=None):
        return trial(number, val_loss=loss, rtf_ratio=cost, reason=reason)

    front = [one(1, 1.0, 9.0), one(5, 2.0, 8.0), one(9, 9.0, 1.0)]
    beaten = [one(n, 9.5, 9.5) for n in (2, 3, 4, 6, 7, 8)]
    failed = [one(0, 0.0, 0.0, Reason.DIVERGED), one(10, math.nan, 0.0, Reason.ERROR)]
    ledger.extend([*front, *beaten])
    ledger.compact(fully=True)
    for each in failed:
        ledger.append(each)
    assert ledger.history(OBJECTIVES, 3) == front
    found = ledger.history(OBJECTIVES, 6)
    assert [t.candidate["number"] for t in found] == [1, 5, 7, 8, 9, 10]
    assert [plain(t) for t in ledger.history(OBJECTIVES, 99)] == [plain(t) for t in ledger.trials()]


def test_outcomes_are_those_of_the_trials(ledger, small_groups):
    mixed(ledger)
    ledger.append(trial(30, reason=Reason.DIVERGED))
    ours, theirs = Standing(OBJECTIVES), Standing(OBJECTIVES)
    for outcomes in ledger.outcomes(OBJECTIVES):
        ours.add(outcomes)
    theirs.add(Outcomes.of(ledger.trials(), OBJECTIVES))
    assert ours.summary(40, []) == theirs.summary(40, [])
    assert (ours.finished, ours.counts[Status.FAILED]) == (23, 1)


def test_unknown_trial_is_refused_with_the_nearest_id(ledger):
    ledger.append(trial(1))
    wrong = trial(1).id[:8] + "zz"
    with pytest.raises(TrialError, match=f"no trial '{wrong}'") as caught:
        ledger.get(wrong)
    assert f"did you mean '{trial(1).id}'?" in caught.value.hint


def test_ambiguous_prefix_is_refused_with_the_ids(ledger):
    ledger.extend([trial(number) for number in range(40)])
    prefix = trial(0).id[0]
    same = sorted(i for i in ledger.ids() if i.startswith(prefix))
    assert len(same) > 1
    with pytest.raises(TrialError, match=f"'{prefix}' begins the ids of {len(same)} trials") as e:
        ledger.get(prefix)
    assert same[0] in e.value.message
    assert "more digits" in e.value.hint


@pytest.mark.parametrize("compacted", [False, True])
def test_front_of_the_ledger_is_the_front_of_its_trials(ledger, compacted):
    trials = []
    for number in range(30):
        reason = Reason.DIVERGED if number % 7 == 0 else None
        cost = None if number % 5 == 0 else 40.0 - number
        loss = math.nan if number % 11 == 1 else float(number % 13)
        trials.append(
            trial(number, reason=reason, val_loss=loss, rtf_ratio=cost, parameters=number)
        )
    ledger.extend(trials[:20])
    for one in trials[20:]:
        ledger.append(one)
    if compacted:
        ledger.compact()
    limits = [Limit("parameters", high=27)]
    front = ledger.front(OBJECTIVES, limits)
    expected = pareto_front(ledger.trials(), OBJECTIVES, limits)
    assert plain(front) == plain(expected)
    assert front.members
    assert front.excluded


def test_artifacts_come_back_as_they_were(ledger, tmp_path):
    source = tmp_path / "source"
    (source / "onnx").mkdir(parents=True)
    (source / "onnx" / "decoder.onnx").write_bytes(bytes(range(256)))
    (source / "model.gin").write_text("x = 1")
    assert not ledger.has_artifacts("abc")
    ledger.put_artifacts("abc", source)
    assert ledger.has_artifacts("abc")
    ledger.get_artifacts("abc", tmp_path / "target")
    assert (tmp_path / "target/onnx/decoder.onnx").read_bytes() == bytes(range(256))
    assert (tmp_path / "target/model.gin").read_text() == "x = 1"
    assert len(list((tmp_path / "target").rglob("*"))) == 3


def test_new_artifacts_take_the_place_of_the_old_ones(ledger, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
        ledger.put_artifacts("abc", tmp_path / name)
    ledger.get_artifacts("abc", tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]
    stored = ledger.location.entries("tiny/models/abc")
    assert sorted(info.is_file for info in stored) == [False, True]


def test_half_stored_artifacts_are_not_seen(ledger, tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_text("a")

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Location, "put", die)
    with pytest.raises(KeyboardInterrupt):
        ledger.put_artifacts("abc", tmp_path / "source")
    assert not ledger.has_artifacts("abc")
    with pytest.raises(TrialError, match="no model is stored for trial abc"):
        ledger.get_artifacts("abc", tmp_path / "target")


# -- sweeps


def test_sweeps_are_listed_in_order(storage):
    assert list_sweeps(storage) == []
    for name in ("violin", "cello", "tiny_2.b-c"):
        Ledger.create(storage, name, facts(name))
    Location.of(storage).make_folder("no-sweep")
    assert list_sweeps(storage) == ["cello", "tiny_2.b-c", "violin"]


def test_unknown_sweep_is_refused_with_the_nearest_name(ledger):
    with pytest.raises(SweepError, match="no sweep named 'tny'") as caught:
        Ledger.open(ledger.location, "tny")
    assert caught.value.hint == "did you mean 'tiny'? 'sweeps status' lists them"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "_a", "-a", "ü", "a b", "a" * 101])
def test_name_that_cannot_be_a_folder_is_refused(tmp_path, name):
    for use in (
        lambda: Ledger.create(tmp_path, name, facts(name)),
        lambda: Ledger.open(tmp_path, name),
    ):
        with pytest.raises(SweepError, match="cannot be the name of a sweep") as caught:
            use()
        assert "letters, digits" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_equal_facts_continue_a_sweep(ledger):
    ledger.append(trial(1))
    again = Ledger.create(ledger.location, "tiny", facts())
    assert again.trials() == [trial(1)]


def test_what_does_not_define_a_sweep_is_brought_up_to_date(ledger):
    later = facts(trials_asked=60, dataset_path="/elsewhere", created_at=99.0)
    for found in (
        Ledger.create(ledger.location, "tiny", later),
        Ledger.open(ledger.location, "tiny"),
    ):
        assert found.facts.trials_asked == 60
        assert found.facts.dataset_path == "/elsewhere"
        assert found.facts.created_at == 1.0


def test_an_older_release_s_facts_learn_their_limits_when_the_sweep_goes_on(tmp_path):
    older = json.loads(facts().to_json())
    del older["limits"], older["baseline"]
    ledger = Ledger.create(tmp_path, "tiny", facts())
    Path(tmp_path, "tiny", "sweep.json").write_text(json.dumps(older))
    found = Ledger.open(tmp_path, "tiny").facts
    assert (found.limits, found.baseline) == (None, "")
    Ledger.create(ledger.location, "tiny", facts(limits={"rtf_ratio": 2.0}, baseline="0" * 12))
    found = Ledger.open(tmp_path, "tiny").facts
    assert (found.limits, found.baseline) == ({"rtf_ratio": 2.0}, "0" * 12)
    assert found == facts()


@pytest.mark.parametrize(
    "change",
    [
        {"limits": [1]},
        {"limits": "rtf_ratio"},
        {"limits": {"rtf_ratio": "2"}},
        {"limits": {"rtf_ratio": None}},
        {"limits": {"rtf_ratio": math.nan}},
        {"limits": {"rtf_ratio": math.inf}},
        {"limits": {"rtf_ratio": 10**400}},
        {"baseline": None},
        {"baseline": ["a"]},
    ],
)
def test_limits_that_no_release_wrote_are_one_line(tmp_path, change):
    Ledger.create(tmp_path, "tiny", facts())
    values = json.loads(facts().to_json()) | change
    Path(tmp_path, "tiny", "sweep.json").write_text(json.dumps(values))
    with pytest.raises(LedgerError, match="cannot be read") as caught:
        Ledger.open(tmp_path, "tiny")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_fingerprint": "d2"}, "dataset_fingerprint is 'd1' there and 'd2' here"),
        (
            {"gin_config": "train.steps = 300\ntrain.seed = 1"},
            "gin_config is 'train.seed = 0' there and 'train.seed = 1' here",
        ),
        (
            {"gin_config": "train.steps = 300"},
            "gin_config is 'train.seed = 0' there and '' here",
        ),
        ({"objectives": ("val_loss",)}, "objectives is"),
    ],
)
def test_different_configuration_under_one_name_is_refused(ledger, change, said):
    with pytest.raises(SweepError, match="sweep 'tiny' exists and differs") as caught:
        Ledger.create(ledger.location, "tiny", facts(**change))
    assert said in caught.value.message
    assert "another --name" in caught.value.hint
    assert Ledger.open(ledger.location, "tiny").facts == facts()


def test_trial_is_found_in_whichever_sweep_it_is(storage):
    for sweep, number in (("a", 1), ("b", 2)):
        Ledger.create(storage, sweep, facts(sweep)).append(trial(number, sweep))
    found, its_trial = find_trial(storage, trial(2).id[:8])
    assert (found.name, its_trial) == ("b", trial(2, "b"))


def test_trial_of_two_sweeps_is_refused_with_their_names_unless_one_is_given(storage):
    for sweep in ("a", "b"):
        Ledger.create(storage, sweep, facts(sweep)).append(trial(1, sweep))
    with pytest.raises(TrialError, match="several sweeps: 'a', 'b'"):
        find_trial(storage, trial(1).id)
    assert find_trial(storage, trial(1).id, "b")[1].sweep == "b"


def test_trial_of_no_sweep_is_refused_with_the_nearest_id(ledger):
    ledger.append(trial(1))
    with pytest.raises(TrialError) as caught:
        find_trial(ledger.location, "z" + trial(1).id[1:])
    assert f"did you mean '{trial(1).id}'?" in caught.value.hint


def test_trial_of_another_sweep_is_a_mistake(ledger):
    with pytest.raises(ValueError, match="'other' given to sweep 'tiny'"):
        ledger.append(trial(1, sweep="other"))


# -- records


finite = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
values = st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | finite | st.text()
floats, counts = (
    st.none() | st.floats(allow_subnormal=False),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
measurements = st.builds(
    Measurement,
    **{name: floats if column.type == float | None else counts for name, column in METRICS.items()},
)
provenances = st.builds(
    Provenance,
    host=st.text(),
    versions=st.dictionaries(st.text(), st.text()),
    measure_conditions=st.dictionaries(st.text(), finite),
    gin_config=st.text(),
    seed=st.integers(0, 2**63 - 1),
    started_at=st.floats(0, 4e9),
)
any_trials = st.builds(
    Trial,
    sweep=st.just("tiny"),
    candidate=st.dictionaries(st.text(), values).map(Candidate.of),
    measurement=measurements,
    reason=st.none() | st.sampled_from(Reason),
    detail=st.text(),
    provenance=provenances,
    curve=st.dictionaries(st.integers(1, 2**40), finite),
)


@given(st.lists(any_trials, max_size=5, unique_by=lambda t: t.id), st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_trial_survives_the_ledger(trials, compacted):
    ledger = Ledger.create(in_memory(None), "tiny", facts())
    for one in trials:
        assert ledger.append(one)
    if compacted:
        ledger.compact()
    assert sorted(map(plain, ledger.trials())) == sorted(map(plain, trials))
    for one in trials:
        assert plain(ledger.get(one.id)) == plain(one)


def test_text_that_is_not_unicode_does_not_cost_the_record(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    ledger.append(dataclasses.replace(trial(1), detail="path \udcff.wav"))
    assert ledger.trials()[0].detail == "path \\udcff.wav"


def path_of(ledger, one):
    return Path(ledger.location.at(f"tiny/trials/{one.id}.parquet"))


def rewrite(path, change):
    """Writes a record as another release would have done."""
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def test_record_of_a_newer_release_is_refused_with_a_hint(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    ledger.append(dataclasses.replace(trial(1), schema_version=SCHEMA_VERSION + 1))
    for read in (ledger.trials, lambda: ledger.front(OBJECTIVES), lambda: ledger.get(trial(1).id)):
        with pytest.raises(LedgerError, match=f"{trial(1).id}.*schema version 2") as caught:
            read()
        assert "upgrade" in caught.value.hint


def test_reason_of_a_newer_release_is_refused_with_a_hint(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    ledger.append(trial(1, reason=Reason.ERROR))
    other = pa.array(["GREMLINS"])
    rewrite(path_of(ledger, trial(1)), lambda t: t.set_column(4, "reason", other))
    with pytest.raises(LedgerError, match="'GREMLINS'") as caught:
        ledger.trials()
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("compacted", [False, True])
def test_older_record_without_a_column_reads_as_its_default(tmp_path, compacted):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    measured = {"val_loss": 1.0, "rtf_ratio": 2.0, "f0_missed_share": 0.5}
    for number in (1, 2):
        ledger.append(trial(number, **measured))
    mappings = ["versions", "measure_conditions"]
    dropped = ["rtf_ratio", "f0_missed_share", *mappings, "seed", "detail", "curve"]
    rewrite(path_of(ledger, trial(1)), lambda t: t.drop_columns(dropped))
    if compacted:
        ledger.compact()
    old, new = ledger.trials()
    assert new == trial(2, **measured)
    assert old.measurement == Measurement(val_loss=1.0)
    assert (old.detail, old.provenance.seed) == ("", 0)
    assert [getattr(old.provenance, name) for name in mappings] == [{}, {}]
    assert [e.why for e in ledger.front(OBJECTIVES).excluded] == ["no rtf_ratio"]


@pytest.mark.parametrize("compacted", [False, True])
def test_record_from_before_metrics_that_follow_ears_has_none_of_them(tmp_path, compacted):
    added = [field.name for field in dataclasses.fields(Quality)][4:]
    assert added[0] == "log_mel_distance_db"
    ledger = Ledger.create(tmp_path, "tiny", facts())
    measured = {"val_loss": 1.0, "rtf_ratio": 2.0, "loudness_error_db": 3.0}
    new = measured | dict.fromkeys(added, 0.5)
    for number in (1, 2):
        ledger.append(trial(number, **new))
    rewrite(path_of(ledger, trial(1)), lambda t: t.drop_columns(added))
    if compacted:
        ledger.compact()
    assert [t.measurement for t in ledger.trials()] == [Measurement(**measured), Measurement(**new)]
    for name in added:
        found = ledger.front([objective(name, limit=0.5), objective("rtf_ratio")])
        assert [t.id for t in found.members] == [trial(2).id]
        assert [e.why for e in found.excluded] == [f"no {name}"]
    (limited,) = ledger.front(OBJECTIVES, [at_most(f"{added[0]}=1")]).members
    assert limited.id == trial(2).id


def test_column_that_only_another_release_knows_is_kept_by_compaction(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    for number in (1, 2):
        ledger.append(trial(number))
    extra = pa.array([7])
    rewrite(path_of(ledger, trial(1)), lambda t: t.append_column("energy_joules", extra))
    assert len(ledger.trials()) == 2
    ledger.compact()
    (merged,) = Path(tmp_path, "tiny/trials/merged-1").iterdir()
    table = pq.read_table(merged, partitioning=None).sort_by("finished_at")
    assert table["energy_joules"].to_pylist() == [7, None]


# What a release before had, and what one to come may add: in columns, and in a merged file.
FIRST_COLUMNS = ["sweep", "trial_id", "candidate", "reason", "val_loss", "rtf_ratio", "host",
                 "host_fingerprint", "finished_at"]  # fmt: skip


def of_an_older_release(table):
    old = table.select(FIRST_COLUMNS)
    return old.append_column("schema_version", pa.array([0] * len(table)))


def of_a_newer_release(table):
    return table.append_column("energy_joules", pa.array([7.5] * len(table))).append_column(
        "notes", pa.array([["a", "b"]] * len(table))
    )


@pytest.mark.parametrize("merged_before", [False, True])
def test_releases_read_and_merge_each_other_s_records(tmp_path, small_groups, merged_before):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    numbers = {of_an_older_release: (1, 2, 3), of_a_newer_release: (4, 5), (lambda t: t): (6, 7)}
    for change, some in numbers.items():
        trials = [trial(n, val_loss=10.0 - n, rtf_ratio=float(n), parameters=n) for n in some]
        if merged_before:
            before = {*ledger._merged_files(1)}
            ledger.extend(trials)
            (written,) = {*ledger._merged_files(1)} - before
            rewrite(Path(ledger.location.at(written)), change)
        else:
            for one in trials:
                ledger.append(one)
                rewrite(path_of(ledger, one), change)
    for _ in range(3):
        again = Ledger.open(tmp_path, "tiny")
        found = again.trials()
        assert [t.candidate["number"] for t in found] == [1, 2, 3, 4, 5, 6, 7]
        assert [t.schema_version for t in found] == [0, 0, 0, 1, 1, 1, 1]
        assert [t.measurement.parameters for t in found] == [None] * 3 + [4, 5, 6, 7]
        assert [t.provenance.versions for t in found] == [{}] * 3 + [{"onnx": "1.17"}] * 4
        assert len(again.front(OBJECTIVES).members) == 7
        assert [e.why for e in again.front([*OBJECTIVES, objective("parameters")]).excluded] == [
            "no parameters"
        ]
        assert again.get(trial(2).id) == found[1]
        again.compact(fully=True)
    (folder,) = {Path(name).parent for name in ledger._merged_files(1)}
    table = pa.concat_tables(
        [pq.read_table(f, partitioning=None) for f in (tmp_path / folder).iterdir()],
        promote_options="permissive",
    ).sort_by("finished_at")
    assert table["energy_joules"].to_pylist() == [None] * 3 + [7.5] * 2 + [None] * 2
    assert table["notes"].to_pylist() == [None] * 3 + [["a", "b"]] * 2 + [None] * 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"not parquet at all" * 20,
        lambda data: data[:4] + bytes(len(data) - 400) + data[-396:],
    ],
)
def test_corrupt_record_is_named_with_a_hint(tmp_path, damage):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    ledger.append(trial(1))
    path = path_of(ledger, trial(1))
    path.write_bytes(damage(path.read_bytes()))
    for read in (ledger.trials, lambda: ledger.front(OBJECTIVES)):
        with pytest.raises(LedgerError, match="is not a readable record") as caught:
            read()
        assert caught.value.message.startswith(str(path))
        assert "\n" not in caught.value.message
        assert "run again" in caught.value.hint


def test_parquet_file_that_is_no_record_is_named(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    stray = tmp_path / "tiny/trials/stray.parquet"
    stray.parent.mkdir()
    pq.write_table(pa.table({"a": [1]}), stray)
    with pytest.raises(LedgerError, match=r"stray\.parquet is not a readable record"):
        ledger.trials()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "tiny"}'])
def test_corrupt_sweep_file_is_named(tmp_path, text):
    Ledger.create(tmp_path, "tiny", facts())
    (tmp_path / "tiny/sweep.json").write_text(text)
    with pytest.raises(LedgerError, match=r"sweep\.json cannot be read"):
        Ledger.open(tmp_path, "tiny")


def test_sweep_of_a_newer_release_is_refused_with_a_hint(tmp_path):
    Ledger.create(tmp_path, "tiny", facts())
    newer = {**dataclasses.asdict(facts()), "schema_version": SCHEMA_VERSION + 1, "colour": "red"}
    (tmp_path / "tiny/sweep.json").write_text(json.dumps(newer))
    with pytest.raises(LedgerError, match="schema version 2") as caught:
        Ledger.open(tmp_path, "tiny")
    assert "upgrade" in caught.value.hint


def test_any_parquet_reader_finds_the_records_in_one_folder(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    for number in range(4):
        ledger.append(trial(number, val_loss=number))
        if number == 2:
            ledger.compact()
    (tmp_path / "tiny/trials/_0123.parquet.tmp").write_bytes(b"half")
    table = pq.read_table(tmp_path / "tiny/trials", schema=SCHEMA)
    assert sorted(table["val_loss"].to_pylist()) == [0, 1, 2, 3]


# -- storage that fails


@pytest.mark.parametrize("make", [str, subtree], ids=["path", "subtree"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_failed_write_is_reported_and_leaves_nothing(tmp_path, monkeypatch, make, code):
    ledger = Ledger.create(make(tmp_path), "tiny", facts())
    ledger.mark_started(Attempt(trial(1).candidate))

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage_module, "_PATIENCE_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(Location, "_write", fail)
        with pytest.raises(LedgerError, match=os.strerror(code)) as caught:
            ledger.append(trial(1))
    assert caught.value.hint
    assert list(Path(tmp_path, "tiny/trials").glob("*.parquet*")) == []
    assert ledger.started() == [Attempt(trial(1).candidate)]
    assert ledger.append(trial(1))


def test_records_are_first_come_without_hard_links(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "no links")

    monkeypatch.setattr(Path, "hardlink_to", unsupported)
    ledger = Ledger.create(tmp_path, "tiny", facts())
    assert ledger.location.put("tiny/x.json", b"first")
    assert not ledger.location.put("tiny/x.json", b"second")
    assert (tmp_path / "tiny/x.json").read_bytes() == b"first"
    assert sorted(p.name for p in (tmp_path / "tiny").glob("*x.json*")) == ["x.json"]


@pytest.fixture
def small_disk(tmp_path):
    """A real filesystem of 256 kB, where mounting one is allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a filesystem is not permitted")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_disk_costs_no_record_that_was_written(small_disk):
    ledger = Ledger.create(small_disk, "tiny", facts())
    written = []

    def fill():
        for number in range(1000):
            ledger.append(trial(number))
            written.append(number)

    with pytest.raises(LedgerError, match="No space left") as caught:
        fill()
    assert "free some space" in caught.value.hint
    assert written
    assert ledger.trials() == [trial(number) for number in written]
    assert list(Path(small_disk, "tiny/trials").glob("_*")) == []


def test_sweep_goes_on_when_a_full_disk_has_room_again(small_disk, tmp_path_factory):
    ledger = Ledger.create(small_disk, "tiny", facts())
    model = tmp_path_factory.mktemp("model")
    (model / "weights").write_bytes(bytes(100_000))
    for number in range(5):
        ledger.append(trial(number))
    (small_disk / "ballast").write_bytes(bytes(150_000))
    for write in (lambda: ledger.put_artifacts(trial(0).id, model), lambda: fill(small_disk)):
        with pytest.raises((LedgerError, OSError), match="No space left"):
            write()
    for write in (
        lambda: ledger.append(trial(9)),
        lambda: ledger.mark_started(Attempt(trial(9).candidate)),
        ledger.compact,
    ):
        with pytest.raises(LedgerError, match="No space left"):
            write()
        assert ledger.trials() == [trial(number) for number in range(5)]
    assert not ledger.has_artifacts(trial(0).id)
    assert [*small_disk.rglob("_*")] == []
    (small_disk / "ballast").unlink()
    (small_disk / "rest").unlink()
    ledger.put_artifacts(trial(0).id, model)
    assert ledger.append(trial(9))
    assert ledger.compact() == 6
    assert len(ledger.trials()) == 6


def fill(folder):
    with (folder / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def test_read_only_storage_can_be_read_and_says_why_it_is_not_written(small_disk):
    ledger = Ledger.create(small_disk, "tiny", facts())
    ledger.append(trial(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert Ledger.open(small_disk, "tiny").trials() == [trial(1)]
    for write in (
        lambda: ledger.append(trial(2)),
        lambda: ledger.mark_started(Attempt(trial(2).candidate)),
        lambda: Ledger.create(small_disk, "new", facts("new")),
    ):
        with pytest.raises(LedgerError, match="Read-only") as caught:
            write()
        assert "read-only" in caught.value.hint


def test_sweep_that_is_gone_is_not_written_anew(ledger):
    ledger.append(trial(1))
    if ledger.location._is_object_store:
        ledger.location.delete("tiny/sweep.json")
    else:
        ledger.location.delete_folder("tiny")
    for write in (
        lambda: ledger.append(trial(2)),
        lambda: ledger.mark_started(Attempt(trial(2).candidate)),
        lambda: ledger.extend([trial(2)]),
        lambda: ledger.put_artifacts(trial(1).id, Path(__file__).parent),
    ):
        with pytest.raises(LedgerError, match="is gone: it holds no sweep") as caught:
            write()
        assert "launch again" in caught.value.hint
    left = {info.base_name for info in ledger.location.entries("tiny", recursive=True)}
    assert left <= {"trials", f"{trial(1).id}.parquet"}


@pytest.mark.parametrize("folder", ["trials", "started", "models"])
def test_missing_folder_of_a_sweep_is_made_again(tmp_path, folder):
    ledger = Ledger.create(tmp_path / "store", "tiny", facts())
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("w")
    for number in (1, 2):
        ledger.mark_started(Attempt(trial(number).candidate))
        ledger.put_artifacts(trial(number).id, model)
        assert ledger.append(trial(number))
        shutil.rmtree(tmp_path / "store" / "tiny" / folder)
    ledger.mark_started(Attempt(trial(2).candidate))
    ledger.append(trial(2))
    assert ledger.ids() >= {trial(2).id}


@pytest.mark.parametrize("uri", ["ftp://host/folder", "file:///a b"])
def test_storage_that_nobody_understands_is_refused(uri):
    with pytest.raises(LedgerError, match="cannot use storage") as caught:
        list_sweeps(uri)
    assert "s3://bucket" in caught.value.hint


# -- processes


def test_ledger_can_be_sent_to_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.create("relative", "tiny", facts())
    sent = pickle.dumps(ledger)
    monkeypatch.chdir("/")
    pickle.loads(sent).append(trial(1))
    assert ledger.uri == str(tmp_path / "relative/tiny")
    assert Ledger.open(tmp_path / "relative", "tiny").trials() == [trial(1)]


def run(code, *args):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, args)])


WRITER = """
    import sys
    from sweeps.ledger import Ledger
    from sweeps.trial import Candidate, Trial
    ledger = Ledger.open(sys.argv[1], "tiny")
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        ledger.append(Trial("tiny", Candidate.of({"number": number})))
"""

COMPACTOR = """
    import pathlib, sys
    from sweeps.ledger import Ledger
    ledger = Ledger.open(sys.argv[1], "tiny")
    while not pathlib.Path(sys.argv[2]).exists():
        ledger.compact()
"""


@pytest.fixture(params=["path", "s3"])
def shared_storage(request, tmp_path):
    """A folder and a bucket, as other processes may be told of them."""
    if request.param == "s3":
        return request.getfixturevalue("s3")(tmp_path.name)
    return str(tmp_path / "store")


def test_readers_never_see_less_or_double_while_others_append_and_compact(shared_storage, tmp_path):
    ledger, stop = Ledger.create(shared_storage, "tiny", facts()), tmp_path / "stop"
    most = 250 if ledger.location.local_folder else 30  # one thread serves the objects of all
    writers = [
        run(WRITER, shared_storage, 0, most * 3 // 5),
        run(WRITER, shared_storage, most * 2 // 5, most),
    ]
    compactors = [run(COMPACTOR, shared_storage, stop) for _ in range(2)]
    seen, moved, deadline = set(), False, time.monotonic() + 120
    try:
        while any(writer.poll() is None for writer in writers):
            assert time.monotonic() < deadline
            known, found = ledger.ids(), [t.id for t in ledger.trials()]
            assert seen <= known <= set(found)
            assert len(found) == len(set(found))
            seen = set(found)
            moved = moved or bool(ledger.location.names("tiny/trials/merged-1", ".parquet"))
    finally:
        stop.touch()
        codes = [process.wait(timeout=60) for process in (*writers, *compactors)]
    assert codes == [0, 0, 0, 0]
    assert moved
    assert sorted(t.candidate["number"] for t in ledger.trials()) == list(range(most))


def test_of_two_processes_that_record_one_trial_one_wins(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    code = """
        import sys, time
        from sweeps.ledger import Ledger
        from sweeps.trial import Candidate, Trial
        ledger = Ledger.open(sys.argv[1], "tiny")
        trials = [Trial("tiny", Candidate.of({"number": n}), detail=sys.argv[2]) for n in range(60)]
        won = [trial.id for trial in trials if ledger.append(trial)]
        stored = {trial.id: trial.detail for trial in ledger.trials()}
        sys.exit(any(stored[trial_id] != sys.argv[2] for trial_id in won))
    """
    processes = [run(code, tmp_path, name) for name in ("a", "b")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(ledger.ids()) == 60


def test_a_front_is_read_without_loading_pandas_datasets_ray_or_tensorflow(tmp_path):
    Ledger.create(tmp_path, "tiny", facts()).append(trial(1, val_loss=1, rtf_ratio=1))
    code = """
        import sys
        from sweeps.ledger import Ledger
        from sweeps.objectives import objective
        ledger = Ledger.open(sys.argv[1], "tiny")
        front = ledger.front([objective("val_loss"), objective("rtf_ratio")])
        assert len(front.members) == 1
        heavy = {"pandas", "pyarrow.dataset", "ray", "tensorflow", "optuna"} & set(sys.modules)
        sys.exit(f"loaded {heavy}" if heavy else 0)
    """
    assert run(code, tmp_path).wait(timeout=60) == 0


# -- reading what is new


def read(tail):
    """What a tail tells of each new trial, by id, and what it says is started."""
    told = {}

    def tell(outcomes):
        columns = outcomes.records.columns
        told.update(
            {
                trial_id: (
                    REASONS[outcomes.records.reasons[row]],
                    outcomes.hosts[outcomes.records.hosts[row]],
                    outcomes.finished_at[row],
                    *(columns[name].values[row] for name in ("val_loss", "rtf_ratio")),
                )
                for row, trial_id in enumerate(outcomes.ids)
            }
        )

    return told, tail.read(tell)


def test_a_tail_tells_each_trial_once_whatever_file_it_moves_to(ledger):
    trials = [
        trial(n, val_loss=float(n), rtf_ratio=n / 4)
        if n % 5
        else dataclasses.replace(trial(n, reason=Reason.DIVERGED, val_loss=0.0, rtf_ratio=0.0))
        for n in range(40)
    ]
    expected = {
        t.id: (t.reason, "h", t.provenance.finished_at, t.metric("val_loss"), t.metric("rtf_ratio"))
        for t in trials
    }
    tail, seen = Tail(ledger, OBJECTIVES), {}
    other = Ledger.open(ledger.location, "tiny")
    for first in range(0, 40, 4):
        for each in trials[first : first + 3]:
            other.append(each)
        if first % 8:
            other.compact()
        other.extend(trials[first + 3 : first + 4])
        told, _ = read(tail)
        assert len(told) == 4
        seen |= told
    assert seen == expected
    assert read(tail)[0] == {}
    assert read(Tail(other, OBJECTIVES))[0] == expected


def test_a_tail_reads_no_record_twice(tmp_path, monkeypatch):
    ledger = Ledger.create(str(tmp_path), "tiny", facts())
    loaded, load = [], ledger._load
    monkeypatch.setattr(ledger, "_load", lambda part, *_: loaded.append(part) or load(part, *_))
    tail, writer = Tail(ledger, OBJECTIVES), Ledger.open(str(tmp_path), "tiny")
    for number in range(9):
        writer.append(trial(number))
        if number % 3 == 2:
            writer.compact()
        read(tail)
        read(tail)
        assert sum(map(len, loaded)) == number + 1


def test_a_tail_looks_at_no_file_twice(tmp_path, monkeypatch):
    ledger = Ledger.create(str(tmp_path), "tiny", facts())
    looked, parts_of = [], ledger._parts_of
    monkeypatch.setattr(
        ledger, "_parts_of", lambda names, known: looked.extend(names) or parts_of(names, known)
    )
    tail, writer = Tail(ledger, OBJECTIVES), Ledger.open(str(tmp_path), "tiny")
    for number in range(9):
        writer.append(trial(number))
        if number % 3 == 2:
            writer.compact()
        tail.read(lambda outcomes: None)
        tail.read(lambda outcomes: None)
        assert len(looked) == number + 1, "the new record, or the merged file that it is in"
    assert len(set(looked)) == 9


def test_a_tail_tells_what_is_started_and_not_on_record(ledger):
    tail = Tail(ledger, OBJECTIVES)
    first, second = (Attempt(trial(n).candidate, host="a", began_at=float(n)) for n in (1, 2))
    ledger.mark_started(first)
    ledger.mark_started(second)
    assert sorted(read(tail)[1], key=lambda each: each.began_at) == [first, second]
    ledger.append(trial(1))
    assert read(tail)[1] == [second]
    ledger.mark_started(first)  # by a worker that does not know yet
    assert read(tail)[1] == [second]


def test_a_tail_sees_that_another_host_has_taken_over(tmp_path):
    ledger = Ledger.create(str(tmp_path), "tiny", facts())
    tail = Tail(ledger, OBJECTIVES)
    for attempt in (Attempt(trial(1).candidate, "a"), Attempt(trial(1).candidate, "bc", deaths=1)):
        ledger.mark_started(attempt)
        assert read(tail)[1] == [attempt]


# -- forgetting what failed


def forgotten(ledger):
    """What was kept of the records that were forgotten: a file's rows by trial id."""
    read = [
        ledger.location.parse(name, lambda file: pq.read_table(file).to_pylist())
        for name in ledger.location.names("tiny/forgotten", ".parquet")
    ]
    return {row["trial_id"]: row for rows in read for row in rows}


def some_failed(ledger):
    """Twelve trials, some on their own and some in merged files, of which five failed."""
    reasons = {1: Reason.CRASHED, 2: Reason.RTF, 4: Reason.ERROR, 7: Reason.CRASHED,
               8: Reason.PRUNED, 9: Reason.DIVERGED, 10: Reason.OUT_OF_MEMORY}  # fmt: skip
    trials = [trial(n, reason=reasons.get(n), val_loss=float(n)) for n in range(12)]
    ledger.extend(trials[:3])
    ledger.extend(trials[3:6])
    ledger.compact(fully=True)
    ledger.extend(trials[6:9])
    for one in trials[9:]:
        ledger.append(one)
    failed = [one for one in trials if one.status is Status.FAILED]
    return failed, [one for one in trials if one.status is not Status.FAILED]


def test_failed_trials_are_forgotten_and_all_others_stay(ledger, small_groups):
    failed, others = some_failed(ledger)
    counts = ledger.forget()
    assert counts == {Reason.CRASHED: 2, Reason.ERROR: 1, Reason.DIVERGED: 1,
                      Reason.OUT_OF_MEMORY: 1}  # fmt: skip
    for reader in (ledger, Ledger.open(ledger.location, "tiny")):
        assert reader.trials() == others
        assert reader.ids() == {one.id for one in others}
        assert not any(reader.holds(one.id) for one in failed)
    assert not ledger.location.exists("tiny/lease.json")
    assert ledger.forget() == {}


def test_what_was_forgotten_is_kept(ledger):
    failed, _ = some_failed(ledger)
    before = {one.id: records_module.row_of(one) for one in failed}
    ledger.forget()
    ledger.compact(fully=True)
    assert forgotten(ledger) == before


def test_only_trials_that_ended_for_the_given_reasons_are_forgotten(ledger):
    some_failed(ledger)
    assert ledger.forget([Reason.CRASHED, Reason.RTF]) == {Reason.CRASHED: 2, Reason.RTF: 1}
    left = {one.reason for one in ledger.trials()}
    assert left == {None, Reason.ERROR, Reason.PRUNED, Reason.DIVERGED, Reason.OUT_OF_MEMORY}


def test_a_forgotten_trial_is_tried_anew_and_recorded(ledger, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoint").write_text("of a model that diverged")
    ledger.append(trial(1, reason=Reason.DIVERGED))
    ledger.mark_started(Attempt(trial(1).candidate, deaths=2))  # a worker's that was cut off
    ledger.put_work(trial(1).id, tmp_path / "work")
    assert ledger.forget().total() == 1
    assert ledger.started() == []
    assert ledger.work_version(trial(1).id) is None
    assert ledger.append(trial(1, val_loss=1.0))
    assert ledger.trials() == [trial(1, val_loss=1.0)]
    ledger.forget()
    assert ledger.trials() == [trial(1, val_loss=1.0)]


def test_column_that_only_another_release_knows_is_kept_in_what_was_forgotten(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    for number in range(3):
        ledger.append(trial(number, reason=Reason.ERROR if number else None))
        extra = pa.array([number])
        rewrite(path_of(ledger, trial(number)), lambda t, e=extra: t.append_column("joules", e))
        if number == 1:
            ledger.compact()
    ledger.forget()
    assert {row["joules"] for row in forgotten(ledger).values()} == {1, 2}
    (merged,) = Path(tmp_path, "tiny/trials/merged-1").iterdir()
    assert pq.read_table(merged, partitioning=None)["joules"].to_pylist() == [0]


@pytest.mark.parametrize("operation", ["put", "delete"])
def test_forgetting_may_be_killed_anywhere_and_done_again(storage, monkeypatch, operation):
    for moment in itertools.count():
        sweep = f"t{moment}"
        ledger = Ledger.create(storage, sweep, facts(sweep))
        reasons = [None, Reason.ERROR, Reason.CRASHED, None, Reason.ERROR, None]
        trials = [trial(n, sweep, reason) for n, reason in enumerate(reasons)]
        ledger.extend(trials[:4])
        for one in trials[4:]:
            ledger.append(one)
        others = [one for one in trials if one.reason is None]
        original, done = getattr(Location, operation), itertools.count()

        def die(location, name, *args, _at=moment, _do=original, _done=done, **options):
            if ("/trials/" in name or "/forgotten/" in name) and next(_done) == _at:
                raise KeyboardInterrupt
            return _do(location, name, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Location, operation, die)
            try:
                ledger.forget()
                break  # it has no more moments
            except KeyboardInterrupt:
                pass
        kept = {one.id for one in ledger.trials()}
        assert kept >= {one.id for one in others}
        again = Ledger.open(storage, sweep)
        again.forget()
        assert again.trials() == others
        names = again.location.names(f"{sweep}/forgotten", ".parquet")
        tables = [again.location.parse(name, pq.read_table)["trial_id"] for name in names]
        assert {i for t in tables for i in t.to_pylist()} == {
            one.id for one in trials if one.reason is not None
        }
    assert moment >= 2


def test_forgetting_and_compacting_at_once_loses_no_record(ledger, monkeypatch, small_groups):
    _, others = some_failed(ledger)
    forget_in, calls = Ledger._forget_in, []

    def compact_meanwhile(self, name, reasons):
        calls.append(name)
        if len(calls) in (2, 3):
            Ledger.open(self.location, "tiny").compact(fully=True)
        forget_in(self, name, reasons)

    monkeypatch.setattr(Ledger, "_forget_in", compact_meanwhile)
    assert ledger.forget().total() == 5
    assert ledger.trials() == others


def test_nothing_is_forgotten_while_the_sweep_is_launched(ledger):
    ledger.append(trial(1, reason=Reason.ERROR))
    with leased(ledger.location, "tiny"), pytest.raises(SweepError, match="being launched"):
        ledger.forget()
    assert ledger.ids() == {trial(1).id}


def test_a_tail_says_when_what_it_told_is_on_record_no_more(ledger):
    tail = Tail(ledger, OBJECTIVES)
    ledger.append(trial(0))
    ledger.append(trial(1, reason=Reason.ERROR))
    read(tail)
    ledger.compact()
    read(tail)
    assert not tail.outdated
    ledger.forget()
    read(tail)
    assert tail.outdated
    tail = Tail(ledger, OBJECTIVES)
    ledger.append(trial(1, reason=Reason.ERROR))
    assert len(read(tail)[0]) == 2
    ledger.forget()
    ledger.append(trial(1, val_loss=1.0))  # before the tail looks again
    read(tail)
    assert tail.outdated
