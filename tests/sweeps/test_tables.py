import pytest

from sweeps.objectives import objective
from sweeps.pareto import pareto_front
from sweeps.tables import format_number, print_front, print_table
from sweeps.trial import Candidate, Measurement, Provenance, Trial


def test_numbers_are_written_out_as_far_as_anybody_reads_them():
    numbers = [0.00012345, 12.3456, 999.96, 1234567.8, 999_999_999_999_999.0, 12345]
    shown = ["0.0001234", "12.35", "1000", "1,234,568", "999,999,999,999,999", "12,345"]
    assert [format_number(number) for number in numbers] == shown
    assert format_number(-1.5e308) == "-1.5e+308"
    assert len(format_number(1e15)) < 10


def trial(number, missed, host="studio-7", **axes):
    measured = Measurement(
        val_loss=7.5 - number, rtf=8e-6, rtf_ratio=0.2 + number, parameters=2446 + number,
        rtf_ratio_low=0.19 + number, rtf_ratio_high=0.21 + number, f0_missed_share=missed,
    )  # fmt: skip
    values = {
        "channels": 8, "layers_per_stack": 3, "stacks": 2, "dilation_base": 2 + number,
        "norm": "frame", "kernel_size": 3, "block": "plain", "learning_rate": 0.00123456, **axes,
    }  # fmt: skip
    where = Provenance(host=host, host_fingerprint=host)
    return Trial("s", Candidate.of(values), measured, provenance=where)


OBJECTIVES = [objective("val_loss"), objective("rtf_ratio")]


def lines_of(capsys, *trials, objectives=OBJECTIVES):
    print_front(pareto_front(trials, objectives), "s")
    return capsys.readouterr().out.splitlines()


def test_a_front_shows_how_much_of_the_pitch_each_member_misses(capsys):
    shown = lines_of(capsys, trial(0, 0.104), trial(1, 1.0), trial(2, None))
    head = shown[3].split()
    assert head[-3:] == ["[95%]", "f0_missed", "time"]
    assert [line.split()[-2] for line in shown[5:8]] == ["10.4%", "100%", "-"]
    as_objective = [objective("f0_missed_share"), objective("rtf_ratio")]
    shown = lines_of(capsys, trial(0, 0.104), objectives=as_objective)
    assert shown[3].split().count("f0_missed") == 1


def test_a_front_fits_a_terminal_of_a_hundred_columns(capsys):
    """What all members have in common is told once."""
    shown = lines_of(capsys, *(trial(i, 1.0, channels=8 + i, stacks=2 + i) for i in range(3)))
    assert max(len(line) for line in shown[2:8]) <= 100
    assert shown[8] == (
        "all members: block plain, kernel_size 3, layers_per_stack 3, learning_rate 0.00123, "
        "norm frame, host studio-7"
    )
    assert not {"host", "block", "kernel", "learning_rate"} & set(shown[3].split())


def test_what_members_differ_in_is_a_column(capsys):
    shown = lines_of(capsys, trial(0, 0.1), trial(1, 0.1, host="studio-8", norm="none"))
    assert {"host", "norm", "base"} <= set(shown[3].split())
    assert [line.split()[-1] for line in shown[5:7]] == ["studio-7", "studio-8"]
    (alone,) = (line for line in lines_of(capsys, trial(0, 0.1)) if "all members" in line)
    assert alone == "all members: host studio-7"


@pytest.mark.parametrize("odd", ["x" * 100_000, "\x1b" * 5_000, format_number(-1e308)])
def test_one_value_of_a_stranger_leaves_room_for_the_others(capsys, odd):
    print_table(["trial", "host", "val_loss"], [["abc123", odd, "8.25"], ["def456", "here", "9.5"]])
    shown = capsys.readouterr().out
    assert all(cell in shown for cell in ("trial", "abc123", "8.25", "def456", "here", "9.5"))
    assert max(map(len, shown.splitlines())) <= 250
