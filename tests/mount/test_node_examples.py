"""The page about programs: its Python runs, and so do the programs it names, as processes of their own."""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from trio import run_process
from warren.mount.sdk import node

from tests.mount.nodes import serving
from tests.sources import ROOT

PAGE = ROOT / "docs/sdk.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


async def test_the_python_of_the_page_runs(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks("python"):
        exec(compile(block, "sdk.md", "exec"), names)
    made = [it for it in names.values() if inspect.iscoroutinefunction(it)]
    assert [it.__name__ for it in made] == [
        "orders", "careful", "at_once", "several", "builds", "pictures",
    ]  # fmt: skip
    async with serving(tmp_path) as there, node(there.address) as n:
        for it in made:
            await it(n)


async def test_the_programs_of_the_page_run(tmp_path: Path) -> None:
    (script,) = blocks("sh")
    (tmp_path / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    async with serving(tmp_path) as there:
        async with node(there.address) as n:
            await n.mailbox("orders").make()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WARREN_", "RON_"))}
        env = kept | {
            "WARREN_NODE_URL": there.address, "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        }  # fmt: skip
        done = await run_process(
            ["bash", "-euo", "pipefail", "-c", script], env=env, cwd=tmp_path, capture_stdout=True
        )
    lines = done.stdout.decode().splitlines()
    assert lines[:4] == ["sent 1", "sent 2", "1 blue", "2 red"]
    size = (ROOT / "README.md").stat().st_size
    assert re.fullmatch(rf"sha256:[0-9a-f]{{64}}\n{size} bytes", "\n".join(lines[4:]))
