# greeter.py PORT MARKER FILE: says MARKER to whoever comes, answers each read by MARKER, and appends what it has read,
# or the error, to FILE.
import socket, sys, threading

marker, log = sys.argv[2].encode(), open(sys.argv[3], 'ab', buffering=0)


def talk(s):
    try:
        s.sendall(marker)
        while True:
            heard = s.recv(65536)
            log.write(heard + b'\n')
            if not heard:
                break
            s.sendall(marker)
    except OSError as error:
        log.write(b'errno %d\n' % error.errno)
    s.close()


listener = socket.create_server(('0.0.0.0', int(sys.argv[1])), backlog=64)
while True:
    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()
