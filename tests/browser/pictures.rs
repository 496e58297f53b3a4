//! The pictures in `docs/images`: an evening of people who chat, on the page and in a terminal.
//!
//! Each run makes them and compares their sizes with those that are there; with `CHINWAG_UPDATE=1` it replaces them.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::{Chat, site, tool::Terminal};
use crate::harness::{Browser, Client, Over, Program, Screen};

/// The largest that a picture may be, in bytes.
const LARGEST: usize = 150_000;

/// How many of [`EVENING`] go before the user of the pictures comes.
const BEFORE: usize = 5;

/// What people do, when and where: nothing said is to come.
const EVENING: &[(&str, &str, &str, &str)] = &[
    ("19:02", "lobby", "Maya", ""),
    ("19:02", "lobby", "Oskar", ""),
    ("19:03", "garden", "Tomasz", ""),
    ("19:03", "garden", "Maya", ""),
    ("19:20", "lobby", "Priya", ""),
    (
        "19:31",
        "lobby",
        "Oskar",
        "Evening all. Is the walk on Saturday still happening?",
    ),
    (
        "19:33",
        "lobby",
        "Maya",
        "It is! We meet at the north gate, half past nine.",
    ),
    ("19:34", "lobby", "Ines", ""),
    (
        "19:35",
        "lobby",
        "Ines",
        "Hello! I have just moved here. May I join you?",
    ),
    ("19:35", "lobby", "Maya", "Of course, the more the merrier."),
    (
        "19:36",
        "lobby",
        "Maya",
        "The map: https://maps.example.org/river-walk",
    ),
    (
        "19:38",
        "garden",
        "Tomasz",
        "The first tomatoes are ripe, far too many for me alone.",
    ),
    (
        "19:41",
        "lobby",
        "Priya",
        "Is it muddy? I only have my town shoes with me.",
    ),
    (
        "19:42",
        "lobby",
        "Ines",
        "I can lend you boots, if you take a 39.",
    ),
];

/// A server with people in it, whose wall clock the test sets.
struct Evening {
    server: Program,
    people: Vec<Client>,
    clock: TempDir,
}

impl Evening {
    async fn begin() -> Self {
        let clock = tempfile::tempdir().unwrap();
        let file = clock.path().join("now");
        std::fs::write(&file, "@2026-09-18 19:00:00").unwrap();
        // The server's own monotonic clock stays as it is: only what people read is another evening's.
        let before = format!(
            "export LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketimeMT.so.1) TZ=UTC \
             FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1",
            file.display()
        );
        let server = Program::start_in_shell(&site(), &before).await;
        Self {
            server,
            people: Vec::new(),
            clock,
        }
    }

    fn at(&self, time: &str) {
        let file = self.clock.path().join("now");
        // In the middle of the minute: the clock starts a little earlier than it is set to.
        std::fs::write(file, format!("@2026-09-18 {time}:30")).unwrap();
    }

