/** Text of other people, shown as text and nothing else. */

/** What would reorder or hide what stands around it: bidirectional controls, and others. */
const TRICKS = '\\u0000-\\u0008\\u000b-\\u001f\\u007f\\u202a-\\u202e\\u2066-\\u2069';
const PIECES = new RegExp(`https?://[^\\s<>"'\`${TRICKS}]+|[${TRICKS}]`, 'gi');

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {string} [classes] @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, classes, text = '') {
	const made = document.createElement(tag);
	if (classes) made.className = classes;
	made.textContent = text;
	return made;
}

// Appends text: tricks are made visible, and addresses of the web can be followed if `links`.
/** @param {HTMLElement} node @param {string} text */
export function fill(node, text, links = false) {
	let end = 0;
	for (const { 0: found, index = 0 } of text.matchAll(PIECES)) {
		const piece = found.length === 1 ? trick(found) : links && link(found);
		if (!piece) continue;
		node.append(text.slice(end, index), piece);
		end = index + (found.length === 1 ? 1 : (piece.textContent ?? '').length);
	}
	node.append(text.slice(end));
}

/** @param {string} control */
const trick = (control) => element('span', 'trick', `U+${control.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`);

// Shows all of where it leads. None to addresses with credentials: `https://bank.example@evil.example`.
/** @param {string} text */
function link(text) {
	// What ends a sentence does not belong to it, nor does a bracket that was opened before.
	const shown = text.replace(text.includes('(') ? /[.,:;!?]+$/ : /[.,:;!?)]+$/, '');
	try {
		const url = new URL(shown);
		if (url.username || url.password) return;
		const made = element('a', '', shown);
		made.href = made.title = url.href;
		made.dir = 'ltr';
		made.target = '_blank';
		made.rel = 'noopener noreferrer nofollow';
		return made;
	} catch {
		// No address after all.
	}
}

// A name, which never reorders what stands beside it.
/** @param {string} user @param {string} [classes] */
export function name(user, classes) {
	const made = element('bdi', classes);
	fill(made, user);
	return made;
}

// A disc with the first letter of a name, and a hue that is always the same for it.
/** @param {string} user */
export function avatar(user) {
	const [first = '?'] = user.replace(/^[^\p{L}\p{N}]+/u, '');
	const made = element('span', 'avatar', first.toUpperCase());
	made.setAttribute('aria-hidden', 'true');
	let hash = 0;
	for (const c of user.toLowerCase()) hash = Math.imul(hash ^ c.charCodeAt(0), 0x9e3779b1);
	made.style.setProperty('--hue', String(((hash >>> 8) % 24) * 15));
	return made;
}
