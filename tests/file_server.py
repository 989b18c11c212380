"""A web server on this machine that serves one file, and misbehaves as it is told."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TRUE_LENGTH = object()


class FileServer(ThreadingHTTPServer):
    """Serves ``content`` at every address, behind a redirect at those that start with ``/moved``.

    Attributes:
        headers: Sent with every answer.
        announced: Content-Length, where it is not the true one; None sends none at all.
        cut: Bytes of the body after which the connection is cut.
        pages: HTML by the start of the path, served instead of the file.
        gate: Where it is given, half of the body waits for it.
        status: Of every answer, where it is not the right one.
        range: Content-Range, where it is not the right one.
        ranges: The range that each request asked for, or None.
    """

    daemon_threads = True

    def __init__(self, content):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.headers = content, {'ETag': '"first"'}
        self.announced = TRUE_LENGTH
        self.cut = self.gate = self.status = self.range = None
        self.pages, self.ranges = {}, []

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/some/file.pth'

    def handle_error(self, request, client_address):
        """Say nothing: clients here go away as they like."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, start = self.server, 0
        if self.path.startswith('/moved'):
            self.send_response(302)
            self.send_header('Location', server.url)
            self.end_headers()
            return
        for path, page in server.pages.items():
            if self.path.startswith(path):
                self.send_response(200)
                self.send_header('Content-Type', 'text/html')
                self.end_headers()
                self.wfile.write(page.encode())
                return
        asked = self.headers.get('Range')
        server.ranges.append(asked)
        total = len(server.content)
        is_same = self.headers.get('If-Range') in server.headers.values()
        if asked and is_same and server.status != 200:
            start = int(asked.removeprefix('bytes=').rstrip('-'))
        self.send_response(server.status or (206 if start else 200))
        if start:
            self.send_header('Content-Range', server.range or f'bytes {start}-{total - 1}/{total}')
        body = server.content[start:]
        length = len(body) if server.announced is TRUE_LENGTH else server.announced
        for name, value in server.headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header('Content-Length', str(length))
        self.end_headers()
        body = body if server.cut is None else body[: server.cut]
        half = len(body) // 2
        self.wfile.write(body[:half])
        if server.gate is not None:
            self.wfile.flush()
            server.gate.wait(60)
        self.wfile.write(body[half:])


@contextmanager
def serve(content):
    """Run a server while the block runs."""
    with FileServer(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
