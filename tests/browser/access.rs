//! The page for those who do not use a mouse, do not see it, or see it badly.

use serde_json::{Value, json};

use super::{Chat, members_site, site};
use crate::harness::{Browser, Client, Key, Over, Page, STAFF, Screen};

/// The name by which a screen reader calls an element; a few of the rules by which browsers compute it.
const NAME: &str = r"
    const nameOf = (element) => {
        const by = element.getAttribute('aria-labelledby');
        if (by) return by.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? '').join(' ').trim();
        if (element.ariaLabel) return element.ariaLabel.trim();
        if (element.labels?.length) return [...element.labels].map((label) => label.innerText).join(' ').trim();
        if (['button', 'a', 'summary'].includes(element.localName)) return element.textContent.trim();
        return (element.title || '').trim();
    };
";

/// Elements with a text of their own that can be seen, each with its contrast against what is behind it.
const CONTRASTS: &str = r"
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    // Whatever notation a colour is in, a canvas knows it.
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a)];
    const behind = (element) => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) {
            const colour = rgba(getComputedStyle(at).backgroundColor);
            layers.push(colour);
            if (colour[3] === 1) break;
        }
        const canvasColour = matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
        return layers.reverse().reduce((below, layer) => over(layer, below), canvasColour);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const opacity = (element) => {
        let all = 1;
        for (let at = element; at; at = at.parentElement) all *= Number(getComputedStyle(at).opacity);
        return all;
    };
    const found = [];
    for (const element of document.querySelectorAll('body, body *')) {
        const texts = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
        const field = ['input', 'textarea'].includes(element.localName);
        if ((!texts.length && !field) || !element.checkVisibility({ visibilityProperty: true }) || element.disabled) continue;
        if (['script', 'style', 'option'].includes(element.localName)) continue;
        const parts = field && element.placeholder ? [null, '::placeholder'] : [null];
        for (const part of parts) {
            const below = behind(element);
            const [r, g, b, a] = rgba(getComputedStyle(element, part).color);
            const strength = a * opacity(element) * (part ? Number(getComputedStyle(element, part).opacity) : 1);
            const [high, low] = [light(over([r, g, b, strength], below)), light(below)].sort((x, y) => y - x);
            const ratio = (high + 0.05) / (low + 0.05);
            found.push([ratio, `${element.localName}#${element.id}.${element.className}${part ?? ''} ${texts[0]?.data.trim().slice(0, 30) ?? ''}`]);
        }
    }
    return found;
";

/// What the keyboard can reach, in the order of the document; a group of radio buttons counts once.
const REACHABLE: &str = "[...document.querySelectorAll('a[href], button, input, textarea, select, summary, [tabindex]')]\
    .filter((element) => element.checkVisibility({ visibilityProperty: true }) && !element.disabled && element.tabIndex >= 0)";

/// All rules that do not need a user's hands.
async fn is_readable(page: &Page<'_>, what: &str) {
    let body = format!(
        r"{NAME}
        const faults = [];
        const fault = (rule, element) => faults.push(`${{rule}}: ${{element.outerHTML.slice(0, 160)}}`);
        const seen = (element) => element.checkVisibility({{ visibilityProperty: true }});
        for (const element of document.querySelectorAll('input, textarea, select, button, a[href], [tabindex]')) {{
            if (seen(element) && element.type !== 'hidden' && !nameOf(element)) fault('no name', element);
            if (element.tabIndex > 0) fault('positive tabindex', element);
        }}
        for (const element of document.querySelectorAll('img, svg')) {{
            // What is in a button is part of its name, and it has one.
            if (!element.closest('button') && element.getAttribute('aria-hidden') !== 'true' && !element.ariaLabel && !element.hasAttribute('alt')) fault('no text', element);
        }}
        for (const element of document.querySelectorAll('[aria-labelledby], [aria-describedby], [aria-controls], label[for]')) {{
            const ids = ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for'].flatMap((name) => (element.getAttribute(name) ?? '').split(/\s+/));
            for (const id of ids) if (id && !document.getElementById(id)) fault(`no element ${{id}}`, element);
        }}
        const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
        for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push(`id ${{id}} twice`);
        if (!document.documentElement.lang) faults.push('no language');
        if (!document.title.trim()) faults.push('no title');
        if ([...document.querySelectorAll('main, [role=main]')].filter(seen).length !== 1) faults.push('not one main');
        if ([...document.querySelectorAll('h1')].filter(seen).length !== 1) faults.push('not one h1');
        const zoom = document.querySelector('meta[name=viewport]')?.content ?? '';
        if (!zoom.includes('width=device-width') || /user-scalable\s*=\s*(no|0)|maximum-scale/.test(zoom)) faults.push(`viewport: ${{zoom}}`);
        return faults;
        "
    );
    let faults = page.run(&body, ()).await;
    assert_eq!(faults, json!([]), "{what}: {faults:#}");
}

