# Sockets with MPTCP that are older than the take-over of their namespace.
#   listen PROTOCOL ADDRESS PORT: sends clients back what they say.
#   connect ADDRESS OUTSIDE: to the ports 7000 (MPTCP) and 7001 (TCP) of the first and 7000 of the second; says what
#   becomes of each socket.
import errno, os, select, socket, sys, threading, time

MPTCP = 262


def make(protocol=MPTCP):
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    made.settimeout(100)
    return made


def listen(protocol, address, port):
    server = make(protocol)
    server.settimeout(None)
    server.bind((address, port))
    server.listen()
    while True:
        threading.Thread(target=echo, args=server.accept()[:1]).start()


def echo(client):
    try:
        while said := client.recv(100):
            client.sendall(said)
    except OSError:
        pass
    client.close()


def connect(address, outside):
    idle = make()
    before = {"inside": make(), "outside": make()}
    before["inside"].connect((address, 7000))
    before["outside"].connect((outside, 7000))
    for name, client in before.items():
        talk(name + " before", client)
    # The other end cannot answer before the take-over is done.
    wait_for("/tmp/unreachable")
    begun = {"begun to mptcp": 7000, "begun to tcp": 7001}
    for name, port in begun.items():
        begun[name] = client = make()
        client.setblocking(False)
        client.connect_ex((address, port))
    open("/tmp/begun", "w").close()
    wait_for("/tmp/applied")
    try:
        idle.connect((address, 7000))
        print("idle: connected", flush=True)
    except OSError as error:
        say("idle", error)
    for name, client in begun.items():
        select.select([], [client], [], 100)
        client.settimeout(100)
        talk(name, client)
    fresh = make(socket.IPPROTO_TCP)
    fresh.connect((address, 7000))
    talk("tcp", fresh)
    for name, client in before.items():
        talk(name + " after", client)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.02)


def talk(name, client):
    try:
        client.sendall(b"hello")
        print(name + ":", "answered" if client.recv(100) == b"hello" else "ended", flush=True)
    except OSError as error:
        say(name, error)


# A timeout has no number.
def say(name, error):
    print(name + ":", errno.errorcode.get(error.errno, error), flush=True)


if sys.argv[1] == "listen":
    listen(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
else:
    connect(*sys.argv[2:])
