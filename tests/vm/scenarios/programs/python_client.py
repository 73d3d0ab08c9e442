"""requests with a session and without one, then asyncio's streams. argv: host, port, marker.

Prints what was asked, and one checksum of all answers."""
import asyncio
import concurrent.futures
import hashlib
import sys

import requests

host, port, marker = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
bodies = [(b"%d %s\n" % (size, marker) * size)[:size] for size in (0, 1, 4000, 16384, 60000)]


def ask(asker):
    digest = hashlib.sha256()
    for body in bodies:
        answer = asker.post(url, data=body, timeout=60)
        answer.raise_for_status()
        assert answer.content == body, f"another answer to {len(body)} bytes"
        digest.update(answer.content)
    digest.update(asker.get(url, timeout=60).content)
    return digest.hexdigest()


async def stream(body):
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    for at in range(0, len(body), 1000):
        writer.write(body[at : at + 1000])
        await writer.drain()
    head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and answer == body, f"another answer to {len(body)} bytes"
    writer.close()
    await writer.wait_closed()
    return hashlib.sha256(answer).hexdigest()


async def streams():
    return await asyncio.gather(*(stream(body) for body in bodies * 4))


with requests.Session() as session:
    print("requests, session:", ask(session))
print("requests:", ask(requests))
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print("requests, threads:", *set(pool.map(ask, [requests] * 4)))
print("asyncio:", hashlib.sha256("".join(asyncio.run(streams())).encode()).hexdigest())
