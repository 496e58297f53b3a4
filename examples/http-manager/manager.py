#!/usr/bin/env python3
"""Manages the sessions of a chat, over HTTP: a back end for chinwag's session manager of kind "http".

    manager.py [--port 9001] [--bearer-file FILE] [--seats 2]

Each session gets a team and may enter the lobby and its team's room, where there are seats for so many; whoever is told
to go is put out. On the same port, for an operator on this machine (who has to know the bearer as well):

    GET /sessions               who is there, and in which rooms
    POST /USER/ORDER            steers the session of USER: filter, timeout, send, kick or end, with its fields as JSON

docs/callouts.md describes what is asked, answered and ordered. Nothing but the standard library is needed.
"""

import argparse
import hmac
import json
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LONGEST_MESSAGE = 64 * 1024
TEAMS = ("red", "blue")


class Sessions:
    """What is known of the sessions. Every message may come twice: the second time changes nothing."""

    def __init__(self, seats):
        self.lock = threading.Lock()
        self.seats = seats
        self.live = {}  # session -> {user, team, control, stays: {number: room}}
        self.begun = 0

    def create(self, message):
        if message["user"].lower().startswith("banned"):
            return {"verdict": "refuse", "reason": "Your account is closed."}
        with self.lock:
            session = self.live.get(message["session"])
            if session is None:
                session = {"user": message["user"], "team": TEAMS[self.begun % 2], "stays": {}}
                self.live[message["session"]] = session
                self.begun += 1
            session["control"] = message.get("control")
            team = session["team"]
        return {"verdict": "allow", "context": {"team": team}, "filter": {"rooms": ["lobby", f"team:{team}"]}}

    def joined(self, message):
        with self.lock:
            session = self.live.get(message["session"])
            if session is None:  # this program was started anew, and the session is older
                return {"verdict": "refuse", "reason": "Please log in again."}
            taken = [stay for other in self.live.values() for stay in other["stays"].items()
                     if stay[1] == message["room"] and (other is not session or stay[0] != message["stay"])]
            if message["room"].startswith("team:") and len(taken) >= self.seats:
                return {"verdict": "refuse", "reason": "All seats are taken."}
            session["stays"][message["stay"]] = message["room"]
        return {"verdict": "allow", "context": {"seat": len(taken) + 1}}

    def left(self, message):
        with self.lock:
            session = self.live.get(message["session"])
            if session:
                session["stays"].pop(message["stay"], None)
        return {"verdict": "done"}

    def ended(self, message):
        with self.lock:
            self.live.pop(message["session"], None)
        return {"verdict": "done"}

    def hello(self, _):
        with self.lock:
            self.live.clear()  # the server has started: sessions from before are gone
        return {"verdict": "done"}

    def shown(self):
        with self.lock:
            return {session["user"]: sorted(session["stays"].values()) for session in self.live.values()}

    def control(self, user):
        with self.lock:
            return next((session["control"] for session in self.live.values() if session["user"] == user), None)


def give_order(control, order, body):
    """Steers a session; the status and the body of the answer."""
    request = urllib.request.Request(f"{control['url']}/{order}", data=body, method="POST")
    request.add_header("Authorization", f"Bearer {control['token']}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    timeout = 60  # seconds; those without a request are closed
    sessions, bearer = None, None

    def is_known(self):
        offered = self.headers.get("Authorization", "").encode()
        return not self.bearer or hmac.compare_digest(offered, b"Bearer " + self.bearer)

    def do_GET(self):
        if not self.is_known():
            return self.answer(401, {})
        if self.path != "/sessions":
            return self.answer(404, {})
        self.answer(200, self.sessions.shown())

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length > LONGEST_MESSAGE:
            self.close_connection = True
            return self.answer(413, {})
        body = self.rfile.read(length)
        if not self.is_known():
            return self.answer(401, {})
        if self.path != "/":
            return self.steer(body)
        try:
            message = json.loads(body)
            if message["v"] != 1 or message["type"] not in ("hello", "create", "joined", "left", "ended"):
                raise ValueError
            answer = getattr(self.sessions, message["type"])(message)
        except (ValueError, KeyError, TypeError):
            return self.answer(400, {})
        self.answer(200, answer)

    def steer(self, body):
        _, user, order = (self.path + "//").split("/")[:3]
        control = self.sessions.control(user)
        if control is None:
            return self.answer(404, {})
        status, answer = give_order(control, order, body)
        self.answer(status, json.loads(answer))

    def answer(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    parser = argparse.ArgumentParser(description="A back end for chinwag's session manager of kind http.")
    parser.add_argument("--port", type=int, default=9001, help="on 127.0.0.1; 0: any that is free")
    parser.add_argument("--bearer-file", help="what chinwag, and an operator, have to know")
    parser.add_argument("--seats", type=int, default=2, help="in the room of each team")
    arguments = parser.parse_args()
    Handler.sessions = Sessions(arguments.seats)
    if arguments.bearer_file:
        with open(arguments.bearer_file, "rb") as file:
            Handler.bearer = file.read().strip()
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
