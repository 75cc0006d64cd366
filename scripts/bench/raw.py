"""The raw client: what a store gives to threads that ask it directly, with nothing in between.

Owns S3's requests signed by hand over kept-alive connections, one for each thread, with bodies
unsigned, as a good client sends them. Does not own what is compared with it.
"""

import datetime
import hashlib
import hmac
import http.client
import re
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

UNSIGNED = "UNSIGNED-PAYLOAD"
PART = 8 << 20
ANSWER_SECONDS_MAX = 120


class Refused(Exception):
    pass


class Client:
    def __init__(self, endpoint: str, bucket: str, key: str, secret: str):
        self.host = urllib.parse.urlparse(endpoint).netloc
        self.bucket, self.key, self.secret = bucket, key, secret
        self.local = threading.local()

    def _signature(self, method: str, path: str, query: str, headers: dict[str, str]) -> str:
        stamp, names = headers["x-amz-date"], ";".join(sorted(headers))
        lines = "".join(f"{k}:{headers[k]}\n" for k in sorted(headers))
        request = "\n".join([method, path, query, lines, names, UNSIGNED])
        scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        key = b"AWS4" + self.secret.encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, digest])
        sign = hmac.new(key, text.encode(), "sha256").hexdigest()
        return f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={sign}"

    def ask(self, method: str, key: str = "", query=None, body=b"", headers=None, into=None):
        """One request. Its answer's body and headers; with `into` the body is read there, piece
        over piece, and its length is returned in its place."""
        path = f"/{self.bucket}" + (f"/{urllib.parse.quote(key, safe='/-_.~')}" if key else "")
        quote = lambda text: urllib.parse.quote(str(text), safe="-_.~")
        query = "&".join(f"{quote(k)}={quote(v)}" for k, v in sorted((query or {}).items()))
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        signed = {"host": self.host, "x-amz-date": now, "x-amz-content-sha256": UNSIGNED, **(headers or {})}
        auth = {"authorization": self._signature(method, path, query, signed)}
        for attempt in range(3):
            connection = getattr(self.local, "connection", None)
            if connection is None:
                connection = http.client.HTTPConnection(self.host, timeout=ANSWER_SECONDS_MAX)
                self.local.connection = connection
            try:
                connection.request(method, f"{path}?{query}" if query else path, body, {**signed, **auth})
                answer = connection.getresponse()
                if answer.status >= 300:
                    raise Refused(f"{method} {key}: {answer.status} {answer.read()[:200]!r}")
                if into is None:
                    return answer.read(), answer
                got = 0
                while n := answer.readinto(into):
                    got += n
                return got, answer
            except (OSError, http.client.HTTPException):
                self.local.connection = None
                if attempt == 2:
                    raise

    def put_parts(self, key: str, parts: list, threads: int = 8):
        """A multipart upload."""
        text, _ = self.ask("POST", key, {"uploads": ""})
        upload = re.search(rb"<UploadId>(.*?)</UploadId>", text)[1].decode()

        def part(n):
            _, answer = self.ask("PUT", key, {"partNumber": n + 1, "uploadId": upload}, parts[n])
            return f"<Part><PartNumber>{n + 1}</PartNumber><ETag>{answer.getheader('ETag')}</ETag></Part>"

        with ThreadPoolExecutor(threads) as pool:
            done = "".join(pool.map(part, range(len(parts))))
        text = f"<CompleteMultipartUpload>{done}</CompleteMultipartUpload>"
        self.ask("POST", key, {"uploadId": upload}, text.encode())

    def get_ranges(self, key: str, size: int, threads: int = 8):
        """Ranged GETs of a whole object, in parts of 8 MiB, thrown away."""
        buffers = threading.local()

        def part(start):
            if not hasattr(buffers, "view"):
                buffers.view = memoryview(bytearray(1 << 20))
            end = min(start + PART, size)
            headers = {"range": f"bytes={start}-{end - 1}"}
            got, _ = self.ask("GET", key, headers=headers, into=buffers.view)
            assert got == end - start, (got, start, end)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(0, size, PART)))

    def list(self, prefix: str) -> dict[str, int]:
        """Every key under a prefix, with its size."""
        found, token = {}, None
        while True:
            query = {"list-type": 2, "prefix": prefix, **({"continuation-token": token} if token else {})}
            text = self.ask("GET", query=query)[0].decode()
            for item in text.split("<Contents>")[1:]:
                found[re.search("<Key>(.*?)</Key>", item)[1]] = int(re.search("<Size>(.*?)</Size>", item)[1])
            token = re.search("<NextContinuationToken>(.*?)</NextContinuationToken>", text)
            token = token and token[1]
            if not token:
                return found
