import subprocess
import sys

from sweeps.last_words import last_words

TOLD = (
    "The actor died unexpectedly.\n\tclass_name: Worker\n\tpid: 4947\n\tip: 192.0.2.2\nEnd of file."
)


def test_a_worker_that_crashed_says_where(tmp_path):
    script = tmp_path / "crashing.py"
    script.write_text("import os\ndef f():\n    os.kill(os.getpid(), 11)\nf()\n")
    with (tmp_path / "worker-ab12-01000000-4947.err").open("w") as log:
        subprocess.run([sys.executable, "-X", "faulthandler", script], stderr=log, check=False)
    assert last_words(tmp_path, TOLD) == "Segmentation fault (crashing.py, line 3 in f)"


def test_a_worker_that_was_killed_says_nothing(tmp_path):
    assert last_words(tmp_path, TOLD) == ""
    (tmp_path / "worker-ab12-01000000-4947.err").write_bytes(b"\xff all is well\n")
    (tmp_path / "worker-ab12-01000000-14947.err").write_text("Fatal Python error: another's\n")
    assert last_words(tmp_path, TOLD) == ""
    assert last_words(tmp_path, "it is gone") == ""
    assert last_words(tmp_path / "nowhere", TOLD) == ""
