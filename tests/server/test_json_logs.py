"""What is printed past the loggers leaves the server as JSON all the same."""

import json
import subprocess
import sys

from server import json_logs


def test_lines_that_are_no_objects_are_wrapped() -> None:
    lines = ['{"message": "as it is", "level": "DEBUG"}', "", "[W] from C++ \xe4", "17", '{"half": ', "\t at the end\r"]
    wrapper = subprocess.run(
        [sys.executable, "-I", json_logs.__file__],
        input="\n".join(lines).encode() + b"\n\xff\n",
        capture_output=True,
        check=True,
    )
    first, *wrapped = map(json.loads, wrapper.stdout.splitlines())
    assert first == {"message": "as it is", "level": "DEBUG"}
    assert [line["message"] for line in wrapped] == ["[W] from C++ \xe4", "17", '{"half":', "\t at the end", "\ufffd"]
    assert all(line["logger"] == "output" and line["time"] for line in wrapped)
