# Connects to ADDRESS, where nobody listens at port 7005, and goes on calling; then to port 7000 with the same socket, and
# to where there is no way. Says what it has done. It goes on when a file says so.
import os, socket, sys, time

address = sys.argv[1]


def wait_for(step):
    while not os.path.exists("/tmp/vain." + step):
        time.sleep(0.02)


def call(client):
    for call in (lambda: client.recv(10), lambda: client.send(b"x")):
        try:
            call()
        except OSError:
            pass


def done(what):
    print(what, flush=True)


wait_for("begin")
client = socket.socket()
client.setblocking(False)
client.connect_ex((address, 7005))
call(client)
done("begun")
wait_for("refused")
call(client)
done("called again")
wait_for("listening")
client.setblocking(True)
# The first call may tell how the last one has ended.
if client.connect_ex((address, 7000)) != 0:
    client.connect((address, 7000))
client.sendall(b"hello")
assert client.recv(100) == b"hello"
client.close()
done("connected")
wait_for("nowhere")
client = socket.socket()
assert client.connect_ex((address, 7005)) != 0
call(client)
done("without a way")
wait_for("enough")
client.close()
done("closed")
wait_for("end")
