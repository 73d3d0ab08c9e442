"""Sends a known stream, or reads one with a pause in the middle.

argv: "read", port, bytes before the pause, or "send", host, port, bytes. The reader goes on when the file /tmp/go is
there. Both print how many bytes they had, and their CRC.
"""
import os
import socket
import sys
import time
import zlib

BLOCK = bytes((i * 7 + i // 251) % 256 for i in range(60007))


def read(port, before):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen()
    connection, _ = listener.accept()
    total = crc = 0
    while received := connection.recv(1 << 14):
        total += len(received)
        crc = zlib.crc32(received, crc)
        if total >= before:
            print("pausing", flush=True)
            while not os.path.exists("/tmp/go"):
                time.sleep(0.02)
            before = 1 << 62
    print(total, crc)


def send(host, port, most):
    connection = socket.create_connection((host, port))
    total = crc = 0
    while total < most:
        connection.sendall(BLOCK)
        total += len(BLOCK)
        crc = zlib.crc32(BLOCK, crc)
    connection.shutdown(socket.SHUT_WR)
    print(total, crc)


if sys.argv[1] == "read":
    read(int(sys.argv[2]), int(sys.argv[3]))
else:
    send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