    /// What one of the people does.
    async fn act(&mut self, time: &str, room: &str, who: &str, what: &str) {
        self.at(time);
        if !self.people.iter().any(|client| client.name == who) {
            let line = self.server.table("line");
            self.people.push(Client::login(line, Over::Tcp, who).await);
        }
        let person = self.people.iter_mut().find(|client| client.name == who);
        let person = person.unwrap();
        match what {
            "" => drop(person.join(room).await),
            text => {
                let sent = person.say(room, text).await;
                assert!(sent["at"].is_u64());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_the_page_show_a_conversation() {
    let mut evening = Evening::begin().await;
    let web = evening.server.table("web");
    for (time, room, who, what) in &EVENING[..BEFORE] {
        evening.act(time, room, who, what).await;
    }
    evening.at("19:29");
    let browser = Browser::start().await;
    let chat = Chat::open(&browser, web).await;
    let utc = json!({"timezoneId": "UTC"});
    chat.page.cdp("Emulation.setTimezoneOverride", utc).await;
    let english = json!({"locale": "en-GB"});
    chat.page.cdp("Emulation.setLocaleOverride", english).await;
    chat.page.reload().await;
    chat.is_ready().await;
    chat.log_in("Hannah", "", "lobby").await;
    chat.is_in("lobby").await;
    for room in ["garden", "book-club"] {
        chat.join(room).await;
    }
    chat.turn_to("lobby").await;
    for (time, room, who, what) in &EVENING[BEFORE..] {
        evening.act(time, room, who, what).await;
        if *room == "lobby" && !what.is_empty() {
            chat.sees(who, what).await;
        }
    }
    evening.at("19:44");
    chat.say("I will bring the thermos flask and a cake.").await;
    chat.sees("Hannah", "I will bring the thermos flask and a cake.")
        .await;
    evening
        .act("19:45", "lobby", "Oskar", "Then nothing can go wrong.")
        .await;
    chat.sees("Oskar", "Then nothing can go wrong.").await;
    chat.notices("Ines joined").await;
    for (name, screen) in [
        ("page", Screen::DESKTOP),
        ("page-dark", Screen::DESKTOP.dark()),
        ("phone", Screen::PHONE),
        ("phone-dark", Screen::PHONE.dark()),
    ] {
        chat.page.look(screen).await;
        keep(&browser, name, screen, &chat.page.screenshot().await).await;
    }
    chat.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_of_the_terminal_shows_a_conversation() {
    let mut evening = Evening::begin().await;
    let line = evening.server.table("line");
    for (time, room, who, what) in &EVENING[..BEFORE] {
        evening.act(time, room, who, what).await;
    }
    evening.at("19:29");
    let (columns, rows) = (84, 16);
    let terminal = Terminal::start(columns, rows).await;
    terminal
        .type_line(&format!("chinwag chat tcp://{line} --user Hannah"))
        .await;
    terminal.shows("lobby").await;
    for (time, room, who, what) in &EVENING[BEFORE..] {
        evening.act(time, room, who, what).await;
        if *room == "lobby" && !what.is_empty() {
            terminal
                .shows(what.lines().next().unwrap().split_at(8).0)
                .await;
        }
    }
    evening.at("19:44");
    terminal
        .type_line("I will bring the thermos flask and a cake.")
        .await;
    evening
        .act("19:45", "lobby", "Oskar", "Then nothing can go wrong.")
        .await;
    terminal.shows("Then nothing can go wrong.").await;
    terminal.type_line("/users").await;
    terminal.shows("Hannah, Ines, Maya").await;
    terminal.type_text("See you all").await;
    terminal.shows("See you all").await;
    let screen = Screen {
        width: 760,
        height: 398,
        ..Screen::DESKTOP
    };
    let browser = Browser::start().await;
    let page = browser.window().await;
    page.look(screen).await;
    // The port is another one in each run, and the picture is to stay the same.
    let shown = terminal.capture().await;
    let html = html_of(&shown.replace(&format!(":{}", line.port()), ":4020"));
    page.run(
        "document.documentElement.innerHTML = arguments[0];",
        html.as_str(),
    )
    .await;
    let fits = "return document.documentElement.scrollHeight <= innerHeight \
        && document.documentElement.scrollWidth <= innerWidth;";
    assert_eq!(
        page.run(fits, ()).await,
        true,
        "the terminal is larger than its picture"
    );
    keep(&browser, "terminal", screen, &page.screenshot().await).await;
    browser.close().await;
}

/// Writes a picture where that is asked for; else compares it with the one that is there, as far as a machine can.
async fn keep(browser: &Browser, name: &str, screen: Screen, png: &[u8]) {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images");
    let file = images.join(format!("{name}.png"));
    assert_eq!(size(png), (screen.width, screen.height), "{name}");
    assert!(png.len() < LARGEST, "{name} has {} bytes", png.len());
    let colours = colours(browser, png).await;
    assert!(
        colours >= 12,
        "{name} shows next to nothing: {colours} colours"
    );
    if std::env::var_os("CHINWAG_UPDATE").is_some_and(|update| update == "1") {
        std::fs::create_dir_all(&images).unwrap();
        std::fs::write(&file, png).unwrap();
        return;
    }
    let kept = std::fs::read(&file)
        .unwrap_or_else(|error| panic!("{error}: {} (bash tests/run --update)", file.display()));
    assert_eq!(size(&kept), size(png), "{name}: bash tests/run --update");
    assert!(kept.len() < LARGEST, "{name} has {} bytes", kept.len());
}

/// Width and height of a PNG: the two numbers at the head of its first chunk.
fn size(png: &[u8]) -> (u32, u32) {
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

/// How many colours cover more than a few dots.
async fn colours(browser: &Browser, png: &[u8]) -> u64 {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let count = "
        const image = new Image();
        image.src = 'data:image/png;base64,' + arguments[0];
        return image.decode().then(() => {
            const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
            canvas.drawImage(image, 0, 0);
            const dots = new Uint32Array(canvas.getImageData(0, 0, image.width, image.height).data.buffer);
            const counts = new Map();
            for (const dot of dots) counts.set(dot, (counts.get(dot) ?? 0) + 1);
            return [...counts.values()].filter((count) => count > 4).length;
        });";
    let page = browser.window().await;
    let colours = page.run(count, BASE64_STANDARD.encode(png).as_str()).await;
    page.close().await;
    colours.as_u64().expect("a number")
}

/// The sixteen colours of a terminal, on a dark ground.
const PALETTE: [&str; 16] = [
    "#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#dcdfe4",
    "#7f8896", "#ef8a92", "#b5d99a", "#f0d399", "#8ac6f9", "#d99ae9", "#7fd0da", "#ffffff",
];

/// How a terminal shows a letter.
#[derive(Default, Clone)]
struct Style {
    colour: Option<String>,
    ground: Option<String>,
    bold: bool,
    faint: bool,
    italic: bool,
    underlined: bool,
    inverse: bool,
}

impl Style {
    /// Applies the parameters of one `ESC [ … m`.
    fn select(&mut self, parameters: &str) {
        let mut numbers = parameters
            .split([';', ':'])
            .map(|number| number.parse::<usize>().unwrap_or(0));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.faint = true,
                3 => self.italic = true,
                4 => self.underlined = true,
                7 => self.inverse = true,
                22 => (self.bold, self.faint) = (false, false),
                23 => self.italic = false,
                24 => self.underlined = false,
                27 => self.inverse = false,
                30..=37 => self.colour = Some(PALETTE[number - 30].to_owned()),
                38 => self.colour = extended(&mut numbers),
                39 => self.colour = None,
                40..=47 => self.ground = Some(PALETTE[number - 40].to_owned()),
                48 => self.ground = extended(&mut numbers),
                49 => self.ground = None,
                90..=97 => self.colour = Some(PALETTE[number - 82].to_owned()),
                100..=107 => self.ground = Some(PALETTE[number - 92].to_owned()),
                other => panic!("no style for {other}"),
            }
        }
    }

    fn css(&self) -> String {
        let (mut colour, mut ground) = (
            self.colour.clone().unwrap_or_else(|| "inherit".into()),
            self.ground.clone().unwrap_or_else(|| "transparent".into()),
        );
        if self.inverse {
            colour = self.ground.clone().unwrap_or_else(|| "#1f2430".into());
            ground = self.colour.clone().unwrap_or_else(|| "#dcdfe4".into());
        }
        let mut css = format!("color:{colour};background:{ground}");
        for (on, rule) in [
            (self.bold, ";font-weight:bold"),
            (self.faint, ";opacity:.65"),
            (self.italic, ";font-style:italic"),
            (self.underlined, ";text-decoration:underline"),
        ] {
            css += if on { rule } else { "" };
        }
        css
    }
}

/// A colour of the large palette, or one by its parts.
fn extended(numbers: &mut impl Iterator<Item = usize>) -> Option<String> {
    if numbers.next()? == 2 {
        let parts: Vec<_> = numbers.take(3).collect();
        return Some(format!("rgb({},{},{})", parts[0], parts[1], parts[2]));
    }
    let level = |step: usize| if step == 0 { 0 } else { 55 + 40 * step };
    Some(match numbers.next()? {
        basic @ 0..16 => PALETTE[basic].to_owned(),
        cube @ 16..232 => {
            let cube = cube - 16;
            let (red, green, blue) = (cube / 36, cube / 6 % 6, cube % 6);
            format!("rgb({},{},{})", level(red), level(green), level(blue))
        }
        grey => format!("rgb({0},{0},{0})", 8 + 10 * (grey - 232)),
    })
}

/// A window with what a terminal shows.
fn html_of(capture: &str) -> String {
    let mut shown = String::new();
    let mut style = Style::default();
    for (at, part) in capture.split('\u{1b}').enumerate() {
        let text = if at == 0 {
            part
        } else if let Some((parameters, text)) =
            part.strip_prefix('[').and_then(|part| part.split_once('m'))
        {
            style.select(parameters);
            text
        } else {
            // Which set of characters is in use: they come as UTF-8 all the same.
            part.get(2..).unwrap_or_default()
        };
        if !text.is_empty() {
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            shown += &format!("<span style=\"{}\">{text}</span>", style.css());
        }
    }
    format!(
        "<body style='margin:0;padding:12px 14px;background:#e8ebf0'>\
         <div style='background:#1f2430;border-radius:9px;box-shadow:0 6px 18px #0005;overflow:hidden'>\
         <div style='background:#2b3140;color:#aab2c0;font:13px system-ui;padding:7px;text-align:center'>\
         chinwag chat</div><pre style='margin:0;padding:12px 16px;color:#dcdfe4;font:14px/1.32 monospace'>{shown}</pre></div></body>"
    )
}

#[test]
fn the_terminal_s_colours_are_translated() {
    let html = html_of(
        "plain \u{1b}[1;31mred & bold\u{1b}[0m <x>\u{1b}[38;5;208mo\u{1b}[7mi\u{1b}[39;27m",
    );
    for part in [
        "plain ",
        "color:#e06c75;background:transparent;font-weight:bold\">red &amp; bold<",
        "> &lt;x><",
        "color:rgb(255,135,0);background:transparent\">o<",
        "background:rgb(255,135,0)\">i<",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
}
