/** The page: what the client tells is shown, and what people do becomes commands. */

import { Client, Refusal } from './client.js';
import { avatar, element, fill, name } from './text.js';
import { ended, refused, waiting } from './words.js';

/** Entries of a room, names in its list, names in a notice; milliseconds between messages that stand together. */
const KEPT = 500;
const NAMES = 300;
const NAMED = 4;
const TOGETHER = 300000;

/** @type {<T extends HTMLElement = HTMLElement>(selector: string) => T} */
const find = (selector) => /** @type {any} */ (document.querySelector(selector));

const [door, chat, main, scrim, log, latest, older] = ['#door', '#chat', '#room', '#scrim', '#log', '#latest', '#older'].map((it) => find(it));
const [banner, problem, again, status, login, enter, composer] = ['#banner', '#problem', '#again', '#status', '#login', '#enter', '#composer'].map((it) => find(it));
/** @type {HTMLInputElement[]} */
const [user, password, firstRoom, nextRoom] = ['[name=user]', '[name=password]', '#login [name=room]', '#join [name=room]'].map((it) => find(it));
/** @type {HTMLTextAreaElement} */
const text = find('#text');

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: 'short' });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: 'full' });
const order = new Intl.Collator(undefined, { numeric: true }).compare;
const narrow = matchMedia('(max-width: 60rem)');
/** Where focus does not open a keyboard over half of the page. */
const hovers = matchMedia('(hover: hover)').matches;

/** @type {Map<string, View>} */
const views = new Map();
/** @type {View | undefined} */
let shown;
let entering = 0;
/** What the tab remembers: never a password. */
let memory = { user: '', rooms: [''] };
try {
	memory = JSON.parse(sessionStorage.chinwag);
} catch {
	// Nothing.
}

function remember(rooms = [...views.keys()]) {
	memory = { user: user.value, rooms };
	try {
		sessionStorage.chinwag = JSON.stringify(memory);
	} catch {
		// The browser keeps nothing.
	}
}

let frame = 0;
let people = 0;

/** Draws once a frame, whatever arrives, and people four times a second; less often while nobody looks. */
function draw() {
	frame ||= document.hidden ? Number(setTimeout(drawNow, 500)) : requestAnimationFrame(drawNow);
}

function drawNow() {
	frame = 0;
	drawRooms();
	drawLog();
	people ||= Number(setTimeout(drawPeople, 250));
}

function drawRooms() {
	let all = 0;
	for (const { button, room, unread } of views.values()) {
		all += unread;
		button.setAttribute('aria-current', String(room === shown?.room));
		button.replaceChildren(element('bdi', '', room.name));
		if (unread && room !== shown?.room) button.append(element('span', 'unread', String(unread)), element('span', 'sr', ' unread'));
	}
	find('#title').textContent = shown?.room.name ?? '';
	document.title = `${all ? `(${all}) ` : ''}${shown ? `#${shown.room.name} · ` : ''}chinwag`;
	for (const node of [find('#leave'), find('#show-people'), composer, log]) node.hidden = !shown;
	find('#empty').hidden = !!shown || entering > 0;
}

function drawPeople() {
	people = 0;
	const list = find('#members');
	const { members, count = 0, presence } = shown?.room ?? {};
	const known = new Map(Array.from(list.children, (item) => [item.getAttribute('data-user'), item]));
	const items = [...(members ?? [])].sort(order).slice(0, NAMES).map((user) => {
		const item = known.get(user) ?? element('li', user === client.user ? 'you' : '');
		if (!item.firstChild) item.append(avatar(user), name(user));
		item.setAttribute('data-user', user);
		return item;
	});
	list.replaceChildren(...items);
	const more = count - items.length;
	find('#count').textContent = String(count);
	find('#more').textContent = presence === 'off' ? 'This room does not tell who is here.' : more > 0 ? `and ${more} more` : '';
}

/** The entries that stand in the log, from `top` to before `bottom`, counted from the room's first. */
let top = 0;
let bottom = 0;
/** Whether the reader is at the end, and how much has come since not. */
let stuck = true;
let unseen = 0;

