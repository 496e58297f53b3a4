#!/usr/bin/env python3
"""Says who may come in, over HTTP: a back end for chinwag's authenticator of kind "http".

    auth.py [--port 9000] [--bearer-file FILE] users.json

docs/callouts.md describes what is asked and answered. Nothing but the standard library is needed.
Serve it with a certificate, or on the same machine as here: passwords come in.
"""

import argparse
import hashlib
import hmac
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LONGEST_QUESTION = 64 * 1024


def scrypt(password, salt):
    return hashlib.scrypt(password.encode(), salt=salt, n=16384, r=8, p=1, dklen=32)


def judge(users, question):
    """The verdict on one log-in."""
    name, password = question.get("user"), question.get("password")
    if name is None or password is None:
        return {"verdict": "abstain"}  # a token: somebody else may know it
    user = users.get(name)
    # An unknown user takes as long as a wrong password.
    known = user or {"salt": "00" * 16, "hash": "00" * 32}
    right = hmac.compare_digest(scrypt(password, bytes.fromhex(known["salt"])), bytes.fromhex(known["hash"]))
    if user is None:
        return {"verdict": "abstain"}
    if not right:
        return {"verdict": "deny", "reason": "wrong password"}
    if user.get("suspended"):
        return {"verdict": "deny", "reason": "suspended", "public": "Your account is suspended."}
    answer = {"verdict": "allow", "user": name, "roles": user.get("roles", [])}
    if "rooms" in user:
        answer["rooms"] = user["rooms"]
    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    timeout = 60  # seconds; those without a question are closed
    users, bearer = {}, None

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length > LONGEST_QUESTION:
            self.close_connection = True
            return self.answer(413, {})
        body = self.rfile.read(length)
        offered = self.headers.get("Authorization", "").encode()
        if self.bearer and not hmac.compare_digest(offered, b"Bearer " + self.bearer):
            return self.answer(401, {})
        try:
            question = json.loads(body)
            if question["v"] != 1 or question["type"] != "authenticate":
                raise ValueError
        except (ValueError, KeyError, TypeError):
            return self.answer(400, {})
        self.answer(200, judge(self.users, question))

    def answer(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    parser = argparse.ArgumentParser(description="A back end for chinwag's authenticator of kind http.")
    parser.add_argument("users", help="a JSON file: name -> salt, hash, roles, rooms, suspended")
    parser.add_argument("--port", type=int, default=9000, help="on 127.0.0.1; 0: any that is free")
    parser.add_argument("--bearer-file", help="what chinwag has to know")
    arguments = parser.parse_args()
    with open(arguments.users, encoding="utf-8") as file:
        Handler.users = json.load(file)
    if arguments.bearer_file:
        with open(arguments.bearer_file, "rb") as file:
            Handler.bearer = file.read().strip()
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
