"""A proxy in between that lies, is slow, or is not to be trusted: HTTPS in front of the real external key store proxy."""
import datetime
import http.client
import http.server
import ipaddress
import json
import pathlib
import ssl
import threading
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(directory: pathlib.Path, names: list[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "between")])
    now = datetime.datetime.now(datetime.timezone.utc)
    alternatives = [x509.DNSName(name) for name in names] or [x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False).sign(key, hashes.SHA256()))
    chain, secret = directory / "between.pem", directory / "between.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return chain, secret


class Between:
    """`change(path, status, answer)` may change what the real proxy answered; `before(path)` may wait or answer itself."""

    def __init__(self, directory: pathlib.Path, target: str, ca_file: str, port: int, names: list[str]):
        self.ca_file, key = certificate(directory, names)
        self.target, self.port = target, port
        self.change = lambda path, status, answer: (status, answer)
        self.before = lambda path: None
        self.seen: list[tuple[str, dict]] = []
        context = ssl.create_default_context(cafile=ca_file)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.seen.append((self.path, json.loads(body)))
                status, answer = outer.before(self.path) or (None, None)
                if status is None:
                    host, port = target.removeprefix("https://").split(":")
                    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
                    connection.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        connection.putheader(name, value)
                    connection.endheaders(body)
                    real = connection.getresponse()
                    status, answer = outer.change(self.path, real.status, json.loads(real.read()))
                    connection.close()
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.ca_file, key)
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def honest(self) -> None:
        self.change = lambda path, status, answer: (status, answer)
        self.before = lambda path: None

    def slow(self, seconds: float) -> None:
        self.before = lambda path: time.sleep(seconds)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
