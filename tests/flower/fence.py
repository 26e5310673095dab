"""Runs a command in a network of its own and writes down where its packets wanted to go.

python fence.py REPORT COMMAND ...    inside `unshare --net` (or `unshare --map-root-user --net`)

The network has the loopback interface and, as its way out, a tunnel that ends in this program:
nothing gets through, and every packet that was meant for outside stands in REPORT, as JSON.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LAST = bytes([198, 51, 100, 1])  # where this program's own packet goes when the command has ended
COMMANDS = (
    "ip link set lo up",
    "ip link set way_out up",
    "ip address add 198.51.100.2/24 dev way_out",
    "ip route add default dev way_out",
)


def main() -> int:
    report, *command = sys.argv[1:]
    tunnel = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH", b"way_out", IFF_TUN | IFF_NO_PI))
    Path("/proc/sys/net/ipv6/conf/way_out/disable_ipv6").write_text("1")
    for line in COMMANDS:
        subprocess.run(line.split(), check=True)
    destinations: list[str] = []

    def watch() -> None:
        while (packet := os.read(tunnel, 65536))[16:20] != LAST:
            protocol, port = packet[9], int.from_bytes(packet[22:24], "big")
            destinations.append(f"{socket.inet_ntoa(packet[16:20])} {protocol}/{port}")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    status = subprocess.run(command, check=False).returncode
    # The command's packets lie before this one: when it has been read, so have they.
    with socket.socket(type=socket.SOCK_DGRAM) as last:
        last.sendto(b"", (socket.inet_ntoa(LAST), 9))
    watcher.join(60)
    if watcher.is_alive():
        sys.exit("the tunnel's own last packet was never read: what stands before it is unknown")
    Path(report).write_text(json.dumps(destinations))
    return status


if __name__ == "__main__":
    sys.exit(main())
