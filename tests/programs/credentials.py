#!/usr/bin/env python3
"""Who a mount says it is, and to whom: profiles, credentials that live moments, roles of the machine and the
container, a store behind a certificate of one's own."""

import datetime
import http.server
import json
import os
import socket
import ssl
import threading
import time

from support import TRIALFS, Mount, eventually, is_mounted, main, run, s3, scratch, unique, work

LIFE_SECONDS = 36


def ends() -> str:
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=LIFE_SECONDS)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def home(name: str, config: str = "", credentials: str = "") -> dict[str, str]:
    """An environment in which the AWS tools would find these files and nothing else."""
    at = scratch(name)
    (at / "config").write_text(config)
    (at / "credentials").write_text(credentials)
    return {
        "AWS_CONFIG_FILE": str(at / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(at / "credentials"),
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def keys(profile: str) -> str:
    return f"[{profile}]\naws_access_key_id={s3().key}\naws_secret_access_key={s3().secret}\n"


def process(name: str) -> tuple[str, "os.PathLike"]:
    """A credential_process whose credentials live moments, and the file in which it notes its runs. While a file
    `hang` is beside it, it does not answer."""
    script, runs = scratch(name) / "process", scratch(name) / "runs"
    script.write_text(
        f"#!/bin/sh\necho run >> {runs}\n[ -e {scratch(name)}/hang ] && exec sleep 60\n"
        f"ends=$(date -u -d '+{LIFE_SECONDS} sec' +%Y-%m-%dT%H:%M:%SZ)\n"
        f'echo \'{{"Version":1,"AccessKeyId":"{s3().key}","SecretAccessKey":"{s3().secret}",'
        "\"Expiration\":\"'$ends'\"}'\n"
    )
    script.chmod(0o755)
    return f"credential_process={script}\n", runs


def works(here: Mount):
    (here.path / "f").write_bytes(b"x")
    assert s3().get(f"{here.prefix}/f") == b"x"
    here.stop()


def test_a_profile_by_flag_comes_before_keys_in_the_environment():
    env = home("flag", credentials=keys("mine"))
    wrong = {"AWS_ACCESS_KEY_ID": "AKIAOFANOTHERSTORE", "AWS_SECRET_ACCESS_KEY": "x"}
    works(Mount(unique("flag"), "--profile", "mine", env={**env, **wrong}))
    works(Mount(unique("variable"), env={**env, "AWS_PROFILE": "mine"}))


def test_a_profile_that_is_not_there_is_named():
    point = work() / "mnt" / "absent"
    point.mkdir(parents=True)
    done = run(
        TRIALFS, "mount", f"s3://{s3().bucket}/absent", point, "--endpoint", s3().endpoint, "--profile", "absent-one",
        "--cache-dir", scratch("absent") / "cache", env={**os.environ, **s3().env, **home("absent")}, ok=(1,),
    )  # fmt: skip
    assert "absent-one" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not is_mounted(point)


def test_credentials_that_live_moments_are_not_asked_for_at_every_request():
    line, runs = process("moments")
    here = Mount(unique("moments"), "--profile", "p", env=home("moments", config=f"[profile p]\n{line}"))
    for i in range(20):
        (here.path / f"f{i}").write_bytes(b"x")
    count = len(runs.read_text().splitlines())
    assert count <= 1 + LIFE_SECONDS // 15, f"{count} questions for {sum(here.requests().values())} requests"
    (scratch("moments") / "hang").touch()  # a source that hangs must hold up one request, not each
    eventually("the next credential is due", lambda: time.time() > runs.stat().st_mtime + LIFE_SECONDS / 2, 60)
    started = time.monotonic()
    for i in range(5):
        (here.path / f"g{i}").write_bytes(b"x")
    spent = time.monotonic() - started
    assert spent < 3 * 8, f"five small files took {spent:.1f} s beside a source that hangs"
    (scratch("moments") / "hang").unlink()
    works(here)


class Metadata(http.server.BaseHTTPRequestHandler):
    """A machine's metadata (version 2) and a container's, in the form that AWS documents."""

    def answer(self):
        found = {"AccessKeyId": s3().key, "SecretAccessKey": s3().secret, "Token": "", "Expiration": ends()}
        path = self.path.split("?")[0]
        if path == "/latest/api/token":
            body = "token"
        elif path.endswith(("/security-credentials/", "/security-credentials-extended/")):
            body = "role"
        else:
            body = json.dumps({"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": ends(), **found})
        self.send_response(200)
        self.send_header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_PUT = answer

    def log_message(self, *_):
        pass


def test_a_machine_and_a_container_lend_their_roles():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    machine = {"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": at}
    works(Mount(unique("machine"), env={**home("machine"), **machine}))
    container = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{at}/container"}
    works(Mount(unique("container"), env={**home("container"), **container}))
    server.shutdown()


def tls_before_the_store(certificate, key) -> int:
    """A port on which TLS is spoken for the store; ends with this process."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = s3().endpoint.removeprefix("http://").split(":")

    def pump(source, to):
        try:
            while data := source.recv(1 << 16):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(client):
        try:
            client = context.wrap_socket(client, server_side=True)
        except OSError:
            return
        store = socket.create_connection((host, int(port)))
        threading.Thread(target=pump, args=(store, client), daemon=True).start()
        pump(client, store)

    def accept():
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def test_a_certificate_of_ones_own_is_trusted_by_flag_and_by_variable_and_not_otherwise():
    at = scratch("tls")

    def openssl(*argv):
        run("openssl", *argv, cwd=at)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ours")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "csr", "-subj", "/CN=store")
    (at / "ext").write_text("subjectAltName=IP:127.0.0.1")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext", "-out", "pem")
    openssl("x509", "-req", "-in", "csr", *signed)
    endpoint = ("--endpoint", f"https://127.0.0.1:{tls_before_the_store(at / 'pem', at / 'key')}")
    none = {"AWS_CA_BUNDLE": "", "SSL_CERT_FILE": ""}
    works(Mount(unique("tls"), *endpoint, "--ca-bundle", str(at / "ca.pem"), env=none))
    for variable in none:
        works(Mount(unique("tls"), *endpoint, env={**none, variable: str(at / "ca.pem")}, name=variable))
    point = work() / "mnt" / "untrusted"
    point.mkdir(parents=True)
    done = run(
        TRIALFS, "mount", f"s3://{s3().bucket}/tls", point, *endpoint, "--cache-dir", at / "cache",
        env={**os.environ, **s3().env, **none}, ok=(1,),
    )  # fmt: skip
    assert "--ca-bundle" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not is_mounted(point)


if __name__ == "__main__":
    main(globals(), needs_mount=True)