/// Every text stands out from its background, as WCAG's level AA asks.
async fn has_contrast(page: &Page<'_>, what: &str) {
    let contrasts = page.run(CONTRASTS, ()).await;
    let contrasts: Vec<(f64, String)> = serde_json::from_value(contrasts).unwrap();
    assert!(contrasts.len() >= 4, "{what}: {contrasts:?}");
    let faint: Vec<_> = contrasts.iter().filter(|(ratio, _)| *ratio < 4.5).collect();
    assert!(faint.is_empty(), "{what}: {faint:#?}");
}

/// Tab goes to everything once, in the order in which it stands there, and shows where it is.
async fn is_reached_by_tab(page: &Page<'_>, what: &str) {
    let start = format!(
        "document.activeElement?.blur(); getSelection().removeAllRanges(); window.wanted = {REACHABLE}; window.reached = []; \
         window.plain = window.wanted.map((element) => {{ const style = getComputedStyle(element); \
         return [style.outlineStyle, style.outlineWidth, style.boxShadow, style.borderColor, style.backgroundColor].join(' '); }}); \
         return window.wanted.length;"
    );
    let many = page.run(&start, ()).await.as_u64().unwrap();
    assert!(many >= 3, "{what}: {many} elements can be reached");
    // The browser begins where the focus was last: at the top only after a round.
    for _ in 0..=many * 2 {
        page.press(Key::TAB, &[]).await;
        let note = "const at = document.activeElement; const index = window.wanted.indexOf(at); \
            const style = getComputedStyle(at); \
            const looks = [style.outlineStyle, style.outlineWidth, style.boxShadow, style.borderColor, style.backgroundColor].join(' '); \
            window.reached.push([index, index < 0 ? at.outerHTML.slice(0, 120) : '', index < 0 || looks !== window.plain[index]]);";
        page.run(note, ()).await;
    }
    let reached = page.run("return window.reached;", ()).await;
    let reached: Vec<(i64, String, bool)> = serde_json::from_value(reached).unwrap();
    let names = page
        .run(
            "return window.wanted.map((element) => element.outerHTML.slice(0, 80));",
            (),
        )
        .await;
    let order: Vec<i64> = reached.iter().map(|(index, _, _)| *index).collect();
    let first = order.iter().position(|index| *index == 0);
    let round = first.and_then(|first| order.get(first..first + many as usize));
    let expected: Vec<i64> = (0..many as i64).collect();
    assert_eq!(
        round,
        Some(&expected[..]),
        "{what}: {reached:?} of {names:#}"
    );
    for (index, html, shown) in reached {
        assert!(
            index >= 0 || html.starts_with("<body"),
            "{what}: focus in {html}"
        );
        assert!(
            shown,
            "{what}: focus is not seen on {}",
            names[index as usize]
        );
    }
}

