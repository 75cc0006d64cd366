#!/usr/bin/env python3
"""An HTTP proxy before one server that fails as stores and networks do, driven by a seed.

    fault_proxy.py HOST:PORT [--listen PORT] [--seed N] [--rate 0.1] [--kinds a,b,...] [--delay-ms N]

Owns faults and their counts. Does not own servers nor what must hold under faults (tests/programs/faults.py).
It says its port on the first line of standard output; then each line of JSON on standard input changes
settings ({"rate": 0.1, "kinds": ["lost"], "delay_ms": 15, "away": "refused"}) and is answered with one line
of counts. It ends with its standard input, or on a signal. With a delay and no rate it is a distant server, or
with {"delayed": "PUT"} as well one that is slow in one thing.

Each request draws from the generator of the seed; which request meets which number depends on the
order of their arrival, so a seed repeats the mix, not the run.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import struct
import sys

CHUNK_BYTES = 256 << 10
HEAD_BYTES_MAX = 64 << 10
# How long a stalled request is held: longer than any client waits for one attempt in a test.
STALL_SECONDS = 120
# How often in a row the same request meets a fault; only stalls, of which each costs a client a part of its
# bound, are fewer. With some hundred requests more than a bound has room for would happen now and then, and
# say nothing of the client.
FAULTS_IN_A_ROW_MAX = 5
STALLS_IN_A_ROW_MAX = 2
# How long nobody listens after a refusal.
REFUSED_SECONDS = 0.3

KINDS = {
    "500": "an internal error, before anything was done",
    "503": "SlowDown with Retry-After",
    "429": "too many requests with Retry-After",
    "500-applied": "an internal error after it was applied",
    "refused": "nobody listens for a moment, and all connections break",
    "reset-request": "the connection is reset in the middle of the request's body",
    "reset-reply": "the connection is reset in the middle of the reply's body",
    "stall": "the request is never answered nor done",
    "stall-reply": "the reply's body stops in its middle",
    "truncated": "the reply's body ends early, in good order",
    "short": "the reply's body is short and the head says so too",
    "flip-request": "one bit of the request's body is another",
    "flip-reply": "one bit of an object's bytes is another",
    "lost": "it is applied and the reply is lost",
    "expired": "403 ExpiredToken",
    "unknown-key": "403 InvalidAccessKeyId",
    "skewed": "403 RequestTimeTooSkewed",
}
CODES = {
    "500": (500, "InternalError", None),
    "503": (503, "SlowDown", "1"),
    "429": (429, "TooManyRequests", "1"),
    "500-applied": (500, "InternalError", None),
    "expired": (403, "ExpiredToken", None),
    "unknown-key": (403, "InvalidAccessKeyId", None),
    "skewed": (403, "RequestTimeTooSkewed", None),
}
REASONS = {403: "Forbidden", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable"}


class Broken(Exception):
    """This connection is over."""


class Message:
    """The head of a request or of a reply, and how long its body is."""

    def __init__(self, head: bytes, no_body: bool = False):
        self.start, *lines = head[:-4].decode("latin-1").split("\r\n")
        self.headers = [line.split(":", 1) for line in lines]
        self.headers = [(name.strip(), value.strip()) for name, value in self.headers]
        self.chunked = "chunked" in (self.get("transfer-encoding") or "").lower()
        self.length = int(self.get("content-length") or 0)
        if no_body:
            self.chunked, self.length = False, 0

    def get(self, name: str):
        return next((v for n, v in self.headers if n.lower() == name), None)

    def without(self, name: str):
        self.headers = [(n, v) for n, v in self.headers if n.lower() != name]

    def encode(self) -> bytes:
        lines = [self.start, *(f"{n}: {v}" for n, v in self.headers)]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


async def read_head(reader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as e:
        raise Broken from e


async def pieces(reader, message: Message):
    """The body as it stands on the wire, in pieces; chunked ones with their framing."""
    try:
        if message.chunked:
            while True:
                line = await reader.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                yield line + await reader.readexactly(size + 2)
                if size == 0:
                    return
        left = message.length
        while left:
            data = await reader.read(min(left, CHUNK_BYTES))
            if not data:
                raise Broken
            left -= len(data)
            yield data
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as e:
        raise Broken from e


def reset(writer):
    """RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
    writer.transport.abort()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def what(message: Message) -> str:
    """A request in words: the method, and what of S3 it is."""
    method, target = message.start.split(" ")[:2]
    query = target.partition("?")[2]
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort"}.get(method, "parts")
    return "create-upload" if re.search(r"(^|&)uploads", query) else "list" if "list-type" in query else method.lower()


