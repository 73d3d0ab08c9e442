"""client.py send NAME [OPTION=VALUE]: connects over 127.0.0.1, sets the option, sends once without waiting, and says
whether the socket took the data; what it took must arrive. client.py take_over: the key of this network namespace."""
import socket
import sys

SO_NETNS_COOKIE, SO_MAX_PACING_RATE, TCP_NOTSENT_LOWAT = 71, 47, 25
OPTIONS = {
    "TCP_NOTSENT_LOWAT": (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    "SO_SNDBUF": (socket.SOL_SOCKET, socket.SO_SNDBUF),
    "TCP_CORK": (socket.IPPROTO_TCP, socket.TCP_CORK),
    "SO_MAX_PACING_RATE": (socket.SOL_SOCKET, SO_MAX_PACING_RATE),
}

if sys.argv[1] == "take_over":
    cookie = socket.socket().getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    print("hex", *(f"{byte:02x}" for byte in cookie))
    sys.exit()

name, *limit = sys.argv[2:]
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
for words in limit:
    option, value = words.split("=")
    client.setsockopt(*OPTIONS[option], int(value))
message = f"kind-{name}.".encode()
try:
    client.send(message, socket.MSG_DONTWAIT)
except BlockingIOError:
    print("held")
    sys.exit()
got = b""
while len(got) < len(message):
    got += server.recv(100)
print("sent")