/// What a browser tells a screen reader of an element: its role and its name.
async fn role_and_name(page: &Page<'_>, selector: &str) -> (String, String) {
    let body = format!(
        "{NAME} const found = document.querySelector(arguments[0]); \
        return [found.getAttribute('role') ?? found.localName, nameOf(found)];"
    );
    serde_json::from_value(page.run(&body, selector).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_used_without_a_mouse_and_without_seeing_it() {
    let server = members_site().start().await;
    let browser = Browser::start().await;
    let chat = Chat::open(&browser, server.addr(Over::WebSocket)).await;
    for screen in [Screen::DESKTOP, Screen::PHONE.dark()] {
        chat.fits(screen).await;
        is_readable(&chat.page, "the log-in").await;
        has_contrast(&chat.page, "the log-in").await;
    }
    chat.page.look(Screen::DESKTOP).await;
    is_reached_by_tab(&chat.page, "the log-in").await;
    let (user, password, _) = STAFF[0];
    chat.log_in(user, "wrong", "tea").await;
    chat.complains().await;
    let alert = role_and_name(&chat.page, "#problem").await;
    assert_eq!(alert.0, "alert");
    for screen in [Screen::DESKTOP, Screen::DESKTOP.dark()] {
        chat.page.look(screen).await;
        has_contrast(&chat.page, "a complaint").await;
    }
    // The whole log-in by keyboard: Enter in a field sends the form.
    chat.page
        .fill("#login input[name=password]", password)
        .await;
    chat.page.press(Key::ENTER, &[]).await;
    chat.is_in("tea").await;
    let focus = "document.activeElement === document.querySelector('#composer textarea')";
    chat.page
        .until("the focus to be where one writes", focus, ())
        .await;
    chat.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_can_be_followed_without_a_mouse_and_without_seeing_it() {
    let server = site().start().await;
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, server.addr(Over::WebSocket), "ann", "tea").await;
    chat.join("garden").await;
    chat.turn_to("tea").await;
    let mut ben = Client::login(server.addr(Over::Tcp), Over::Tcp, "ben").await;
    ben.enter("tea").await;
    ben.say("tea", "see https://example.org/").await;
    chat.say("I do").await;
    chat.sees("ben", "see https://example.org/").await;
    chat.sees("ann", "I do").await;

    let log = role_and_name(&chat.page, "#log").await;
    assert_eq!(log.0, "log");
    assert!(log.1.contains("tea"), "{log:?}");
    // Not while a room is put in place of another one.
    let live = "document.querySelector('#log').ariaLive === 'polite'";
    chat.page
        .until("new messages to be read out", live, ())
        .await;
    let keys = "return document.querySelector('#log').tabIndex;";
    assert_eq!(
        chat.page.run(keys, ()).await,
        0,
        "the log can't be scrolled by keys"
    );
    let status = role_and_name(&chat.page, "#status").await;
    assert_eq!(status.0, "status");
    // A screen reader is told of a message by its sender, its time and its text.
    let article = chat
        .texts(
            "(() => { const article = document.querySelector('#log article.message'); \
            return [article.innerText, article.querySelector('time').dateTime]; })()",
        )
        .await;
    assert!(
        article[0].contains("ben") && article[0].contains("see https"),
        "{article:?}"
    );
    let valid = "return !Number.isNaN(Date.parse(arguments[0]));";
    assert_eq!(
        chat.page.run(valid, article[1].as_str()).await,
        true,
        "{article:?}"
    );

    for screen in [
        Screen::DESKTOP,
        Screen::DESKTOP.dark(),
        Screen::PHONE,
        Screen::PHONE.dark(),
    ] {
        let what = format!("a conversation on {screen:?}");
        chat.fits(screen).await;
        is_readable(&chat.page, &what).await;
        has_contrast(&chat.page, &what).await;
        is_reached_by_tab(&chat.page, &what).await;
    }
    targets_are_large(&chat.page).await;
    // A desktop on which everything was made four times as large.
    let enlarged = Screen {
        width: 320,
        height: 400,
        ..Screen::DESKTOP
    };
    chat.fits(enlarged).await;
    chat.page.look(Screen::PHONE).await;
    let drawers = chat
        .texts("[...document.querySelectorAll('button[aria-controls]')].map((button) => button.id)")
        .await;
    assert_eq!(drawers.len(), 2, "{drawers:?}");
    for id in &drawers {
        drawer_opens_and_closes(&chat.page, id).await;
    }
    stands_still(&chat.page).await;
    chat.is_unharmed().await;
    browser.close().await;
}

/// A phone has no place for rooms and people beside the conversation: they come when they are wanted.
async fn drawer_opens_and_closes(page: &Page<'_>, id: &str) {
    let button = format!("#{id}");
    let open = "(() => { const button = document.querySelector(arguments[0]); \
        const drawer = document.getElementById(button.getAttribute('aria-controls')); \
        const box = drawer.getBoundingClientRect(); \
        const seen = drawer.checkVisibility({ visibilityProperty: true }) && box.left < innerWidth && box.right > 0; \
        return String([button.ariaExpanded === 'true', seen, drawer.contains(document.activeElement)]); })()";
    let closed = format!("{open} === 'false,false,false'");
    page.until(&format!("{id} to be closed"), &closed, button.as_str())
        .await;
    page.click(&button).await;
    let opened = format!("{open} === 'true,true,true'");
    page.until(
        &format!("{id} to be open, with the focus in it"),
        &opened,
        button.as_str(),
    )
    .await;
    page.settled().await;
    has_contrast(page, id).await;
    page.press(Key::ESCAPE, &[]).await;
    page.until(&format!("{id} to be closed"), &closed, button.as_str())
        .await;
    let back = "document.activeElement === document.querySelector(arguments[0])";
    page.until("the focus to be back", back, button.as_str())
        .await;
}

/// On a phone, what is touched is large enough to be hit.
async fn targets_are_large(page: &Page<'_>) {
    page.look(Screen::PHONE).await;
    let small = page
        .run(
            "return [...document.querySelectorAll('button, input, textarea')].filter((element) => element.checkVisibility())\
            .map((element) => [element.outerHTML.slice(0, 80), element.getBoundingClientRect()])\
            .filter(([, box]) => box.height < 24 || box.width < 24);",
            (),
        )
        .await;
    assert_eq!(small, json!([]), "too small to be touched");
    // Phones zoom into fields with smaller letters, and stay there.
    let letters = page
        .run(
            "return Math.min(...[...document.querySelectorAll('input, textarea')]\
            .filter((field) => field.checkVisibility()).map((field) => parseFloat(getComputedStyle(field).fontSize)));",
            (),
        )
        .await;
    assert!(
        letters.as_f64() >= Some(16.0),
        "letters of {letters} px in a field"
    );
}

/// Nothing moves by itself for those who asked for that.
async fn stands_still(page: &Page<'_>) {
    page.wish("prefers-reduced-motion", "reduce").await;
    let moving = page
        .run(
            "return [...document.querySelectorAll('*')].filter((element) => { \
            const style = getComputedStyle(element); \
            const long = (times) => times.split(',').some((time) => parseFloat(time) > 0.01); \
            return long(style.transitionDuration) || (style.animationName !== 'none' && long(style.animationDuration)) \
                || style.scrollBehavior === 'smooth'; })\
            .map((element) => element.outerHTML.slice(0, 80));",
            (),
        )
        .await;
    assert_eq!(
        moving,
        Value::Array(vec![]),
        "moves though less motion is wanted"
    );
}
