#!/usr/bin/env python3
"""An S3 server that keeps small objects, and of large ones only checksums: for saves larger than a test's disk.

    sums_server.py [--listen PORT]

Owns just what trialfs asks of S3: conditional PUT and DELETE, uploads by parts, LIST, ranged GET of what is
kept. It checks no signature and offers no copy. Of an object it knows the length and CRC32 of each part.
Like the fault proxy it says its port on the first line of standard output, and answers each line of JSON on
standard input: {"fill": ["prefix/", 100000]} makes small objects, {"put": [key, body, metadata, size]} one
that may be larger than its body, {"sums": "key"} tells an object's parts.
"""

import argparse
import asyncio
import bisect
import json
import sys
import urllib.parse
import zlib

from fault_proxy import HEAD_BYTES_MAX, Broken, Message, pieces, read_head

KEPT_BYTES_MAX = 1 << 20  # larger ones are only summed
DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
MODIFIED = "2026-10-21T07:28:00.000Z"


class Object:
    def __init__(self, size: int, sums: list, body, etag: str, metadata: dict):
        self.size, self.sums, self.body, self.etag, self.metadata = size, sums, body, etag, metadata


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Store:
    def __init__(self):
        self.objects: dict[str, Object] = {}
        self.keys: list[str] = []  # sorted
        self.uploads: dict[str, tuple[str, dict, dict]] = {}
        self.count = 0

    def etag(self) -> str:
        self.count += 1
        return f"{self.count:032x}"

    def put(self, key: str, item: Object):
        if key not in self.objects:
            bisect.insort(self.keys, key)
        self.objects[key] = item

    def remove(self, key: str):
        if self.objects.pop(key, None):
            del self.keys[bisect.bisect_left(self.keys, key)]

    def fill(self, prefix: str, count: int):
        for i in range(count):
            key = f"{prefix}{i:08d}"
            self.objects[key] = Object(1, [], b"x", self.etag(), {})
        self.keys = sorted(self.objects)

    def refused(self, key: str, request: Message):
        """Whether a condition does not hold."""
        have = self.objects.get(key)
        if request.get("if-none-match") and have:
            return True
        want = request.get("if-match")
        return bool(want) and (have is None or want.strip('"') != have.etag)

    def list(self, query: dict) -> str:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = int(query.get("max-keys", 1000))
        at = bisect.bisect_left(self.keys, max(prefix, query.get("continuation-token", "")))
        out, found, next_key = [], 0, None
        while at < len(self.keys) and self.keys[at].startswith(prefix):
            key = self.keys[at]
            if found == most:
                next_key = key
                break
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                common = prefix + rest[: rest.index(delimiter) + 1]
                out.append(f"<CommonPrefixes><Prefix>{urllib.parse.quote(common)}</Prefix></CommonPrefixes>")
                at = bisect.bisect_left(self.keys, common[:-1] + chr(ord(common[-1]) + 1), at)
            else:
                item = self.objects[key]
                out.append(f"<Contents><Key>{urllib.parse.quote(key)}</Key><LastModified>{MODIFIED}</LastModified>"
                           f"<ETag>&quot;{item.etag}&quot;</ETag><Size>{item.size}</Size></Contents>")  # fmt: skip
                at += 1
            found += 1
        more = f"<NextContinuationToken>{escaped(next_key)}</NextContinuationToken>" if next_key else ""
        return (f'<?xml version="1.0"?><ListBucketResult><EncodingType>url</EncodingType>'
                f"<IsTruncated>{'true' if next_key else 'false'}</IsTruncated>{more}{''.join(out)}"
                f"</ListBucketResult>")  # fmt: skip

    # ---- requests ----------------------------------------------------------------------------------

    async def client(self, reader, writer):
        try:
            while True:
                request = Message(await read_head(reader))
                size, crc, kept = 0, 0, []
                async for piece in pieces(reader, request):
                    size += len(piece)
                    crc = zlib.crc32(piece, crc)
                    if size <= KEPT_BYTES_MAX:
                        kept.append(piece)
                body = b"".join(kept) if size <= KEPT_BYTES_MAX else None
                writer.write(self.answer(request, size, crc, body))
                await writer.drain()
        except (Broken, OSError):
            pass
        finally:
            writer.close()

    def answer(self, request: Message, size: int, crc: int, body) -> bytes:
        method, target, _ = request.start.split(" ")
        path, _, query = target.partition("?")
        query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        key = urllib.parse.unquote(path).split("/", 2)[2] if path.count("/") > 1 else ""
        metadata = {n.lower(): v for n, v in request.headers if n.lower().startswith("x-amz-meta-")}
        if request.get("x-amz-copy-source"):
            return self.say(501, error("NotImplemented"))
        if method == "GET" and "list-type" in query:
            return self.say(200, self.list(query).encode())
        if "uploads" in query:
            upload = self.etag()
            self.uploads[upload] = (key, metadata, {})
            return self.say(200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode())
        if "uploadId" in query:
            return self.upload(method, key, query, request, size, crc)
        if method in ("GET", "HEAD"):
            return self.get(method, key, request)
        if self.refused(key, request):
            return self.say(412, error("PreconditionFailed"))
        if method == "DELETE":
            self.remove(key)
            return self.say(204, b"")
        etag = self.etag()
        self.put(key, Object(size, [(size, crc)], body, etag, metadata))
        return self.say(200, b"", {"etag": f'"{etag}"'})

    def upload(self, method, key, query, request, size, crc) -> bytes:
        upload = self.uploads.get(query["uploadId"])
        if upload is None:
            return self.say(404, error("NoSuchUpload"))
        _, metadata, parts = upload
        if method == "PUT":
            etag = self.etag()
            parts[int(query["partNumber"])] = (size, crc)
            return self.say(200, b"", {"etag": f'"{etag}"'})
        if method == "DELETE":
            del self.uploads[query["uploadId"]]
            return self.say(204, b"")
        if self.refused(key, request):
            return self.say(412, error("PreconditionFailed"))
        del self.uploads[query["uploadId"]]
        sums = [parts[n] for n in sorted(parts)]
        etag = self.etag() + f"-{len(sums)}"
        self.put(key, Object(sum(s for s, _ in sums), sums, None, etag, metadata))
        return self.say(200, f'<CompleteMultipartUploadResult><ETag>"{etag}"</ETag></CompleteMultipartUploadResult>'.encode())

    def get(self, method: str, key: str, request: Message) -> bytes:
        item = self.objects.get(key)
        if item is None:
            return self.say(404, error("NoSuchKey"), bare=method == "HEAD")
        if self.refused(key, request):
            return self.say(412, error("PreconditionFailed"), bare=method == "HEAD")
        head = {"etag": f'"{item.etag}"', "last-modified": DATE, **item.metadata}
        if method == "HEAD":
            return self.say(200, b"", head, bare=True, length=item.size)
        if item.body is None:
            return self.say(500, error("InternalError"))
        span = request.get("range")
        if not span:
            return self.say(200, item.body, head)
        first, last = span.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last), item.size - 1)
        if first >= item.size:
            return self.say(416, error("InvalidRange"))
        head["content-range"] = f"bytes {first}-{last}/{item.size}"
        # Of an object that is larger than what was put, the rest is blanks.
        return self.say(206, item.body[first : last + 1].ljust(last + 1 - first), head)

    def say(self, status: int, body: bytes, headers=None, bare=False, length=None) -> bytes:
        head = {"content-length": len(body) if length is None else length, **(headers or {})}
        if status == 204:
            del head["content-length"]
        lines = "".join(f"{n}: {v}\r\n" for n, v in head.items())
        return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + (b"" if bare else body)

    def told(self, command: dict) -> dict:
        if "fill" in command:
            self.fill(*command["fill"])
        if "put" in command:  # [key, body, metadata, the size that it claims]
            key, body, metadata, size = command["put"]
            body = body.encode()
            self.put(key, Object(len(body) if size is None else size, [], body, self.etag(), metadata))
        if "sums" in command:
            item = self.objects.get(command["sums"])
            return {"sums": item and item.sums, "size": item and item.size}
        return {"objects": len(self.objects)}


def error(code: str) -> bytes:
    return f"<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>sums server</Message></Error>".encode()


async def run(port: int):
    store = Store()
    server = await asyncio.start_server(store.client, "127.0.0.1", port, limit=HEAD_BYTES_MAX, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    commands = asyncio.StreamReader(limit=1 << 30)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(store.told(json.loads(line))), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=int, default=0, help="port, 0 for any")
    asyncio.run(run(parser.parse_args().listen))
