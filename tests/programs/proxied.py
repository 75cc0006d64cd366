"""A mount whose server is behind a fault proxy (scripts/fault_proxy.py): faults, absence, distance.

Owns the proxy's process. Does not own what must hold (faults.py).
"""

import json
import subprocess
import sys
import threading

from support import ROOT, Mount, s3, servers

PROXY = ROOT / "scripts" / "fault_proxy.py"


class FaultProxy:
    """One proxy before the S3 server; `set` changes it and gives its counts."""

    def __init__(self, seed: int = 1, delay_ms: float = 0):
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, PROXY, s3().endpoint.removeprefix("http://"), "--seed", str(seed),
             "--delay-ms", str(delay_ms)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=servers.die_with_parent(),
        )  # fmt: skip
        self.endpoint = f"http://127.0.0.1:{json.loads(self.process.stdout.readline())['port']}"

    def set(self, **change) -> dict:
        with self.lock:
            self.process.stdin.write(json.dumps(change) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def faults(self) -> int:
        return sum(self.set()["injected"].values())

    def close(self):
        self.process.kill()
        self.process.wait()


class ProxiedMount(Mount):
    def __init__(self, prefix: str, *flags: str, seed: int = 1, delay_ms: float = 0, name: str = "a", **more):
        self.proxy = FaultProxy(seed, delay_ms)
        try:
            super().__init__(prefix, *flags, name=name, **more)
        except BaseException:
            self.proxy.close()
            raise

    def argv(self, *extra):
        return [self.proxy.endpoint if a == s3().endpoint else a for a in super().argv(*extra)]

    def clear(self):
        super().clear()
        self.proxy.close()