class Proxy:
    def __init__(self, target, seed: int):
        self.target = target
        self.random = random.Random(seed)
        self.rate, self.kinds, self.delay, self.delayed = 0.0, [], 0.0, None
        self.away = None  # or a kind that every request meets
        self.requests, self.bytes, self.injected, self.by_request = 0, 0, {}, {}
        self.server, self.port, self.clients = None, 0, set()
        self.met = {}  # request line -> the faults that it met in a row

    # ---- settings and counts ---------------------------------------------------------------------

    async def settings(self, change: dict) -> dict:
        self.rate = change.get("rate", self.rate)
        self.kinds = change.get("kinds", self.kinds)
        self.delay = change.get("delay_ms", self.delay * 1000) / 1000
        self.delayed = change.get("delayed", self.delayed)  # a method; None: all
        if "seed" in change:
            self.random = random.Random(change["seed"])
        if "away" in change:
            self.away = change["away"]
            if self.away == "refused":
                self.shut()
            elif not self.server:
                await self.listen(self.port)
        return {"port": self.port, "requests": self.requests, "bytes": self.bytes, "injected": self.injected}

    async def listen(self, port: int):
        for _ in range(100):
            try:
                self.server = await asyncio.start_server(
                    self.client, "127.0.0.1", port, limit=HEAD_BYTES_MAX, backlog=1024
                )
                break
            except OSError:
                await asyncio.sleep(0.02)
        self.port = self.server.sockets[0].getsockname()[1]

    def shut(self):
        """From now on connections are refused."""
        if self.server:
            self.server.close()
            self.server = None
        for writer in list(self.clients):
            reset(writer)

    async def refuse_for_a_moment(self):
        if self.server:
            self.shut()
            await asyncio.sleep(REFUSED_SECONDS)
            if self.away != "refused" and not self.server:
                await self.listen(self.port)

    # ---- one request -----------------------------------------------------------------------------

    def draw(self, request: Message):
        if self.away:
            return self.away
        if self.random.random() >= self.rate or not self.kinds:
            return None
        kind = self.random.choice(self.kinds)
        has_body = request.length > 0
        if kind in ("reset-request", "flip-request") and not has_body:
            return None
        if kind == "flip-request" and what(request) not in ("put", "part"):
            return None  # XML of ours has no checksum; a bit in it makes it another request
        return kind

    def draw_for(self, request: Message):
        """The same, but for a request that met enough."""
        kind, asked = self.draw(request), request.start
        if not kind or self.away:
            self.met.pop(asked, None)
            return kind
        met = self.met[asked] = self.met.get(asked, []) + [kind]
        stalls = sum(k in ("stall", "stall-reply") for k in met)
        if stalls > STALLS_IN_A_ROW_MAX or len(met) > FAULTS_IN_A_ROW_MAX:
            del self.met[asked]
            return None
        return kind

    def count(self, kind: str, request: Message):
        self.injected[kind] = self.injected.get(kind, 0) + 1
        name = f"{kind} of {what(request)}"
        self.by_request[name] = self.by_request.get(name, 0) + 1

    async def client(self, reader, writer):
        upstream = None
        self.clients.add(writer)
        try:
            while True:
                request = Message(await read_head(reader))
                if self.delay and self.delayed in (None, request.start.split()[0]):
                    await asyncio.sleep(self.delay)
                upstream = await self.exchange(request, reader, writer, upstream)
        except (Broken, OSError):
            pass
        finally:
            self.clients.discard(writer)
            writer.close()
            if upstream:
                upstream[1].close()

    async def exchange(self, request: Message, reader, writer, upstream):
        self.requests += 1
        kind = self.draw_for(request)
        if kind == "refused":
            self.count(kind, request)
            asyncio.get_running_loop().create_task(self.refuse_for_a_moment())
            raise Broken
        if kind == "stall":
            self.count(kind, request)
            await asyncio.sleep(STALL_SECONDS)
            raise Broken
        if request.get("expect"):
            request.without("expect")
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind in CODES and kind != "500-applied":
            async for _ in pieces(reader, request):
                pass
            self.count(kind, request)
            await self.refuse(kind, request, writer)
            return upstream
        upstream = await self.send(request, kind, reader, writer, upstream)
        return await self.reply(request, kind, writer, upstream)

    async def refuse(self, kind: str, request: Message, writer):
        status, code, after = CODES[kind]
        body = f"<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>fault {kind}</Message></Error>".encode()
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        if after:
            head += f"Retry-After: {after}\r\n"
        bare = request.start.startswith("HEAD ")
        writer.write(head.encode() + b"\r\n" + (b"" if bare else body))
        await writer.drain()

    async def send(self, request: Message, kind, reader, writer, upstream):
        """The request to the server, damaged as `kind` says; the connection on which the reply comes."""
        for _ in range(2):
            fresh = upstream is None
            if fresh:
                upstream = await asyncio.open_connection(*self.target, limit=HEAD_BYTES_MAX)
            elif upstream[0].at_eof():
                upstream[1].close()
                upstream = None
                continue
            break
        out = upstream[1]
        out.write(request.encode())
        at = self.random.randrange(request.length) if request.length else 0
        done = 0
        async for piece in pieces(reader, request):
            self.bytes += len(piece)
            if kind == "reset-request" and done + len(piece) > at:
                self.count(kind, request)
                out.write(piece[: at - done])
                out.transport.abort()
                reset(writer)
                raise Broken
            if kind == "flip-request" and done <= at < done + len(piece) and not request.chunked:
                self.count(kind, request)
                piece = flipped(piece, at - done)
            done += len(piece)
            out.write(piece)
            await out.drain()
        await out.drain()
        return upstream

    async def reply(self, request: Message, kind, writer, upstream):
        head = await read_head(upstream[0])
        bare = request.start.startswith("HEAD ")
        status = head[9:12]
        reply = Message(head, no_body=bare or status in (b"204", b"304") or status.startswith(b"1"))
        if kind in ("lost", "500-applied"):
            async for _ in pieces(upstream[0], reply):
                pass
            self.count(kind, request)
            if kind == "500-applied":
                await self.refuse(kind, request, writer)
                return upstream
            reset(writer)
            raise Broken
        damage = kind if reply.length > 1 and not reply.chunked else None
        is_object = what(request) == "get" and status in (b"200", b"206")
        if damage == "flip-reply" and not is_object:
            damage = None
        at = self.random.randrange(1, reply.length) if damage else 0
        if damage == "short":
            reply.headers = [(n, str(at) if n.lower() == "content-length" else v) for n, v in reply.headers]
        writer.write(reply.encode())
        done = 0
        async for piece in pieces(upstream[0], reply):
            self.bytes += len(piece)
            if damage and done + len(piece) > at:
                if damage in ("reset-reply", "stall-reply", "truncated", "short", "flip-reply"):
                    self.count(damage, request)
                if damage == "flip-reply":
                    piece = flipped(piece, at - done)
                    damage = None
                elif damage in ("reset-reply", "stall-reply", "truncated", "short"):
                    writer.write(piece[: at - done])
                    await writer.drain()
                    if damage == "stall-reply":
                        await asyncio.sleep(STALL_SECONDS)
                    if damage == "reset-reply":
                        reset(writer)
                    upstream[1].transport.abort()
                    raise Broken
            done += len(piece)
            writer.write(piece)
            await writer.drain()
        await writer.drain()
        if (reply.get("connection") or "").lower() == "close" or (request.get("connection") or "").lower() == "close":
            raise Broken
        return upstream


async def run(args):
    host, port = args.target.rsplit(":", 1)
    proxy = Proxy((host, int(port)), args.seed)
    kinds = list(KINDS) if args.kinds == "all" else [k for k in args.kinds.split(",") if k]
    await proxy.settings({"rate": args.rate, "kinds": kinds, "delay_ms": args.delay_ms})
    await proxy.listen(args.listen)
    print(json.dumps({"port": proxy.port}), flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(await proxy.settings(json.loads(line)) | {"by_request": proxy.by_request}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="HOST:PORT of the server")
    parser.add_argument("--listen", type=int, default=0, help="port, 0 for any")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="the part of requests that fail")
    parser.add_argument("--kinds", default="all", help=f"of {' '.join(KINDS)}")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="added to each request")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
