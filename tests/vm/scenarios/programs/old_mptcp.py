# Listens with MPTCP at ADDRESS PORT and sends one client back what it said.
import socket, sys

IPPROTO_MPTCP = 262
server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
server.bind((sys.argv[1], int(sys.argv[2])))
server.listen()
client, _ = server.accept()
client.sendall(client.recv(100))
client.close()
