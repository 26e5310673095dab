"""How much main memory there is: on Linux, on a system that says less, on one that says nothing."""

import builtins
import math
import os
import resource

from utils.memory import available_memory, main_memory


def test_linux_says_what_is_free():
    assert 0 < available_memory() < main_memory() < math.inf


def test_a_system_without_proc_or_names_is_no_fault_of_a_file(monkeypatch):
    """macOS has no /proc, and knows no SC_AVPHYS_PAGES; some builds of Python no SC_PHYS_PAGES."""
    real_open, real_sysconf = builtins.open, os.sysconf

    def no_proc(path, *arguments, **keywords):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return real_open(path, *arguments, **keywords)

    def without(*names):
        def sysconf(name):
            if name in names:
                raise ValueError("unrecognized configuration name")
            return real_sysconf(name)

        return sysconf

    monkeypatch.setattr(builtins, "open", no_proc)
    monkeypatch.setattr(os, "sysconf", without("SC_AVPHYS_PAGES"))
    assert available_memory() == main_memory() < math.inf
    monkeypatch.setattr(os, "sysconf", without("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    assert available_memory() == main_memory() == math.inf
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**9, 10**9))
    assert available_memory() == 10**9
