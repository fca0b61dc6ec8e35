"""Which process is which, across restarts of the machine and recycled process ids."""

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return what tells this boot of the machine from the others; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return when a process started, in the kernel's own unit; empty where it has ended or the system does not say.

    Source: proc(5), /proc/[pid]/stat field 22; the name in field 2 may hold spaces and brackets. A process that has
    ended but was not yet collected by its parent (state Z or X) counts as ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def is_alive(pid: int, boot: str, start: str) -> bool:
    """Say whether the very process that had this id, boot and start is still running."""
    if boot != boot_id():
        return False
    if start:
        return process_start(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs under another account
        return True
    return True
