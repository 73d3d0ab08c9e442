# Answers every line with the same line, on every connection. With a second argument it accepts only once that file
# exists.
import os
import socket
import sys
import threading
import time


def answer(client):
    with client, client.makefile("rb") as lines:
        for line in lines:
            client.sendall(line)


def main():
    server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
    while len(sys.argv) > 2 and not os.path.exists(sys.argv[2]):
        time.sleep(0.02)
    while True:
        threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


main()
