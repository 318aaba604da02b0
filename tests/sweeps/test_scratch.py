"""The folder of a launch, in a place where everybody may write."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import scratch
from sweeps.ledger import Ledger, SweepFacts
from sweeps.scratch import launch_folder, private_folder, scratch_folder, work_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What /tmp is to these launches: everybody may write there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(scratch, "_root", lambda: folder)
    return folder


def ledger_of(tmp_path: Path, name: str = "s") -> Ledger:
    facts = SweepFacts(
        name=name, gin_config="#", dataset_fingerprint="f", objectives=("val_loss", "rtf_ratio")
    )
    return Ledger.create(tmp_path / "runs", name, facts)


def test_it_goes_with_the_launch_unless_it_holds_checkpoints(
    temporary: Path, tmp_path: Path
) -> None:
    ledger = ledger_of(tmp_path)
    with scratch_folder(ledger) as folder:
        assert launch_folder(folder).is_dir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(temporary.iterdir())
    with scratch_folder(ledger) as folder:
        (folder / "work").mkdir()
    assert [path.name for path in folder.iterdir()] == ["work"]


def test_it_leaves_room_for_ray_s_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
    with scratch_folder(ledger_of(tmp_path)) as folder:
        session = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
        assert len(str(folder / "r1234567" / session)) <= 107


def test_what_a_killed_launch_has_left_goes_with_the_next_one_of_any_sweep(
    temporary: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sweeps import scratch; "
        "from sweeps.ledger import Ledger; "
        "scratch._root = lambda: Path(sys.argv[2])\n"
        "with scratch.scratch_folder(Ledger.open(sys.argv[1], 'killed')) as folder:\n"
        "    (scratch.launch_folder(folder) / 'session').write_bytes(bytes(2**20))\n"
        "    (folder / 'work').mkdir()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    ledger_of(tmp_path, "killed")
    subprocess.run([sys.executable, "-c", code, tmp_path / "runs", temporary], check=False)
    assert any(temporary.rglob("session"))
    with scratch_folder(ledger_of(tmp_path, "other")) as other:
        assert not any(temporary.rglob("session"))
        with scratch_folder(ledger_of(tmp_path, "third")):
            assert launch_folder(other).is_dir()  # whose launch is alive
    (kept,) = temporary.iterdir()
    assert [path.name for path in kept.rglob("*")] == ["work"]  # checkpoints


def taken_by_a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


def taken_by_a_file(folder: Path) -> None:
    folder.touch()


def open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def of_another_user(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize(
    "take",
    [
        taken_by_a_link,
        taken_by_a_file,
        open_to_others,
        pytest.param(
            of_another_user, marks=pytest.mark.skipif(os.getuid() != 0, reason="needs root")
        ),
    ],
)
def test_a_folder_that_somebody_else_may_write_to_is_not_used(tmp_path: Path, take) -> None:
    take(tmp_path / "sweeps-1")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}
    folder = private_folder(tmp_path / "sweeps-1")
    assert folder != tmp_path / "sweeps-1"
    assert stat.S_IMODE(folder.lstat().st_mode) == 0o700
    assert private_folder(tmp_path / "sweeps-1") == folder
    assert {path: path.lstat().st_mtime_ns for path in before} == before


def test_a_folder_of_ours_that_others_could_look_into_is_closed(tmp_path: Path) -> None:
    (tmp_path / "sweeps-1").mkdir(mode=0o755)
    assert private_folder(tmp_path / "sweeps-1") == tmp_path / "sweeps-1"
    assert stat.S_IMODE((tmp_path / "sweeps-1").stat().st_mode) == 0o700


def test_leftovers_of_others_are_left_alone(temporary: Path, tmp_path: Path) -> None:
    (temporary / "sweeps-theirs" / "r7").mkdir(parents=True)
    (temporary / "sweeps-theirs").chmod(0o777)
    (tmp_path / "mine" / "r7").mkdir(parents=True)
    (temporary / "sweeps-link").symlink_to(tmp_path / "mine")
    with scratch_folder(ledger_of(tmp_path)):
        pass
    assert (temporary / "sweeps-theirs" / "r7").is_dir()
    assert (tmp_path / "mine" / "r7").is_dir()


def test_checkpoints_are_beside_the_records_on_a_file_system(tmp_path: Path) -> None:
    assert work_folder(ledger_of(tmp_path), tmp_path) == tmp_path / "runs" / "s" / "work"
    shutil.rmtree(tmp_path / "runs")


def test_who_tidies_up_meanwhile_does_no_harm(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def private_and_gone_at_first(folder: Path) -> Path:
        made.append(private_folder(folder))
        if len(made) == 1:
            made[0].rmdir()
        return made[-1]

    monkeypatch.setattr(scratch, "private_folder", private_and_gone_at_first)
    with scratch_folder(ledger_of(tmp_path)) as folder:
        assert launch_folder(folder).is_dir()
    assert not list(temporary.iterdir())
