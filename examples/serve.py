"""Serve a checkpoint over HTTP: `python examples/serve.py FOLDER`.

FOLDER is a pruned or dense checkpoint. Send a prompt to the server with `curl -d "The old tree"
http://127.0.0.1:8000`. The server answers with the prompt and its continuation.
"""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from transformers import AutoTokenizer, pipeline

import flap


def served(checkpoint: str, port: int) -> HTTPServer:
    writer = pipeline(
        "text-generation",
        flap.load(checkpoint),
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
    )

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            prompt = self.rfile.read(int(self.headers["Content-Length"]))
            text = writer(prompt.decode(), max_new_tokens=32, do_sample=False)[0]["generated_text"]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    served(sys.argv[1], 8000).serve_forever()
