import pytest

from sweeps.tables import format_number, print_table


def test_numbers_are_written_out_as_far_as_anybody_reads_them():
    numbers = [0.00012345, 12.3456, 999.96, 1234567.8, 999_999_999_999_999.0, 12345]
    shown = ["0.0001234", "12.35", "1000", "1,234,568", "999,999,999,999,999", "12,345"]
    assert [format_number(number) for number in numbers] == shown
    assert format_number(-1.5e308) == "-1.5e+308"
    assert len(format_number(1e15)) < 10


@pytest.mark.parametrize("odd", ["x" * 100_000, "\x1b" * 5_000, format_number(-1e308)])
def test_one_value_of_a_stranger_leaves_room_for_the_others(capsys, odd):
    print_table(["trial", "host", "val_loss"], [["abc123", odd, "8.25"], ["def456", "here", "9.5"]])
    shown = capsys.readouterr().out
    assert all(cell in shown for cell in ("trial", "abc123", "8.25", "def456", "here", "9.5"))
    assert max(map(len, shown.splitlines())) <= 250
