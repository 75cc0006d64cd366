#!/usr/bin/env python3
"""Who a mount says it is, and to whom: profiles, credentials that live moments, roles of the machine and the
container, roles that a token service and a login portal lend, a store behind a certificate of one's own."""

import datetime
import hashlib
import http.server
import json
import os
import re
import socket
import ssl
import threading
import time
import urllib.parse

from support import TRIALFS, Mount, eventually, is_mounted, main, run, s3, scratch, servers, unique, work

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


ROLE = "arn:aws:iam::123456789012:role/trials"


class Lender(http.server.BaseHTTPRequestHandler):
    """AWS's token service (STS), login portal (SSO) and its token endpoint, in the forms that AWS documents. What it
    lends lives moments. It lends to those alone who show what it `wants` of their kind."""

    reader = False  # lends a role that may only read
    wants: dict[str, str] = {}
    lent: list[str] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        if self.path == "/token":
            asked = json.loads(body)
            right = (asked["grantType"], asked["refreshToken"]) == ("refresh_token", "login's")
            answer = {"accessToken": "fresh", "tokenType": "Bearer", "expiresIn": 3600, "refreshToken": "login's"}
            return self.say(200 if right else 400, json.dumps(answer if right else {"error": "invalid_grant"}))
        asked = {name: values[0] for name, values in urllib.parse.parse_qs(body).items()}
        action = asked["Action"]
        if action == "AssumeRole":  # signed by who wants the role
            shown = self.headers["authorization"].split("Credential=")[1].split("/")[0]
        else:
            shown = asked["WebIdentityToken"]
        if (shown, asked["RoleArn"]) != (self.wants[action], ROLE):
            return self.say(403, "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>")
        key, secret = self.lend(action)
        self.say(
            200,
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
            f"<AssumedRoleUser><Arn>{ROLE}</Arn><AssumedRoleId>AROA:trials</AssumedRoleId></AssumedRoleUser>"
            f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
            f"<SessionToken></SessionToken><Expiration>{ends()}</Expiration></Credentials></{action}Result>"
            f"<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{action}Response>",
        )

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        asked = urllib.parse.parse_qs(url.query)
        right = url.path == "/federation/credentials" and asked["role_name"] == ["trials"]
        if not right or self.headers["x-amz-sso_bearer_token"] != self.wants["portal"]:
            return self.say(401, json.dumps({"message": "Session token not found or invalid"}))
        key, secret = self.lend("portal")
        at = int((time.time() + LIFE_SECONDS) * 1000)
        role = {"accessKeyId": key, "secretAccessKey": secret, "sessionToken": "", "expiration": at}
        self.say(200, json.dumps({"roleCredentials": role}))

    def lend(self, kind: str) -> tuple[str, str]:
        self.lent.append(kind)
        reader = (servers.READ_ONLY_KEY, servers.READ_ONLY_SECRET)
        return reader if Lender.reader else (s3().key, s3().secret)

    def say(self, code: int, body: str):
        self.send_response(code)
        self.send_header("content-type", "application/json" if body[0] == "{" else "text/xml")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def test_roles_that_are_lent_are_renewed_while_the_mount_lives():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"

    # A pod: a token in a file, which the cluster writes anew.
    token = scratch("pod") / "token"
    token.write_text("first")
    pod = {**home("pod"), "AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ENDPOINT_URL_STS": at}

    # A profile that takes another's keys to a role.
    chained = f"[profile p]\nrole_arn={ROLE}\nsource_profile=source\nservices=local\n"
    chained += f"[services local]\nsts =\n  endpoint_url = {at}\n"
    role = home("role", chained, "[source]\naws_access_key_id=AKIASOURCE\naws_secret_access_key=x\n")

    # Someone who logged in by `aws sso login`, whose login is about to run out and can be renewed.
    login = f"[profile p]\nsso_session=ours\nsso_account_id=123456789012\nsso_role_name=trials\n"
    login += "[sso-session ours]\nsso_region=us-east-1\nsso_start_url=https://login/start\n"
    cached = scratch("login") / ".aws" / "sso" / "cache" / f"{hashlib.sha1(b'ours').hexdigest()}.json"
    cached.parent.mkdir(parents=True)
    registered = {"clientId": "c", "clientSecret": "s", "registrationExpiresAt": "2100-01-01T00:00:00Z"}
    token_of = {"accessToken": "stale", "expiresAt": ends(), "refreshToken": "login's", "region": "us-east-1"}
    cached.write_text(json.dumps({**registered, **token_of, "startUrl": "https://login/start"}))
    portal = {"HOME": str(scratch("login")), "AWS_ENDPOINT_URL_SSO": at, "AWS_ENDPOINT_URL_SSO_OIDC": at}

    Lender.wants = {"AssumeRoleWithWebIdentity": "first", "AssumeRole": "AKIASOURCE", "portal": "fresh"}
    here = {
        "AssumeRoleWithWebIdentity": Mount(unique("pod"), env=pod),
        "AssumeRole": Mount(unique("role"), "--profile", "p", env=role),
        "portal": Mount(unique("login"), env={**home("login", login), **portal, "AWS_PROFILE": "p"}),
    }
    for mount in here.values():
        (mount.path / "first").write_bytes(b"x")
        assert s3().get(f"{mount.prefix}/first") == b"x"
    assert json.loads(cached.read_text())["accessToken"] == "fresh", "what `aws` would use next"
    token.write_text("second")
    Lender.wants["AssumeRoleWithWebIdentity"] = "second"

    def may_create(mount: Mount) -> bool:  # one conditional PUT at once
        try:
            os.close(os.open(mount.path / f"f{time.monotonic_ns()}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return True
        except OSError:
            return False

    # What is lent next may only read; what follows may write again. So each is really signed with.
    for Lender.reader in (True, False):
        for kind, mount in here.items():
            what = f"{kind}: the next role {'only reads' if Lender.reader else 'writes'}"
            eventually(what, lambda: may_create(mount) != Lender.reader, 3 * LIFE_SECONDS, 0.5)
    for kind, mount in here.items():
        assert Lender.lent.count(kind) >= 3, Lender.lent
        works(mount)
    assert len(Lender.lent) < 40, f"{Lender.lent}: asked for at every request"
    server.shutdown()


def tls_before(endpoint: str, certificate, key, seen=lambda data: None) -> int:
    """A port on which TLS is spoken for the store, and what clients send is `seen`; ends with this process."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = endpoint.removeprefix("http://").split(":")

    def pump(source, to, seen=lambda data: None):
        try:
            while data := source.recv(1 << 16):
                seen(data)
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
        pump(client, store, seen)

    def accept():
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def certified(name: str):
    """A directory with a CA of one's own (`ca.pem`) and a certificate of it for this machine (`pem`, `key`)."""
    at = scratch(name)

    def openssl(*argv):
        run("openssl", *argv, cwd=at)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ours")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "csr", "-subj", "/CN=store")
    (at / "ext").write_text("subjectAltName=IP:127.0.0.1")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext", "-out", "pem")
    openssl("x509", "-req", "-in", "csr", *signed)
    return at


class Federation(http.server.BaseHTTPRequestHandler):
    """Google's token service, which exchanges the token of another identity provider."""

    granted: list[str] = []  # the provider's tokens for which one was given, in order

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:token-exchange"], form
        self.granted.append(form["subject_token"][0])
        token = {"access_token": f"granted-{len(self.granted)}", "token_type": "Bearer", "expires_in": LIFE_SECONDS}
        body = json.dumps(token).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_federated_identity_is_exchanged_for_googles_again_and_again():
    at = certified("federated")
    with servers.Servers(scratch("federated") / "servers", ["fake-gcs"]) as emulator:
        store, bucket = emulator.env["TRIALFS_TEST_GCS"].rsplit("/", 1)
        bearers: set[bytes] = set()
        port = tls_before(store, at / "pem", at / "key", lambda data: bearers.update(re.findall(rb"Bearer (\S+)", data)))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Federation)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (at / "token").write_text("first")
        (at / "adc.json").write_text(json.dumps({
            "type": "external_account", "audience": "//iam.googleapis.com/pools/p/providers/k",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"http://127.0.0.1:{server.server_port}/v1/token",
            "credential_source": {"file": str(at / "token")},
        }))  # fmt: skip
        flags = ("--endpoint", f"https://127.0.0.1:{port}", "--ca-bundle", str(at / "ca.pem"))
        env = {"GOOGLE_APPLICATION_CREDENTIALS": str(at / "adc.json")}
        here = Mount("federated", *flags, url=f"gs://{bucket}/federated", env=env)
        (here.path / "f").write_bytes(b"f")
        (at / "token").write_text("second")  # as the cluster writes it anew

        def renewed():
            (here.path / f"f{time.monotonic_ns()}").write_bytes(b"x")
            return b"granted-2" in bearers

        eventually("the next token is used", renewed, 3 * LIFE_SECONDS, 0.5)
        assert Federation.granted == ["first", "second"] and b"granted-1" in bearers, (Federation.granted, bearers)
        here.stop()
        server.shutdown()


def test_a_certificate_of_ones_own_is_trusted_by_flag_and_by_variable_and_not_otherwise():
    at = certified("tls")
    endpoint = ("--endpoint", f"https://127.0.0.1:{tls_before(s3().endpoint, at / 'pem', at / 'key')}")
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
