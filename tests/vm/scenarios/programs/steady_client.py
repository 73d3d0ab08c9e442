# HOST PORT NAME: sends lines and compares the answers, until /tmp/enough exists. /tmp/NAME.lines has the number of
# lines that came back. Exit code 0: every one did, and the connection lived to the end; 1: it was reset.
import os
import socket
import sys
import time

MARKER = "marker-that-only-plaintext-contains"
host, port, name = sys.argv[1:]
count = 0
try:
    server = socket.create_connection((host, int(port)))
    answers = server.makefile("rb")
    while not os.path.exists("/tmp/enough"):
        line = f"{MARKER} {name} {count} {'x' * (count % 3000)}\n".encode()
        server.sendall(line)
        answer = answers.readline()
        if not answer:
            raise ConnectionError("closed")
        if answer != line:
            print(f"line {count} came back as {answer!r}")
            sys.exit(2)
        count += 1
        with open(f"/tmp/{name}.new", "w") as file:
            file.write(f"{count}\n")
        os.rename(f"/tmp/{name}.new", f"/tmp/{name}.lines")
        time.sleep(0.02)
except OSError as error:
    print(f"after {count} lines: {error}")
    sys.exit(1)
print(f"{count} lines")
