"""What is said never ends what is done."""

import os
import pty
import subprocess
import sys

import pytest

SAYS = """
import sys
from hub.system.saying import drop_what_nobody_reads, lost_output
drop_what_nobody_reads()
sys.stdin.readline()
for number in range(3):
    print("a library's own line", number, flush=True)
    print("an error", file=sys.stderr)
open(sys.argv[1], "w").write(str(lost_output() and lost_output().errno))
"""


@pytest.mark.parametrize("gone", ["a pipe", "a terminal", "a full disk", "closed at the start"])
def test_a_program_whose_reader_is_gone_goes_on_to_its_end(tmp_path, gone):
    options = {"stdin": subprocess.PIPE, "text": True}
    if gone == "a pipe":
        reader, writer = os.pipe()
    elif gone == "a terminal":
        reader, writer = pty.openpty()
    else:
        reader, writer = os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    if gone == "closed at the start":
        options["preexec_fn"] = lambda: (os.close(1), os.close(2))
    else:
        options |= {"stdout": writer, "stderr": writer}
    with subprocess.Popen([sys.executable, "-c", SAYS, str(tmp_path / "done")], **options) as process:
        os.close(reader)
        os.close(writer)
        process.communicate("go\n")
    assert process.returncode == 0
    assert (tmp_path / "done").read_text() == {"a terminal": "5", "a full disk": "28"}.get(gone, "None")
