// The types of the page's scripts, for tsc and for editors. Browsers never load this file.

/** What a `Client` is made from. */
interface Settings {
  /** Where the server is, as `https://chat.example.org`. */
  url: string | URL;
  /** The path of its WebSocket transport; without one, WebSocket is not tried. */
  websocket?: string | null;
  /** Whether it serves HTTP polling. */
  polling?: boolean;
  /** Most members of a room whose names are kept. 1000 unless given. */
  most?: number;
  /** Other times than `TIMES`, say for tests. */
  times?: Partial<Times>;
  /** Another implementation than the platform's. */
  WebSocket?: typeof globalThis.WebSocket;
  /** The same. */
  fetch?: typeof globalThis.fetch;
}

/** Milliseconds, but `poll` in seconds. */
interface Times {
  /** For a WebSocket to open. */
  open: number;
  /** From a log-in to its answer. Longer means that something swallows what a WebSocket delivers. */
  first: number;
  /** Without a word from the server while an answer is due; six times that for any one answer. */
  answer: number;
  /** Between pings where the server asks for none. */
  ping: number;
  /** How long a poll waits. */
  poll: number;
  /** A pause before coming back is random, up to this at first, and doubled each time, up to `longest`. */
  backoff: number;
  longest: number;
  /** A connection that lasted so long counts as a success: pauses are short again. */
  steady: number;
  /** Between tries while the client's own lost session holds the name. */
  ghost: number;
  /** How much longer than its timeout that session is waited for. */
  ghosts: number;
  /** How long polling goes first after WebSocket failed where it worked. */
  avoid: number;
}

/** What a log-in carries. */
interface Credentials {
  user?: string;
  password?: string;
  token?: string;
}

/** The server's answer to a log-in. */
interface Session {
  session: string;
  user: string;
  timeout_ms: number;
  ping_every_ms: number;
  limits: { message_bytes: number; frame_bytes: number; server_frame_bytes: number };
}

/** `offline`: not logged in. `waiting`: for the next try. `ended`: for a reason that a person has to deal with. */
type State = 'offline' | 'connecting' | 'online' | 'waiting' | 'ended';
type Transport = 'websocket' | 'polling' | '';

/** Why a connection, a session or a request is over. `code` is the protocol's or this client's own. */
interface Reason {
  code: string;
  message: string;
  /** When to come back. For an end, `null` means: not without being asked to. */
  retryMs: number | null;
}

type Presence = 'each' | 'batched' | 'off';

/** Who came and went, by the number (`seq` or `rev`) at which that was so. */
interface Change {
  n: number;
  joined: string[];
  left: { user: string; reason: string }[];
}

type Room = import('./client.js').Room;
type Refusal = import('./client.js').Refusal;

/** What a client tells its listener. */
type ClientEvent =
  /** `reason`: of the wait or the end. */
  | { type: 'state'; state: State; transport: Transport; reason: Reason | null }
  /** A room was entered; `again` after a loss, and with a `gap` where messages may be missing. */
  | { type: 'joined'; room: Room; again: boolean; gap: boolean }
  /** It could not be entered again. */
  | { type: 'refused'; room: string; refusal: Refusal }
  /** The server took the session out of it. */
  | { type: 'left'; room: string; reason: string }
  | { type: 'message'; room: Room; seq: number; at: number; user: string; text?: string; data?: unknown; own: boolean }
  /** Members or their count have changed; perhaps it is known who came and went, and why. */
  | { type: 'presence'; room: Room; joined: string[]; left: { user: string; reason: string }[] };

/** What a link needs of its client. */
interface Host {
  settings: Settings;
  times: Times;
  /** Takes every object that is no answer. */
  hear(object: any): void;
  /** Polls fail, or work again; the session is still there. */
  shaky(is: boolean): void;
  /** Waits for `least` at any rate, and for `more` unless somebody is impatient. */
  pause(least: number, more: number): Promise<void>;
}

/** A command that waits for its answer. */
interface Asked {
  resolve: (reply: any) => void;
  reject: (why: Refusal) => void;
  at: number;
  limit: number;
}

/** A connection with a session: opened once, ended once. */
interface Link {
  readonly transport: Transport;
  /** A log-in was sent: there may be a session even if its answer never comes. */
  spoke?: boolean;
  end?: Reason;
  ended?: Promise<Reason>;
  open(login: object): Promise<Session>;
  request(command: object, limit?: number): Promise<any>;
  /** Finds out soon whether the connection still works. */
  check(): void;
  /** Ends the session. */
  leave(): void;
  finish(code: string, message?: string, retryMs?: number | null): void;
}

/** What the server tells the page about itself, in `/chinwag.json`. */
interface About {
  websocket: string | null;
  polling: boolean;
  /** The default room. */
  room: string | null;
  password: 'none' | 'optional' | 'required';
  /** The rules for names, in words. */
  names: string;
}

/** An entry of a log: a message, a notice, or who came and went since the last message. */
interface Entry {
  kind: 'message' | 'day' | 'gap' | 'quiet';
  seq: number;
  at: number;
  user: string;
  text: string;
  own: boolean;
  /** Stands below another one of the same sender. */
  follows: boolean;
  joined: Set<string>;
  left: Set<string>;
}

/** A room as the page shows it. */
interface View {
  room: Room;
  entries: Entry[];
  /** How many entries were dropped at the top. */
  gone: number;
  unread: number;
  draft: string;
  /** The part of the draft that was refused, at its beginning. */
  back: string;
  button: HTMLButtonElement;
  day: string;
}
