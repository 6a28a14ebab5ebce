"""doctor: it looks at the real host, so what it finds is compared with another way of looking."""

import json
import os
import shutil

from tests.shell.running import warren


def test_it_says_what_is_here_and_what_each_lack_costs() -> None:
    done = warren("doctor", "--json")
    assert done.code == 0
    found = {one["thing"]: one for one in map(json.loads, done.out.splitlines())}
    assert found["python"]["state"] == "ok"
    assert (found["qemu"]["state"] == "ok") == (shutil.which("qemu-system-x86_64") is not None)
    assert (found["fuse"]["state"] != "lacking") == os.path.exists("/dev/fuse")
    for one in found.values():
        assert one["says"]
        if one["state"] != "ok":
            assert one["costs"]
            assert one["way_out"]


def test_a_line_for_each_thing_and_the_way_out_below() -> None:
    done = warren("doctor")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("ok       python")
    for at, line in enumerate(lines):
        if line.startswith(("lacking", "broken")):
            assert "costs: " in lines[at + 1]
            assert "way out: " in lines[at + 2]
