// A chat client over HTTP polling. Node 18 or newer, without any package.
//
//     node chat.mjs http://HOST:PORT USER ROOM
//
// Sends the lines of standard input and logs out at its end. CHINWAG_PASSWORD holds the password, if one is needed.
// Exit code 0: logged out. 1: refused, sent away or cut off. docs/clients.md explains each step.

import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const WAIT = 25; // Seconds that a poll may be held: less than proxies and the server allow.
const [base, user, room] = process.argv.slice(2);
let session; // What logging in gave: the id, and our name as the server writes it.
let here = new Set(); // Who is in the room, ourselves among them.
let escaped; // Whether texts come with HTML entities.

function end(words, code = 1) {
  console.error(words);
  process.exit(code);
}

/** One request; gives the object that answers it. Throws where the answer got lost. */
async function call(method, path, body) {
  const headers = { 'Content-Type': 'application/json' };
  if (session) headers.Authorization = `Bearer ${session.session}`;
  const signal = AbortSignal.timeout((WAIT + 10) * 1000);
  const answer = await fetch(new URL(path, base), { method, headers, body: body && JSON.stringify(body), signal });
  const said = await answer.json(); // A proxy's page is no JSON: as good as lost.
  if (said.code === 'session_expired' || said.code === 'not_logged_in') end(said.message);
  return said;
}

/** Asks for events for ever. An answer that got lost is asked for again, with the same `ack`, and nothing is missed. */
async function listen() {
  for (let ack = 0, failures = 0; ; ) {
    try {
      const { type, message, retry_ms, superseded, events, next } =
        await call('GET', `/v1/events?ack=${ack}&wait=${WAIT}`);
      if (type === 'error') throw Object.assign(new Error(message), { retry_ms });
      failures = 0;
      ack = next;
      events.forEach(take);
      if (superseded) end('Somebody else polls for this session.');
    } catch (error) {
      if (++failures > 5) end(`Lost: ${error.message}`);
      await sleep(error.retry_ms ?? Math.random() * 500 * 2 ** failures);
    }
  }
}

function take(said) {
  const { type, user: who, joined = type === 'join' ? [who] : [], left = type === 'leave' ? [who] : [] } = said;
  if (type === 'bye') end(said.message, said.code === 'logout' ? 0 : 1);
  if (type === 'left') end(`Taken out of ${said.room}: ${said.reason}`);
  if (type === 'init') {
    here = new Set([session.user, ...said.users]);
    escaped = said.escape === 'html';
    print(`* ${said.count} in ${said.room}: ${said.users.join(', ')}`);
  }
  if (type === 'message' && who !== session.user) print(`${who}: ${unescape(said.text ?? '(data)')}`);
  for (const name of joined) if (!here.has(name) && here.add(name)) print(`* ${name} joined`);
  for (const name of left) if (here.delete(name)) print(`* ${name} left`);
}

/** Whatever a text holds, it stays on its line and commands no terminal. */
const print = (words) => console.log(words.replace(/[\x00-\x1f\x7f-\x9f]/g, ' '));
const ENTITIES = { '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#39;': "'", '&amp;': '&' };
const unescape = (text) => (escaped ? text.replace(/&(lt|gt|quot|#39|amp);/g, (entity) => ENTITIES[entity]) : text);

async function say(text) {
  for (let answer; (answer = await call('POST', '/v1/commands', { type: 'send', room, text })).type === 'error'; ) {
    if (answer.code !== 'rate_limited') return console.error(`! ${answer.message}`);
    await sleep(answer.retry_ms);
  }
}

if (!room) end('node chat.mjs http://HOST:PORT USER ROOM');
try {
  const login = await call('POST', '/v1/session', { user, password: process.env.CHINWAG_PASSWORD });
  if (login.type === 'error') end(`Refused: ${login.message}`);
  session = login;
  const joined = await call('POST', '/v1/commands', { type: 'join', room });
  if (joined.type === 'error') {
    await call('DELETE', '/v1/session'); // Nobody else would end it before its time is over.
    end(`Refused: ${joined.message}`);
  }
  take(joined);
  listen(); // Only now, so that no event of the room comes before its `init`.
  for await (const text of createInterface({ input: process.stdin })) if (text.trim()) await say(text);
  take(await call('DELETE', '/v1/session'));
} catch (error) {
  end(`Lost: ${error.message}`);
}
