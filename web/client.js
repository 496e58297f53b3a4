/**
 * The chinwag protocol, version 1, for browsers and Node: one session that comes back by itself.
 *
 *     const client = new Client({ url: 'http://127.0.0.1:8080', websocket: '/v1/ws', polling: true }, console.log);
 *     await client.login({ user: 'ada' });
 *     await client.join('lobby');
 *     await client.send('lobby', 'hello');
 *     client.logout();
 *
 * WebSocket goes first; where it can't be opened, or never answers, HTTP polling does. After a loss the client comes back,
 * with growing random pauses, and joins its rooms again; `joined` then says whether messages may be missing. One listener
 * is told everything: `ClientEvent` in `types.d.ts`. Promises fail with a `Refusal`. Nothing is sent twice: where the
 * answer to a message was `lost`, it may have arrived or not. Every queue and every wait has a bound.
 */

/** @type {Times} */
export const TIMES = {
	open: 5000, first: 7000, answer: 10000, ping: 30000, poll: 25, backoff: 500, longest: 30000, steady: 10000,
	ghost: 2000, ghosts: 20000, avoid: 120000,
};

/** Most commands that wait for answers, and events for an `init` or a roster. */
const WAITING = 128;
const HELD = 5000;
/** Refusals that time mends. */
const TEMPORARY = ['rate_limited', 'too_many', 'unavailable', 'shutting_down', 'internal', 'unreachable', 'lost', 'busy'];

/** Why something was not done: a code of the protocol, `unreachable`, `lost` (with the connection) or `busy`. */
export class Refusal extends Error {
	/** @param {string} code @param {?number} [retryMs] */
	constructor(code, message = '', retryMs = null, end = '') {
		super(message);
		this.code = code;
		this.retryMs = retryMs;
		this.end = end;
	}
}

const lost = () => new Refusal('lost');
const now = () => performance.now();

/** @param {any} error */
const asRefusal = (error) => (error instanceof Refusal ? error : new Refusal('unreachable', String(error)));

/** @param {any} error */
const refusalOf = ({ code, message, retry_ms, end }) => new Refusal(code, message, retry_ms, end);

/** @param {Times} times @param {number} tries */
const backoff = (times, tries) => Math.random() * Math.min(times.longest, times.backoff * 2 ** tries);

/** @type {Record<string, string>} */
const ESCAPES = { '&amp;': '&', '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#39;': "'" };

/** A room that the client is in: who is known to be there, and how many are. */
export class Room {
	/** @type {Set<string>} */
	members = new Set();
	count = 0;
	/** @type {Presence} */
	presence = 'each';
	/** The last event and its numbering; `rev` of the `init`. */
	seq = 0;
	epoch = '';
	rev = -1;
	escaped = false;
	/** Events before their `init`; changes while names are asked for; until when those are not asked for again. */
	held = /** @type {?any[]} */ (null);
	kept = /** @type {?Change[]} */ (null);
	asked = 0;
	entering = /** @type {?Promise<void>} */ (null);

	/** @param {string} name */
	constructor(name) {
		this.name = name;
	}
}

// Makes a link one that ends once; `release` frees what it holds.
/** @type {(link: Link, release: () => void) => Link} */
const connection = (link, release) => {
	link.ended = new Promise((resolve) => {
		link.finish = (code, message = '', retryMs = 0) => {
			if (link.end) return;
			link.end = { code, message, retryMs };
			release();
			resolve(link.end);
		};
	});
	return link;
};

