"""Greets whoever connects, but accepts only when the file /tmp/accept is there; then counts what it is sent.

argv: port. At the three bytes END it answers with the count, at the end of the stream it prints it.
"""
import os
import select
import socket
import sys

listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while not os.path.exists("/tmp/accept"):
    select.select([], [], [], 0.01)
connection, _ = listener.accept()
connection.sendall(b"marker-that-only-plaintext-contains greeting\n")
total = 0
while received := connection.recv(1 << 16):
    total += len(received)
    if received.endswith(b"END"):
        connection.sendall(b"%d bytes\n" % total)
print(total)
