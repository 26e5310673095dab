"""Main memory, as far as the system says: how much there is, how much is free."""

import math
import os
import resource


def main_memory() -> float:
    """Bytes that the machine has; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # some builds of Python for macOS
        return math.inf


def available_memory() -> float:
    """Bytes that are free and that this process may take; all of it where only that is known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        free = main_memory()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit)
