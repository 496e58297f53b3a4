#!/usr/bin/env node
// Manages the sessions of a chat, line by line: a program for chinwag's session manager of kind "exec".
//
//     manager.mjs [SECONDS]
//
// Whoever comes in is greeted and may only listen for so many seconds (3 unless told otherwise), and then also talk.
// docs/callouts.md describes what is asked, answered and ordered. Nothing but Node itself is needed.
import { createInterface } from "node:readline";

const seconds = Number(process.argv[2] ?? 3);
/** The timer of each session that may not talk yet. */
const waiting = new Map();

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const order = (session, order, fields) => say({ session, order, with: fields });

function create({ session, user }) {
  clearTimeout(waiting.get(session)); // asked twice: the second time changes nothing
  waiting.set(
    session,
    setTimeout(() => {
      waiting.delete(session);
      order(session, "filter", {}); // none
      order(session, "send", { data: { notice: "You may talk now." } });
    }, seconds * 1000),
  );
  order(session, "send", { data: { notice: `Welcome, ${user}. Please listen for a while.` } });
  return { verdict: "allow", filter: { commands: ["join", "users", "history"] } };
}

function ended({ session }) {
  clearTimeout(waiting.get(session));
  waiting.delete(session);
  return { verdict: "done" };
}

const answers = { create, ended, hello: () => ({ verdict: "done" }) };

// The program ends with its input.
createInterface({ input: process.stdin })
  .on("line", (line) => {
    const message = JSON.parse(line);
    const answer = message.v === 1 ? answers[message.type] : undefined;
    say({ id: message.id, ...(answer ? answer(message) : { verdict: "unavailable" }) });
  })
  .on("close", () => process.exit());
