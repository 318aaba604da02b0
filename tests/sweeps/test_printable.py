from hypothesis import given
from hypothesis import strategies as st

from sweeps.printable import LONGEST, in_a_line, printable, show, show_text


def test_what_a_terminal_would_obey_is_spelled_out():
    assert printable("\x1b[2J\x07\x9b\r\n\u202e\ud800") == r"\x1b[2J\x07\x9b\r\n\u202e\ud800"
    assert printable("ein Täuschungsmanöver · 30 µs") == "ein Täuschungsmanöver · 30 µs"
    assert printable("a\n\tb\x1b", keep="\n") == "a\n\\tb\\x1b"


@given(st.text(st.characters()))
def test_whatever_is_said_is_one_line_that_can_be_seen(text):
    line = in_a_line(text)
    assert line.isprintable()
    assert len(line) <= LONGEST
    assert in_a_line(line) == line


def test_lines_are_shown_as_lines_and_texts_as_texts(capsys):
    show("a\nb\x1b")
    show_text("a\nb\x1b")
    assert capsys.readouterr().out == "a\\nb\\x1b\na\nb\\x1b\n"


def test_a_line_of_data_shows_no_credentials(capsys):
    show("s3://AKIA:hush@bucket/x: 2 trials")
    assert capsys.readouterr().out == "s3://bucket/x: 2 trials\n"
