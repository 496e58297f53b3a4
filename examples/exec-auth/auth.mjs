#!/usr/bin/env node
// Says who may come in, line by line: a program for chinwag's authenticator of kind "exec".
//
//     auth.mjs users.json
//
// docs/callouts.md describes what is asked and answered. Nothing but Node itself is needed.
import { readFileSync } from "node:fs";
import { scrypt, timingSafeEqual } from "node:crypto";
import { createInterface } from "node:readline";

const users = new Map(Object.entries(JSON.parse(readFileSync(process.argv[2], "utf8"))));
const nobody = { salt: "00".repeat(16), hash: "00".repeat(32) };

/** Whether the password is that of the user. Hashing happens aside, so that several may be asked about at once. */
function isRight(password, { salt, hash }) {
  return new Promise((resolve, reject) => {
    scrypt(password, Buffer.from(salt, "hex"), 32, { N: 16384, r: 8, p: 1 }, (error, key) =>
      error ? reject(error) : resolve(timingSafeEqual(key, Buffer.from(hash, "hex"))),
    );
  });
}

/** The verdict on one log-in. */
async function judge({ user: name, password }) {
  if (name === undefined || password === undefined) return { verdict: "abstain" }; // a token: not ours
  const user = users.get(name);
  const right = await isRight(password, user ?? nobody); // an unknown user takes as long as a wrong password
  if (!user) return { verdict: "abstain" };
  if (!right) return { verdict: "deny", reason: "wrong password" };
  if (user.suspended) return { verdict: "deny", reason: "suspended", public: "Your account is suspended." };
  return { verdict: "allow", user: name, roles: user.roles ?? [], rooms: user.rooms };
}

async function answer(question) {
  let verdict;
  try {
    verdict = question.v === 1 && question.type === "authenticate" ? await judge(question) : { verdict: "unavailable" };
  } catch (error) {
    console.error(`can't judge: ${error.message}`); // into the server's log; never the password
    verdict = { verdict: "unavailable" };
  }
  process.stdout.write(`${JSON.stringify({ id: question.id, ...verdict })}\n`);
}

// The program ends with its input.
createInterface({ input: process.stdin }).on("line", (line) => answer(JSON.parse(line)));
