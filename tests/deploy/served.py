"""A small server that answers as OpenAI-compatible ones do."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer


@contextmanager
def server(answer, status=200):
    """A server that answers with `answer(prompt, body)`; yields its address and what came."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._send({"data": [{"id": "a-model"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            came.append(body | {"key": self.headers.get("Authorization")})
            self._send(answer(body["prompt"], body) if status == 200 else {"error": "no"}, status)

        def _send(self, content, code=200):
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", came
        finally:
            http.shutdown()
            thread.join()