/** @type {(host: Host) => Link} */
const webSocketLink = ({ settings, times, hear }) => {
	/** @type {WebSocket | undefined} */
	let socket;
	/** @type {Map<number, Asked>} */
	const asked = new Map();
	let next = 1;
	let heard = 0;
	/** @type {any[]} */
	const timers = [];

	// Ends the connection when an answer is due and nothing at all is heard: something may swallow it.
	const watch = () => {
		clearTimeout(timers[0]);
		const [oldest] = asked.values();
		if (!oldest) return;
		const { at, limit } = oldest;
		const rest = Math.min(Math.max(at, heard) + limit, at + 6 * limit) - now();
		if (rest <= 0) link.finish('disconnected');
		else timers[0] = setTimeout(watch, rest);
	};

	/** @type {Link} */
	const link = {
		transport: 'websocket',
		finish() {},
		async open(login) {
			const url = new URL(settings.websocket ?? '', settings.url);
			url.protocol = url.protocol.replace('http', 'ws');
			timers[0] = setTimeout(link.finish, times.open, 'disconnected');
			socket = new (settings.WebSocket ?? WebSocket)(url.href);
			const opened = new Promise((resolve) => socket && (socket.onopen = resolve));
			socket.onmessage = ({ data }) => {
				heard = now();
				const object = JSON.parse(data);
				const { type, id, code, message, retry_ms } = object;
				if (type === 'bye') return link.finish(code, message, retry_ms);
				const question = asked.get(id);
				if (!question) return hear(object);
				asked.delete(id);
				if (type === 'error') question.reject(refusalOf(object));
				else question.resolve(object);
			};
			// 4000 to 4499 may come back; 1002 and 1007 are broken rules.
			socket.onclose = ({ code, reason }) => link.finish(reason || 'disconnected', '', code > 4499 || code === 1002 || code === 1007 ? null : 0);
			await Promise.race([link.ended, opened]);
			link.spoke = !link.end;
			const session = await link.request(login, times.first);
			timers[1] = setInterval(link.check, session.ping_every_ms || times.ping);
			return session;
		},
		request(command, limit = times.answer) {
			if (link.end) return Promise.reject(lost());
			if (asked.size >= WAITING) return Promise.reject(new Refusal('busy'));
			const id = next++;
			socket?.send(JSON.stringify({ ...command, id }));
			return new Promise((resolve, reject) => {
				asked.set(id, { resolve, reject, at: now(), limit });
				watch();
			});
		},
		check: () => void link.request({ type: 'ping' }).catch(() => {}),
		leave() {
			// A socket that is not open yet takes nothing.
			if (link.spoke) link.request({ type: 'logout' }).catch(() => {});
			link.finish('logout', '', 1000);
		},
	};
	return connection(link, () => {
		timers.forEach(clearTimeout);
		if (socket) {
			socket.onopen = socket.onmessage = socket.onclose = null;
			socket.close(1000);
		}
		for (const { reject } of asked.values()) reject(lost());
		asked.clear();
	});
};

/** @type {(host: Host) => Link} */
const pollingLink = ({ settings, times, hear, shaky, pause }) => {
	let id = '';
	let waiting = 0;
	/** Side by side, commands could overtake each other. */
	let last = Promise.resolve();
	/** @type {Set<AbortController>} */
	const calls = new Set();
	let poll = new AbortController();

	/** @type {(method: string, path: string, more: RequestInit) => Promise<Response>} */
	const request = (method, path, more) => {
		const { fetch = globalThis.fetch, url } = settings;
		/** @type {Record<string, string>} */
		const headers = id ? { Authorization: `Bearer ${id}` } : {};
		if (more.body) headers['Content-Type'] = 'application/json';
		return fetch(new URL(`/v1/${path}`, url), { method, headers, cache: 'no-store', ...more });
	};

	/** @type {(method: string, path: string, limit: number, command?: object, abort?: AbortController) => Promise<any>} */
	const call = async (method, path, limit, command, abort = new AbortController()) => {
		if (link.end) throw lost();
		const late = setTimeout(() => abort.abort(), limit);
		calls.add(abort);
		try {
			const answer = await request(method, path, { signal: abort.signal, body: command && JSON.stringify(command) });
			const object = await answer.json();
			if (object.type === 'error') throw refusalOf(object);
			if (answer.ok) return object;
		} catch (error) {
			if (error instanceof Refusal) throw error;
		} finally {
			clearTimeout(late);
			calls.delete(abort);
		}
		// No answer, or one of somebody on the way.
		throw lost();
	};

	/** @param {Refusal} why */
	const judge = ({ code, message, retryMs, end }) => {
		if (code === 'session_expired') link.finish(end || code, message, retryMs);
		else if (code === 'not_logged_in') link.finish('disconnected');
		else if (code === 'already_logged_in') link.finish('superseded', message, null);
	};

	// Polls until the session is over. A poll that fails is repeated with its `ack`, so that nothing is lost.
	const listen = async () => {
		const limit = times.poll * 1000 + times.answer;
		for (let ack = 0, failures = 0; !link.end; ) {
			poll = new AbortController();
			const due = now() + limit;
			try {
				const { events, next, superseded } = await call('GET', `events?ack=${ack}&wait=${failures ? 0 : times.poll}`, limit, undefined, poll);
				if (failures > 1) shaky(false);
				failures = 0;
				for (const event of events) {
					if (event.type === 'bye') link.finish(event.code, event.message, event.retry_ms);
					else if (!link.end) hear(event);
				}
				ack = next;
				if (superseded) link.finish('superseded', '', null);
			} catch (error) {
				const why = asRefusal(error);
				judge(why);
				// Given up by `check`, not failed.
				if (link.end || (poll.signal.aborted && now() < due - 100)) continue;
				if (!TEMPORARY.includes(why.code)) return link.finish('disconnected');
				if (++failures === 2) shaky(true);
				await pause(why.retryMs ?? 0, backoff(times, failures));
			}
		}
	};

	/** @type {Link} */
	const link = {
		transport: 'polling',
		finish() {},
		async open(login) {
			link.spoke = true;
			const session = await call('POST', 'session', times.first, login);
			id = session.session;
			void listen();
			return session;
		},
		async request(command) {
			if (waiting >= WAITING) throw new Refusal('busy');
			waiting++;
			const reply = last.then(() => call('POST', 'commands', times.answer, command));
			last = reply.catch(judge).finally(() => waiting--);
			return reply;
		},
		// Asked anew, what there is comes at once, and that the server is gone shows.
		check: () => poll.abort(),
		leave() {
			if (id) request('DELETE', 'session', { keepalive: true }).catch(() => {});
			link.finish('logout', '', 1000);
		},
	};
	return connection(link, () => calls.forEach((call) => call.abort()));
};

