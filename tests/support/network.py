"""A network of its own for a command, and the addresses on which a process listens."""

import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

HOST = "10.99.0.1"
"""The name of the machine in a network of its own, which is also an address of it."""
OWN_NETWORK = f"""
import ctypes, fcntl, os, socket, struct, sys
user, group = os.getuid(), os.getgid()
new_user, new_network, new_names = 0x10000000, 0x40000000, 0x04000000
if ctypes.CDLL(None).unshare(new_user | new_network | new_names):
    os.execvp(sys.argv[1], sys.argv[1:])
for name, text in (("setgroups", "deny"), ("uid_map", f"{{user}} {{user}} 1"), ("gid_map", f"{{group}} {{group}} 1")):
    with open(f"/proc/self/{{name}}", "w") as file:
        file.write(text)
socket.sethostname("{HOST}")
set_flags, set_address, up, running = 0x8914, 0x8916, 0x1, 0x40
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, set_flags, struct.pack("16sH14x", b"lo", up | running))
    address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("{HOST}"))
    fcntl.ioctl(control, set_address, struct.pack("16s16s", b"lo:1", address))
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Program that gives itself a network in which loopback is the only interface, and then becomes another program. It needs no
privileges: in a new user namespace it has those of its network and its host name. Where the system allows no such namespace, the
other program runs in the network of the tests."""
LISTENING = "0A"


def in_own_network(command: Sequence[str]) -> list[str]:
    """Return the command that runs another in a network where its host name does not resolve to 127.0.0.1."""
    return [sys.executable, "-c", OWN_NETWORK, *command]


def host_address(pid: int) -> str:
    """Return the address to which the host name resolves in the network of a process that `in_own_network` has started."""
    own = os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    return HOST if own else socket.gethostbyname(socket.gethostname())


def listening_addresses(pid: int) -> list[str]:
    """Return the addresses of all listening TCP sockets of a process, sorted; IPv4 in IPv6 is written as IPv4."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if state == LISTENING and f"socket:[{inode}]" in links:
                words = bytes.fromhex(local.partition(":")[0])
                # Each 32-bit word is printed as a number of this machine.
                packed = b"".join(int.from_bytes(words[at : at + 4]).to_bytes(4, sys.byteorder) for at in range(0, len(words), 4))
                address = ipaddress.ip_address(packed)
                addresses.append(str(getattr(address, "ipv4_mapped", None) or address))
    return sorted(addresses)
