"""SDK folders as kernels' builds leave them, made up from what is known of their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "ARCH": "x86", "SEL4_ARCH": "x86_64", "ARCH_X86_64": True, "WORD_SIZE": 64, "KERNEL_MCS": False,
    "PRINTING": True, "DEBUG_BUILD": True, "MAX_NUM_NODES": 1, "IOMMU": False, "HUGE_PAGE": True,
    "SUPPORT_PCID": False, "ROOT_CNODE_SIZE_BITS": 12, "KERNEL_X86_SYSCALL": "syscall", "SYSCALL": True,
}  # fmt: skip

# The labels of one configuration end like this; the first number is what differs between them.
_ORDER = (
    "X86PageMap", "X86PageUnmap", "X86PageGetAddress", "X86ASIDControlMakePool", "X86ASIDPoolAssign",
    "X86IOPortControlIssue", "X86IOPortIn8", "X86IOPortIn16", "X86IOPortIn32", "X86IOPortOut8",
)  # fmt: skip


def labels(issue: int) -> dict[str, int]:
    first = issue - _ORDER.index("X86IOPortControlIssue")
    return {"InvalidInvocation": 0, "UntypedRetype": 1} | {name: first + i for i, name in enumerate(_ORDER)}


def write(
    folder: Path, config: dict[str, Any] | None = None, numbers: Any = None, place: str = "kernel"
) -> Path:
    """A folder with this configuration, and with these labels unless they are None."""
    where = folder / place / "kernel"
    where.mkdir(parents=True, exist_ok=True)
    (where / "gen_config.json").write_text(json.dumps(CONFIG | (config or {})))
    if numbers is not None:
        (folder / place / "invocations_all.json").write_text(json.dumps(numbers))
    return folder
