"""A web server on this machine whose behaviour a test sets; for downloads without a network."""

import contextlib
import http.server
import re
import threading


class FileServer:
    """Serves `files` (name -> bytes) below `url`, and records the Range header of every request in `asked`.

    Attributes:
        ranges: answer requests for the rest of a file with the rest.
        cut_after: close each connection after this many bytes of content.
        chunked: send no Content-Length.
        kind: content type of the answers.
        hold: wait for this event before the last byte of content.
    """

    def __init__(self):
        self.files = {}
        self.asked = []
        self.ranges = True
        self.cut_after = None
        self.chunked = False
        self.kind = "application/octet-stream"
        self.hold = None


def answer(server, request):
    name = request.path.lstrip("/")
    wanted = request.headers.get("Range")
    server.asked.append(wanted)
    if name.startswith("moved/"):
        request.send_response(302)
        request.send_header("Location", f"{server.url}/{name.removeprefix('moved/')}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    if name not in server.files:
        request.send_error(404, "Not Found", "no such file")
        return
    content = server.files[name]
    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
    if start and start >= len(content):
        request.send_error(416)
        return
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Type", server.kind)
    if not server.chunked:
        request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    rest = content[start:][: server.cut_after]
    with contextlib.suppress(OSError):  # the client may close the connection
        request.wfile.write(rest[:-1])
        request.wfile.flush()
        if server.hold is not None:
            server.hold.wait(30)
        request.wfile.write(rest[-1:])


@contextlib.contextmanager
def serving():
    """Run a FileServer while the block runs."""
    server = FileServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(server, self)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            if server.hold is not None:
                server.hold.set()
            listener.shutdown()
            thread.join()