function drawLog() {
	if (!shown) return;
	const { entries, gone } = shown;
	const end = gone + entries.length;
	if (bottom <= gone) {
		log.replaceChildren();
		top = bottom = gone;
		if (gone) log.append(older);
	} else if (top < gone) {
		const height = log.scrollHeight;
		older.remove();
		for (; top < gone; top++) log.firstChild?.remove();
		log.prepend(older);
		// What is read stays where it is.
		log.scrollTop -= height - log.scrollHeight;
	}
	// More may have come and gone since it was drawn.
	const last = entries[bottom - gone - 1];
	if (last?.kind === 'quiet') log.lastElementChild?.replaceWith(render(last));
	for (; bottom < end; bottom++) log.append(render(entries[bottom - gone]));
	if (stuck) log.scrollTop = log.scrollHeight;
	latest.hidden = stuck || !unseen;
	latest.textContent = `${unseen} new message${unseen > 1 ? 's' : ''} ↓`;
}

/** @param {Entry} entry */
function render({ kind, at, user, seq, own, follows, joined, left, ...entry }) {
	if (kind !== 'message') {
		const notice = element('p', `notice ${kind}`, entry.text);
		// Nobody who listens is interrupted for it.
		if (kind === 'quiet') notice.setAttribute('aria-live', 'off');
		for (const users of [joined, left]) {
			const { size } = users;
			if (size && notice.firstChild) notice.append(' · ');
			[...users].slice(0, NAMED).forEach((user, i) => notice.append(i ? (i === size - 1 ? ' and ' : ', ') : '', name(user)));
			if (size > NAMED) notice.append(` and ${size - NAMED} more`);
			if (size) notice.append(users === joined ? ' joined' : ' left');
		}
		return notice;
	}
	const article = element('article', `message${own ? ' own' : ''}${follows ? ' follows' : ''}`);
	article.dataset.seq = String(seq);
	const disc = avatar(user);
	article.style.setProperty('--hue', disc.style.getPropertyValue('--hue'));
	const time = element('time', '', clock.format(at));
	time.dateTime = new Date(at).toISOString();
	time.title = calendar.format(at);
	const header = element('header');
	header.append(name(user, 'sender'), time);
	const body = element('div', 'text');
	body.dir = 'auto';
	fill(body, entry.text, true);
	article.append(disc, header, body);
	return article;
}

/** @param {View} view @param {Entry['kind']} kind @param {Partial<Entry>} entry */
function add(view, kind, entry) {
	const { entries } = view;
	const added = { kind, seq: 0, at: 0, user: '', text: '', own: false, follows: false, joined: new Set(), left: new Set(), ...entry };
	entries.push(added);
	// Who reads further up is given time, though not for ever.
	const most = view === shown && !stuck ? 1.5 * KEPT : KEPT;
	if (entries.length > most) view.gone += entries.splice(0, entries.length - most + (most - KEPT) / 5).length;
	draw();
	return added;
}

/** @param {Extract<ClientEvent, { type: 'message' }>} event */
function message({ room, at, user, text, data, ...event }) {
	const view = views.get(room.name);
	if (!view) return;
	const day = calendar.format(at);
	if (view.day && view.day !== day) add(view, 'day', { text: day });
	view.day = day;
	const last = view.entries.at(-1);
	const follows = last?.kind === 'message' && last.user === user && at - last.at < TOGETHER;
	add(view, 'message', { ...event, at, user, follows, text: text || JSON.stringify(data) });
	if (!event.own && (view !== shown || document.hidden)) view.unread++;
	if (view !== shown) return;
	if (event.own) toEnd();
	else if (!stuck) unseen++;
	speak();
}

/** Messages of late. Many are counted aloud rather than read. */
let burst = 0;

function speak() {
	burst++;
	if (burst === 6) log.setAttribute('aria-live', 'off');
	if (burst > 1) return;
	setTimeout(() => {
		if (burst > 5) find('#announce').textContent = `${burst} new messages`;
		else log.setAttribute('aria-live', 'polite');
		burst = 0;
	}, 3000);
}

/** @param {Extract<ClientEvent, { type: 'presence' }>} event */
function presence({ room, joined, left }) {
	const view = views.get(room.name);
	draw();
	const others = joined.filter((user) => user !== client.user);
	if (!view || others.length + left.length === 0) return;
	let last = view.entries.at(-1);
	if (last?.kind !== 'quiet' || last.joined.size + last.left.size > KEPT) last = add(view, 'quiet', {});
	for (const user of others) if (!last.left.delete(user)) last.joined.add(user);
	for (const { user } of left) if (!last.joined.delete(user)) last.left.add(user);
}

/** @param {Room} room */
function viewOf(room) {
	let view = views.get(room.name);
	if (!view) {
		const button = element('button');
		button.dataset.room = room.name;
		button.onclick = () => show(room.name);
		view = { room, entries: [], gone: 0, unread: 0, draft: '', back: '', button, day: '' };
		views.set(room.name, view);
		const item = element('li');
		item.append(button);
		find('#rooms').append(item);
		remember();
	}
	view.room = room;
	return view;
}

