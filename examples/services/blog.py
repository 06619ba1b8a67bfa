import json
from http.server import BaseHTTPRequestHandler, HTTPServer

posts = ["first"]
methods = {"list": lambda: posts, "post": lambda title: posts.append(title) or len(posts)}

class Rpc(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {"jsonrpc": "2.0", "id": asked["id"]}
        try:
            answer["result"] = methods[asked["method"]](*asked.get("params", []))
        except KeyError:
            answer["error"] = {"code": -32601, "message": "no such method"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

HTTPServer(("127.0.0.1", 9000), Rpc).serve_forever()
