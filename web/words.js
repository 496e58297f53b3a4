/** The protocol's codes in words, with what to do. */

// Why one thing was refused. After a colon comes what the server says.
/** @type {Record<string, string>} */
const REFUSED = {
	too_large: 'That is too much at once. Send it in parts.',
	not_logged_in: 'The server does not know you any more. Log in again.',
	already_logged_in: 'You are logged in already.',
	auth_failed: 'You were not let in. Check name and password. The server says:',
	session_refused: 'You were not let in:',
	session_expired: 'Your session has ended. Log in again.',
	name_invalid: 'This name can’t be used here. Choose another.',
	name_in_use: 'Somebody has that name now. Choose another, or try again later.',
	room_invalid: 'A room’s name has 1 to 64 small letters (a to z), digits, dots, colons, dashes or underscores.',
	forbidden: 'That is not allowed here:',
	not_joined: 'You are not in this room any more. Join it again.',
	message_empty: 'There is nothing in this message. Write something first.',
	message_too_long: 'This message is too long. Shorten it, or send it in parts.',
	message_rejected: 'Change this message before you send it again:',
	rate_limited: 'That was too fast:',
	too_many: 'There is no room for more:',
	unavailable: 'The server can’t do that right now. Try again later.',
	shutting_down: 'The server is about to stop. Try again in a moment.',
	internal: 'Something went wrong in the server. Try again; if it stays so, tell whoever runs it.',
	unreachable: 'The server can’t be reached. Check your connection, then try again.',
	lost: 'The connection was lost. What you did may have arrived or not: look before you do it again.',
	busy: 'Too much waits to be sent. Try again in a moment.',
};

// Why nobody comes back without being asked to.
/** @type {Record<string, string>} */
const ENDED = {
	logout: 'You are logged out.',
	replaced: 'You logged in elsewhere, and only one place at a time is allowed. Log in here to take over.',
	superseded: 'This session goes on in another window. Use that one, or log in here again.',
	auth_failed: 'Too many wrong log-ins. Check name and password, then log in again.',
	auth_expired: 'Your log-in is no longer valid. Log in again.',
	kicked: 'You were removed by whoever runs the server. Ask them before you log in again.',
	abuse: 'You broke the server’s limits or rules too often. Wait a while, then log in again.',
	name_in_use: 'Your name is still taken, maybe by your own lost session. Log in under another, or try again later.',
};

// Why it waits to come back by itself.
/** @type {Record<string, string>} */
const WAITING = {
	shutting_down: 'The server restarts.',
	session_expired: 'The server heard nothing from you for long.',
	slow_consumer: 'Your connection is too slow for all that is said.',
	unavailable: 'The server lacks something that it needs.',
	rate_limited: 'The server asks for patience.',
	too_many: 'The server is full.',
	name_in_use: 'Your own lost session still has your name.',
};

/** @param {Reason} reason */
export function refused({ code, message, retryMs }) {
	const words = REFUSED[code] ?? 'Page and server misunderstood each other. Reload the page; if it stays so, tell whoever runs the server:';
	const wait = retryMs ? ` Wait ${retryMs > 1000 ? `${Math.ceil(retryMs / 1000)} seconds` : 'a second'}, then try again.` : '';
	return `${words}${words.endsWith(':') ? ` ${message}` : ''}${wait}`;
}

/** @param {Reason} reason */
export const ended = (reason) => ENDED[reason.code] ?? refused(reason);

/** @param {?Reason} reason */
export const waiting = (reason) => `${WAITING[reason?.code ?? ''] ?? 'The connection was lost.'} Trying again…`;
