"""Sends the packets of one kind, each with a marker in it, and prints how many: packets.py KIND DESTINATION SOURCE"""
import socket
import struct
import sys

kind, destination, source = sys.argv[1:]
family = socket.AF_INET if kind.endswith("4") else socket.AF_INET6
target = socket.getaddrinfo(destination, 0, family)[0][4]
marker = f"kind-{kind}.".encode()
TCP, UDP, HOP, FRAGMENT, DSTOPTS = 6, 17, 0, 44, 60
LARGE = 3000


def datagram(payload):
    return struct.pack("!HHHH", 9, 9, 8 + len(payload), 0) + payload


def raw(protocol, payload):
    """One packet whose IP header the kernel makes."""
    s = socket.socket(family, socket.SOCK_RAW, protocol)
    if family == socket.AF_INET6 and protocol == UDP:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, -1)
    s.sendto(payload, target)


def whole6(next_header, payload):
    """One IPv6 packet, header included."""
    header = struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64)
    packet = header + socket.inet_pton(family, source) + socket.inet_pton(family, destination) + payload
    socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(packet, target)


def whole4(protocol, offset, payload):
    """One IPv4 packet, header included; the kernel fills in length and checksum. The offset is in units of 8."""
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 7, offset, 64, protocol, 0) + addresses
    socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(header + payload, target)


def options(next_header):
    """An extension header of eight bytes with nothing but padding."""
    return struct.pack("!BBBBI", next_header, 0, 1, 4, 0)


def fragment(next_header, offset, more):
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, 7)


name = kind.rstrip("46")
sent = 1
if name in ("udp", "link"):
    socket.socket(family, socket.SOCK_DGRAM).sendto(marker, (target[0], 9, *target[2:]))
elif name == "large":
    # The kernel cuts it: first fragment, middle, last. The marker is in each.
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.sendto((marker * 400)[:LARGE], (target[0], 9, *target[2:]))
    sent = 3
elif name == "lite":
    raw(136, datagram(marker))
elif name == "gre":
    raw(47, marker)
elif name == "sctp":
    # An association that is asked for: INIT, and whatever is sent again, but none in the first second.
    s = socket.socket(family, socket.SOCK_STREAM, 132)
    s.setblocking(False)
    s.connect_ex((target[0], 9, *target[2:]))
    raw(132, struct.pack("!HHII", 9, 9, 0, 0) + marker)
    s.close()
    sent = 2
elif name == "hop":
    whole6(HOP, options(UDP) + datagram(marker))
elif name == "dst":
    whole6(DSTOPTS, options(DSTOPTS) + options(UDP) + datagram(marker))
elif name == "long":
    # More headers than are stepped over, then TCP.
    whole6(DSTOPTS, options(DSTOPTS) * 7 + options(TCP) + bytes(20) + marker)
elif name == "later":
    if family == socket.AF_INET:
        whole4(UDP, 100, marker)
    else:
        whole6(FRAGMENT, fragment(UDP, 100, 0) + marker)
elif name == "first":
    # The first fragment shows that UDP follows the options, a later one of the same packet shows nothing, ...
    whole6(FRAGMENT, fragment(DSTOPTS, 0, 1) + options(UDP) + datagram(marker))
elif name == "hidden":
    # ... or whatever it likes: here it looks as if TCP followed.
    whole6(FRAGMENT, fragment(DSTOPTS, 3, 0) + options(TCP) + marker)
elif name == "atomic":
    whole6(FRAGMENT, fragment(UDP, 0, 0) + datagram(marker))
elif name == "mcast":
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
    s.sendto(marker, ("ff02::1", 9))
elif name == "linktcp":
    raw(TCP, struct.pack("!HHIIBBHHH", 9, 9, 1, 1, 0x50, 0x10, 64, 0, 0) + marker)
else:
    sys.exit(f"no kind {kind}")
print(sent)
