"""gRPC without generated code: one call, a stream each way, and both at once.

argv: "serve" and a port, or "ask", a target and a marker. The client prints one checksum of all answers."""
import concurrent.futures
import hashlib
import sys

import grpc


def one(request, _):
    return request[::-1]


def out(request, _):
    for i in range(20):
        yield request[i:] + request[:i]


def into(requests, _):
    return hashlib.sha256(b"".join(requests)).digest()


def both(requests, _):
    yield from requests


HANDLERS = {
    "one": grpc.unary_unary_rpc_method_handler(one),
    "out": grpc.unary_stream_rpc_method_handler(out),
    "into": grpc.stream_unary_rpc_method_handler(into),
    "both": grpc.stream_stream_rpc_method_handler(both),
}


def serve(port):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("talk", HANDLERS)])
    assert server.add_insecure_port(f"[::]:{port}")
    server.start()
    server.wait_for_termination()


def ask(target, marker):
    parts = [(b"%d %s\n" % (size, marker) * size)[:size] for size in (0, 1, 100, 16384, 100000)]
    digest = hashlib.sha256()
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        for part in parts:
            answer = channel.unary_unary("/talk/one")(part, timeout=60, wait_for_ready=True)
            assert answer == part[::-1]
            digest.update(answer)
        answers = list(channel.unary_stream("/talk/out")(parts[3], timeout=60))
        assert answers == list(out(parts[3], None))
        digest.update(b"".join(answers))
        answer = channel.stream_unary("/talk/into")(iter(parts), timeout=60)
        assert answer == into(parts, None)
        digest.update(answer)
        answers = list(channel.stream_stream("/talk/both")(iter(parts), timeout=60))
        assert answers == parts
        digest.update(b"".join(answers))
    return digest.hexdigest()


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        print("grpc:", *set(pool.map(lambda _: ask(sys.argv[2], sys.argv[3].encode()), range(3))))
