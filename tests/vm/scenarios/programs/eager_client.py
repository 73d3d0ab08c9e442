"""Sends at once, blocking, from one thread while another sleeps in recv on the same socket.

argv: host, port, and "timeouts" for a socket with SO_RCVTIMEO and SO_SNDTIMEO. Prints what it receives.
"""
import socket
import sys
import threading

MARKER = b"marker-that-only-plaintext-contains "
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
if sys.argv[3:] == ["timeouts"]:
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, (50).to_bytes(8, "little") + bytes(8))
lines = []


def read():
    text = b""
    while text.count(b"\n") < 2:
        received = connection.recv(100)
        if not received:
            break
        text += received
    lines.append(text.decode())


reader = threading.Thread(target=read, daemon=True)
reader.start()
connection.sendall(MARKER)
for _ in range(16):
    connection.sendall(b"x" * 65536)
connection.sendall(b"END")
reader.join()
connection.shutdown(socket.SHUT_WR)
print(*lines, end="")