/** One user's session, over whatever connection there is. */
export class Client {
	/** @type {State} */
	state = 'offline';
	/** @type {Session | undefined} */
	session;

	#settings;
	#most;
	#times;
	#tell;
	#credentials = /** @type {?Credentials} */ (null);
	#link = /** @type {?Link} */ (null);
	/** @type {Map<string, Room>} */
	#rooms = new Map();
	/** New with each log-in and log-out: what was begun in an old one is of no interest any more. */
	#life = {};
	#tries = 0;
	/** Until when a lost session of ours may hold the name, and until when polling goes first. */
	#ghost = 0;
	#avoid = 0;
	/** Ends the present pause, from `#earliest` on. */
	#wake = /** @type {?() => void} */ (null);
	#earliest = 0;

	/** @param {Settings} settings @param {(event: ClientEvent) => void} listener */
	constructor(settings, listener) {
		this.#settings = settings;
		this.#most = settings.most ?? 1000;
		this.#times = { ...TIMES, ...settings.times };
		this.#tell = listener;
	}

	get transport() {
		return this.#link?.transport ?? '';
	}

	/** The name as everybody sees it. */
	get user() {
		return this.session?.user ?? '';
	}

	// Logs in, until `logout` or an end for good. A first refusal fails it, unless a lost session of its own has the name.
	/** @param {Credentials} credentials */
	async login(credentials) {
		if (this.#credentials) throw new Refusal('already_logged_in');
		this.#credentials = credentials;
		this.#tries = this.#ghost = 0;
		const life = (this.#life = {});
		try {
			return await this.#establish(life, null);
		} catch (error) {
			if (life === this.#life) this.logout();
			throw asRefusal(error);
		}
	}

	/** Ends the session, or the attempt to have one. */
	logout() {
		this.#life = {};
		this.#credentials = null;
		this.#rooms.clear();
		this.#link?.leave();
		this.#link = null;
		this.#wake?.();
		this.#set('offline');
	}

	/** Lets go of the connection, as when a page is put away; comes back a second later, if the page still runs. */
	suspend() {
		this.#link?.leave();
	}

	/** Comes back now, if the server allows; or checks the connection that is there. */
	nudge() {
		if (!this.#wake && this.state !== 'connecting') this.#link?.check();
		else if (now() >= this.#earliest) this.#wake?.();
	}

	// Enters a room; one that fails with `lost` is entered when the client is back.
	/** @param {string} name */
	async join(name) {
		const link = this.#link;
		const room = this.#rooms.get(name) ?? new Room(name);
		if (!this.#rooms.has(name)) room.entering = this.#enter(room, link);
		this.#rooms.set(name, room);
		try {
			await room.entering;
		} catch (error) {
			// An answer may be lost where the connection is not.
			const over = asRefusal(error).code !== 'lost' || (link && !link.end);
			if (over && this.#rooms.get(name) === room) this.#rooms.delete(name);
			throw error;
		}
		return room;
	}

	/** @param {string} name */
	async leave(name) {
		if (this.#rooms.delete(name)) await this.request({ type: 'leave', room: name });
	}

	// `data` is any JSON. The own `message` comes as everybody's does.
	/** @param {string} name @param {string} [text] @param {unknown} [data] */
	async send(name, text, data) {
		await this.#rooms.get(name)?.entering?.catch(() => {});
		return this.request({ type: 'send', room: name, text, data });
	}

	// Any command; its `id` is added.
	/** @param {object} command @returns {Promise<any>} */
	async request(command) {
		if (!this.#link || this.state === 'connecting') throw new Refusal('unreachable');
		return this.#link.request(command);
	}

	/** @param {State} state @param {?Reason} [reason] */
	#set(state, reason = null) {
		this.state = state;
		this.#tell({ type: 'state', state, transport: this.transport, reason });
	}

	// Any former pause is over.
	/** @type {Host['pause']} */
	#pause = (least, more) => {
		this.#wake?.();
		this.#earliest = now() + least;
		return new Promise((resolve) => {
			this.#wake = () => {
				clearTimeout(timer);
				this.#wake = null;
				resolve();
			};
			const timer = setTimeout(this.#wake, least + more);
		});
	};

	// Tries until there is a session. Without an `end` before it, somebody waits, and a refusal is told at once.
	/** @param {object} life @param {?Reason} end @returns {Promise<Session>} */
	async #establish(life, end) {
		const { ghost, steady, ghosts } = this.#times;
		for (let reason = end; ; this.#tries++) {
			if (reason) {
				this.#set('waiting', reason);
				await this.#pause(reason.retryMs ?? 0, reason.code === 'name_in_use' ? ghost : backoff(this.#times, this.#tries));
				if (life !== this.#life) throw lost();
			}
			this.#set('connecting', reason);
			try {
				const link = await this.#connect(life);
				const began = now();
				const session = /** @type {Session} */ (this.session);
				void link.ended?.then((end) => {
					if (life !== this.#life) return;
					this.#link = null;
					this.#tries = now() - began > steady ? 0 : this.#tries + 1;
					this.#ghost = now() + (session.timeout_ms || 30000) + ghosts;
					void this.#comeBack(life, end);
				});
				return session;
			} catch (error) {
				reason = asRefusal(error);
				if (life !== this.#life) throw reason;
				this.#link = null;
				const mine = reason.code === 'name_in_use' && now() < this.#ghost;
				if (!mine && (!end || !TEMPORARY.includes(reason.code))) throw reason;
			}
		}
	}

	/** @param {object} life @param {Reason} end */
	async #comeBack(life, end) {
		try {
			if (end.retryMs === null) throw new Refusal(end.code, end.message);
			await this.#establish(life, end);
		} catch (error) {
			if (life !== this.#life) return;
			this.#credentials = this.#link = null;
			this.#rooms.clear();
			this.#set('ended', asRefusal(error));
		}
	}

	// One try, by one transport after the other.
	/** @param {object} life @returns {Promise<Link>} */
	async #connect(life) {
		const { websocket, polling } = this.#settings;
		const kinds = [websocket && webSocketLink, polling && pollingLink];
		if (now() < this.#avoid) kinds.reverse();
		let failed = false;
		for (const kind of kinds) {
			if (!kind) continue;
			/** @type {Link} */
			const link = kind({
				settings: this.#settings,
				times: this.#times,
				hear: (object) => link === this.#link && this.#hear(object),
				shaky: (is) => link === this.#link && this.#set(is ? 'waiting' : 'online'),
				pause: this.#pause,
			});
			this.#link = link;
			let why;
			try {
				this.session = await link.open({ type: 'login', protocol: 1, ...this.#credentials });
			} catch (error) {
				why = asRefusal(error);
				link.finish('disconnected');
			}
			if (life !== this.#life || link.end?.code === 'logout') {
				link.leave();
				throw lost();
			}
			if (why?.code === 'lost' || why?.code === 'unreachable') {
				failed = link.transport === 'websocket';
				if (link.spoke) this.#ghost ||= now() + 30000 + this.#times.ghosts;
				continue;
			}
			// Where polling is answered, it is not the server that is in trouble.
			if (failed) this.#avoid = now() + this.#times.avoid;
			if (why) throw why;
			this.#ghost = 0;
			for (const room of this.#rooms.values()) room.entering = this.#enterAgain(link, room);
			this.#set('online');
			return link;
		}
		throw new Refusal('unreachable');
	}

	/** @param {Link} link @param {Room} room @returns {Promise<void>} */
	async #enterAgain(link, room, tries = 1) {
		room.held = [];
		try {
			await this.#enter(room, link);
		} catch (error) {
			const why = asRefusal(error);
			const again = TEMPORARY.includes(why.code) && tries < 10;
			if (again) await new Promise((resolve) => setTimeout(resolve, (why.retryMs ?? 0) + backoff(this.#times, tries)));
			if (link !== this.#link || this.#rooms.get(room.name) !== room) return;
			if (again) return this.#enterAgain(link, room, tries + 1);
			this.#rooms.delete(room.name);
			this.#tell({ type: 'refused', room: room.name, refusal: why });
		}
	}

	/** @param {Room} room @param {?Link} link */
	async #enter(room, link) {
		room.held ??= [];
		if (!link) throw lost();
		const since = room.epoch ? { epoch: room.epoch, seq: room.seq } : undefined;
		const init = await link.request({ type: 'join', room: room.name, since });
		if (link !== this.#link || this.#rooms.get(room.name) !== room) throw lost();
		this.#begin(room, init, !!since);
		for (const event of room.held) this.#happen(room, event);
		room.entering = room.held = null;
	}

	// Starts over from an `init`.
	/** @param {Room} room @param {any} init @param {boolean} again */
	#begin(room, init, again) {
		const { epoch, seq, rev = -1, presence, count } = init;
		const users = init.users.slice(0, this.#most);
		Object.assign(room, { epoch, seq, rev, presence, count, members: new Set(users), escaped: init.escape === 'html', kept: null });
		this.#tell({ type: 'joined', room, again, gap: again && !init.recovered });
		if (users.length < count) void this.#ask(room, users.pop());
	}

	/** @param {any} object */
	#hear(object) {
		const room = this.#rooms.get(object.room);
		if (!room?.held) return room && this.#happen(room, object);
		// An answer and the events after it may come by different ways.
		if (room.held.push(object) > HELD) this.#link?.finish('disconnected');
	}

	/** @param {Room} room @param {any} event */
	#happen(room, event) {
		const { type, seq, at, user, text, data, reason = '', rev: n = 0, count } = event;
		if (type === 'init') return this.#begin(room, event, true);
		if (seq && seq <= room.seq) return;
		if (seq) room.seq = seq;
		if (type === 'message') {
			const plain = room.escaped ? text?.replace(/&\w+;|&#39;/g, (/** @type {string} */ it) => ESCAPES[it] ?? it) : text;
			this.#tell({ type, room, seq, at, user, text: plain, data, own: user === this.user });
		} else if (type === 'join') this.#change(room, 'each', { n: seq, joined: [user], left: [] });
		else if (type === 'leave') this.#change(room, 'each', { n: seq, joined: [], left: [{ user, reason }] });
		else if (type === 'presence' && !(event.rev <= room.rev)) {
			const { joined = [], left = [] } = event;
			const change = { n, joined, left: left.map((/** @type {string} */ user) => ({ user, reason })) };
			this.#change(room, event.joined || event.left ? 'batched' : 'off', change, count);
		} else if (type === 'left') {
			this.#rooms.delete(room.name);
			this.#tell({ type, room: room.name, reason });
		}
	}

	/** @param {Room} room @param {Presence} presence @param {Change} change @param {number} [count] */
	#change(room, presence, change, count) {
		// What was pending in another form has been sent, and numbers of two forms do not compare.
		if (presence !== room.presence) Object.assign(room, { presence, kept: null });
		if (presence === 'off') room.members.clear();
		const more = this.#apply(room, change);
		room.count = count ?? room.count + more;
		if (room.kept && room.kept.push(change) > HELD) room.kept = null;
		this.#tell({ type: 'presence', room, joined: change.joined, left: change.left });
		if (room.members.size < 0.9 * Math.min(room.count, this.#most) && now() > room.asked) void this.#ask(room);
	}

	// To add who is there is no mistake. Gives by how many there are more.
	/** @param {Room} room @param {Change} change */
	#apply({ members, count }, { joined, left }) {
		let more = 0;
		for (const user of joined) {
			if (!members.has(user)) more++;
			if (members.size < this.#most) members.add(user);
		}
		for (const { user } of left) if (members.delete(user) || members.size < count + more) more--;
		return more;
	}

	// Asks for names that are not known, within the bound.
	/** @param {Room} room @param {string} [after] */
	async #ask(room, after) {
		const link = this.#link;
		if (room.presence === 'off' || room.kept || !link) return;
		/** @type {Change[]} */
		const kept = (room.kept = []);
		room.asked = now() + 5000;
		try {
			for (let next; next !== null && room.members.size < this.#most; after = next) {
				const page = await link.request({ type: 'users', room: room.name, after, limit: 1000 });
				if (room.kept !== kept) return;
				this.#apply(room, { n: 0, joined: page.users, left: [] });
				for (const change of kept) if (change.n > (room.presence === 'batched' ? page.rev : page.seq)) this.#apply(room, change);
				next = page.next;
				this.#tell({ type: 'presence', room, joined: [], left: [] });
			}
		} catch {
			// Asked for again when somebody comes or goes.
		}
		if (room.kept === kept) room.kept = null;
	}
}
