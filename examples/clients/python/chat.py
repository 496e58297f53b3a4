#!/usr/bin/env python3
"""A chat client over TCP. Python 3.9 or newer, standard library alone.

    python3 chat.py HOST PORT USER ROOM

Sends the lines of standard input and logs out at its end. CHINWAG_PASSWORD holds the password, if one is needed.
Exit code 0: logged out. 1: refused, sent away or cut off. docs/clients.md explains each step.
"""
import asyncio, html, itertools, json, os, re, sys


def end(words, code=1):
    print(words, file=sys.stderr, flush=True)
    os._exit(code)  # At once: a thread may still wait for standard input.


class Chat:
    def __init__(self, reader, writer, user, room):
        self.reader, self.writer, self.user, self.room = reader, writer, user, room
        self.ids, self.waiting = itertools.count(1), {}
        self.patience = 30  # So many seconds of silence mean a dead link.
        self.here, self.escaped = set(), False

    async def ask(self, **command):
        """Sends a command and waits for its answer, whatever events arrive in between."""
        number = next(self.ids)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        self.writer.write(json.dumps({**command, "id": number}).encode() + b"\n")
        return await self.waiting[number]

    async def talk(self):
        password = os.environ.get("CHINWAG_PASSWORD")
        session = granted(await self.ask(type="login", user=self.user, **({"password": password} if password else {})))
        self.user = session["user"]  # As the server writes it.
        self.patience = session["timeout_ms"] / 1000 or None  # Our pings, sent twice as often, are answered.
        self.pings = asyncio.create_task(self.ping(session["ping_every_ms"] / 1000))
        granted(await self.ask(type="join", room=self.room))
        while line := await asyncio.to_thread(sys.stdin.readline):
            await self.say(line.rstrip("\r\n"))
        await self.ask(type="logout")

    async def say(self, text):
        while text and (answer := await self.ask(type="send", room=self.room, text=text))["type"] == "error":
            if answer["code"] != "rate_limited":
                return print(f"! {answer['message']}", file=sys.stderr, flush=True)
            await asyncio.sleep(answer["retry_ms"] / 1000)

    async def ping(self, every):
        while every:
            await asyncio.sleep(every)
            await self.ask(type="ping")

    async def listen(self):
        while line := await asyncio.wait_for(self.reader.readline(), self.patience):
            said = json.loads(line)
            for words in self.told(said):  # Whatever a text holds, it stays on its line and commands no terminal.
                print(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", words), flush=True)
            if said.get("id") in self.waiting:
                self.waiting.pop(said["id"]).set_result(said)
        end("Lost: the connection was closed.")

    def told(self, said):
        """The lines to show for an object: none for those that we do not know."""
        kind, user = said["type"], said.get("user")
        if kind == "bye":
            end(said["message"], 0 if said["code"] == "logout" else 1)
        elif kind == "left" and "reason" in said:
            end(f"Taken out of {said['room']}: {said['reason']}")
        elif kind == "init":
            self.here, self.escaped = {self.user, *said["users"]}, said.get("escape") == "html"
            yield f"* {said['count']} in {said['room']}: {', '.join(said['users'])}"
        elif kind == "message" and user != self.user:
            text = said.get("text", "(data)")
            yield f"{user}: {html.unescape(text) if self.escaped else text}"
        elif kind in ("join", "leave", "presence"):
            came = {user} if kind == "join" else {*said.get("joined", [])}
            went = {user} if kind == "leave" else {*said.get("left", [])}
            yield from (f"* {name} joined" for name in sorted(came - self.here))
            yield from (f"* {name} left" for name in sorted(went & self.here))
            self.here = self.here - went | came


def granted(answer):
    return answer if answer["type"] != "error" else end(f"Refused: {answer['message']}")


async def main(host, port, user, room):
    # The limit is above server_frame_bytes, whatever the operator has made of it.
    chat = Chat(*await asyncio.open_connection(host, int(port), limit=1 << 24), user, room)
    await asyncio.gather(chat.listen(), chat.talk())


try:
    asyncio.run(main(*sys.argv[1:]) if len(sys.argv) == 5 else sys.exit(__doc__))
except KeyboardInterrupt:
    end("Interrupted.")
except (OSError, ValueError, asyncio.TimeoutError) as error:
    end(f"Lost: {error!r}")