/** @param {string} room */
function close(room) {
	views.get(room)?.button.parentElement?.remove();
	views.delete(room);
	remember();
	if (shown?.room.name === room) show([...views.keys()].pop() ?? '');
}

/** @param {string} room */
function show(room) {
	if (shown) shown.draft = text.value;
	shown = views.get(room);
	if (shown) shown.unread = 0;
	log.setAttribute('aria-label', `Messages in ${room}`);
	text.placeholder = `Message #${room}`;
	text.value = shown?.draft ?? '';
	// Another room is no news to be read out.
	log.setAttribute('aria-live', 'off');
	setTimeout(() => log.setAttribute('aria-live', 'polite'), 500);
	log.replaceChildren();
	top = bottom = 0;
	toEnd();
	drawer('');
	drawRooms();
	drawPeople();
	measure();
	if (hovers) (shown ? text : nextRoom).focus();
}

function toEnd() {
	stuck = true;
	unseen = 0;
	draw();
}

/** @param {ClientEvent} event */
function hear(event) {
	if (event.type === 'message') message(event);
	else if (event.type === 'presence') presence(event);
	else if (event.type === 'state') tell(event);
	else if (event.type === 'joined') {
		const view = viewOf(event.room);
		if (event.gap) add(view, 'gap', { text: 'The connection was lost for a while. Messages of that time may be missing here.' });
		draw();
	} else {
		complain(
			event.type === 'refused'
				? `You could not come back into #${event.room}. ${refused(event.refusal)}`
				: `You were taken out of #${event.room}${event.reason === 'kicked' ? '.' : ' after a long silence.'} Join it again if you like.`,
		);
		close(event.room);
	}
}

/** @param {Extract<ClientEvent, { type: 'state' }>} event */
function tell({ state, transport, reason }) {
	const cut = !navigator.onLine && (state === 'waiting' || state === 'connecting');
	status.dataset.state = cut ? 'offline' : state;
	status.dataset.transport = transport;
	const back = cut ? 'Your device is offline.' : waiting(reason);
	const online = transport === 'polling' ? 'Online, by polling' : 'Online';
	status.textContent = { offline: '', connecting: reason ? back : 'Connecting…', online, waiting: back, ended: 'Logged out' }[state];
	find('#retry').hidden = state !== 'waiting';
	for (const form of [composer, find('#join')]) form.toggleAttribute('inert', state === 'ended');
	if (!door.hidden && state === 'waiting') {
		complain(back);
		enter.textContent = 'Cancel';
	}
	if (state !== 'ended' || !reason) return;
	complain(ended(reason));
	again.hidden = false;
}

// Says what is wrong, in words; or that nothing is.
function complain(words = '') {
	problem.textContent = words;
	banner.hidden = !words;
	again.hidden = true;
}

/** @param {unknown} error */
function complainOf(error) {
	// The end of the session has been told, and matters more.
	if (!again.hidden) return;
	complain(error instanceof Refusal ? refused(error) : 'Something went wrong in this page. Reload it.');
	if (!(error instanceof Refusal)) throw error;
}

/** @param {string} room @param {boolean} visible */
async function join(room, visible) {
	entering++;
	try {
		await client.join(room);
		if (visible || !shown) show(room);
		return true;
	} catch (error) {
		complainOf(error);
	} finally {
		entering--;
		draw();
	}
}

async function logIn() {
	if (enter.textContent === 'Cancel') return client.logout();
	if (client.state === 'connecting') return;
	complain();
	enter.textContent = 'Entering…';
	const rooms = new Set([firstRoom.value.trim() || about.room || '', ...memory.rooms].filter(Boolean));
	try {
		await client.login({ user: user.value.trim(), ...(password.value && { password: password.value }) });
	} catch (error) {
		const { code } = /** @type {Refusal} */ (error);
		complain();
		if (code !== 'lost') complainOf(error);
		return (code === 'auth_failed' && password.offsetParent ? password : user).select();
	} finally {
		enter.textContent = 'Enter';
	}
	password.value = '';
	complain();
	door.hidden = true;
	chat.hidden = false;
	main.insertBefore(banner, composer);
	find('#me').replaceChildren(avatar(client.user), name(client.user));
	const [first, ...rest] = rooms;
	if (first) await join(first, true);
	for (const room of rest) void join(room, false);
}

