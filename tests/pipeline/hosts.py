"""Two hosts on this machine: network namespaces of their own."""

import os
import shutil
import subprocess

import pytest


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a bridge: 10.77.0.1 and 10.77.0.2.  Skips where they may not be made."""
    if not shutil.which("ip"):
        pytest.skip("two hosts need the `ip` program (apt-get install iproute2)")
    names = [f"mpp{os.getpid()}a", f"mpp{os.getpid()}b"]
    bridge = f"mppbr{os.getpid() % 100000}"
    if not ip("netns", "add", names[0]):
        pytest.skip("network namespaces may not be made here (needs root or CAP_SYS_ADMIN)")
    try:
        ok = ip("netns", "add", names[1]) and ip("link", "add", bridge, "type", "bridge") and ip("link", "set", bridge, "up")
        for i, name in enumerate(names):
            link = f"v{os.getpid() % 100000}{'ab'[i]}"
            ok = ok and ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ok = ok and ip("link", "set", link, "master", bridge, "up")
            ok = ok and ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            ok = ok and ip("-n", name, "link", "set", "eth0", "up") and ip("-n", name, "link", "set", "lo", "up")
        if not ok:
            pytest.skip("virtual network links may not be made here")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)
        ip("link", "del", bridge)
