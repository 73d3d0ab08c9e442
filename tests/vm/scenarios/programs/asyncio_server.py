"""An HTTP server on asyncio's streams. argv: port, file. GET: the file, in chunks. POST: what it was sent."""
import asyncio
import sys

FILE = open(sys.argv[2], "rb").read()


async def serve(reader, writer):
    while request := await reader.readline():
        length = 0
        keep = True
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().strip().partition(": ")
            if name.lower() == "content-length":
                length = int(value)
            if name.lower() == "connection":
                keep = value != "close"
        body = await reader.readexactly(length)
        if request.startswith(b"POST"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(FILE), 5000):
                part = FILE[at : at + 5000]
                writer.writelines([b"%x\r\n" % len(part), part, b"\r\n"])
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        if not keep:
            break
    writer.close()


async def main():
    async with await asyncio.start_server(serve, None, int(sys.argv[1])) as server:
        await server.serve_forever()


asyncio.run(main())