/** @param {string[]} rooms To be entered next time. */
function logOut(rooms) {
	client.logout();
	for (const room of [...views.keys()]) close(room);
	remember(rooms);
	complain();
	chat.hidden = true;
	door.hidden = false;
	login.insertBefore(banner, enter);
	user.select();
}

find('#logout').onclick = () => logOut([]);
again.onclick = () => logOut([...views.keys()]);
onsubmit = async (event) => {
	event.preventDefault();
	if (event.target === login) return logIn();
	if (event.target === composer) return send();
	complain();
	if (await join(nextRoom.value.trim(), true)) nextRoom.value = '';
};
find('#leave').onclick = () => {
	const room = shown?.room.name ?? '';
	// Whatever the server says, the reader has left.
	client.leave(room).catch(() => {});
	close(room);
};
find('#dismiss').onclick = () => again.hidden && complain();
find('#retry').onclick = () => client.nudge();
latest.onclick = toEnd;

// Fits box and counter to the text; gives by how many bytes it is too long.
function measure() {
	text.style.height = 'auto';
	text.style.height = `${text.scrollHeight + 2}px`;
	const most = client.session?.limits.message_bytes ?? 4096;
	const over = new TextEncoder().encode(text.value).length - most;
	const left = find('#left');
	left.textContent = over > 0 ? `${over} bytes too long` : over > most * -0.2 ? `${-over} bytes left` : '';
	left.classList.toggle('over', over > 0);
	return over;
}

async function send() {
	const view = shown;
	const words = text.value;
	if (!view || !words.trim()) return;
	if (measure() > 0) return complainOf(new Refusal('message_too_long'));
	text.value = view.back = '';
	text.focus();
	measure();
	try {
		await client.send(view.room.name, words);
		if (again.hidden) complain();
	} catch (error) {
		// What was refused is kept in order, before what was written since.
		const draft = view === shown ? text.value : view.draft;
		const before = draft.startsWith(view.back) ? view.back : '';
		const since = draft.slice(before.length).trimStart();
		view.back = before ? `${before}\n${words}` : words;
		view.draft = since ? `${view.back}\n${since}` : view.back;
		if (view === shown) text.value = view.draft;
		measure();
		complainOf(error);
	}
}

text.oninput = measure;
text.onkeydown = (event) => {
	if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
	event.preventDefault();
	void send();
};

// Opens a drawer of a small screen, or closes both.
/** @param {'side' | 'people' | ''} which */
function drawer(which) {
	const was = chat.dataset.drawer;
	const wide = !narrow.matches && !chat.matches('.no-people');
	chat.dataset.drawer = which;
	scrim.hidden = !which;
	main.toggleAttribute('inert', !!which);
	find('#show-side').setAttribute('aria-expanded', String(which === 'side'));
	find('#show-people').setAttribute('aria-expanded', String(wide || which === 'people'));
	if (which) find(which === 'side' ? '#side button' : '#members').focus();
	else if (was) find(`#show-${was}`).focus();
}

find('#show-side').onclick = () => drawer('side');
find('#show-people').onclick = () => {
	if (!narrow.matches) chat.classList.toggle('no-people');
	drawer(narrow.matches ? 'people' : '');
};
scrim.onclick = narrow.onchange = () => drawer('');
onkeydown = (event) => {
	if (event.key === 'Escape') drawer('');
};

log.onscroll = () => {
	stuck = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
	if (stuck && unseen) toEnd();
};
new ResizeObserver(() => {
	if (stuck) log.scrollTop = log.scrollHeight;
}).observe(log);
// Some systems lay their keyboard over the page.
visualViewport?.addEventListener('resize', () => {
	const { height = 0, scale = 1 } = visualViewport ?? {};
	document.documentElement.style.setProperty('--height', `${Math.round(height * scale)}px`);
});

ononline = onoffline = () => client.nudge();
onpagehide = () => client.suspend();
document.onvisibilitychange = () => {
	// A frame that was asked for may not come.
	frame = 0;
	if (shown && !document.hidden) shown.unread = 0;
	draw();
	client.nudge();
};

/** @type {About} */
const about = await fetch('/chinwag.json').then((answer) => answer.json()).catch(complainOf);
const client = new Client({ ...about, url: location.origin }, hear);
find('#rule').textContent = about.names;
find('#password').hidden = about.password === 'none';
password.required = about.password === 'required';
if (!password.required) password.placeholder = 'if you have one';
user.value = memory.user;
firstRoom.value = location.hash.slice(1) || memory.rooms[0] || about.room || '';
if (hovers) (user.value ? enter : user).focus();
document.documentElement.dataset.ready = 'true';
