//! Chromium, driven over WebDriver by Debian's `chromedriver`.
//!
//! WebDriver is JSON over HTTP and the tests have a client for that, so there is no library in between. Everything a
//! test knows of WebDriver is in this file.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use super::{Http, Request};

/// How long anything in a browser may take before a test fails: it starts a dozen processes and shares the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What WebDriver calls a reference to an element, in its answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Runs in each page before its own scripts, outside of its security policy: notes what a user would have suffered.
const WATCH: &str = r"
    window.suffered = [];
    const suffer = (what) => window.suffered.push(what);
    addEventListener('securitypolicyviolation', (event) =>
        suffer(`policy ${event.violatedDirective}: ${event.blockedURI} at ${event.sourceFile}:${event.lineNumber}`));
    addEventListener('error', (event) => suffer(`error: ${event.message}`));
    addEventListener('unhandledrejection', (event) => suffer(`rejection: ${event.reason?.stack ?? event.reason}`));
    for (const dialog of ['alert', 'confirm', 'prompt']) {
        window[dialog] = (text) => suffer(`${dialog}: ${text}`);
    }
";

/// A browser with a home of its own. Dropping it ends it, and all processes it has started.
pub(crate) struct Browser {
    driver: Child,
    session: String,
    line: Mutex<Line>,
    _home: TempDir,
}

/// The connection to the driver, which acts on one window at a time.
struct Line {
    http: Http,
    window: String,
}

/// A window of its own, as wide as a desktop's.
pub(crate) struct Page<'b> {
    browser: &'b Browser,
    window: String,
}

/// The looks of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) phone: bool,
    pub(crate) dark: bool,
}

impl Screen {
    pub(crate) const DESKTOP: Self = Self {
        width: 1100,
        height: 840,
        phone: false,
        dark: false,
    };
    pub(crate) const PHONE: Self = Self {
        width: 390,
        height: 780,
        phone: true,
        dark: false,
    };

    pub(crate) const fn dark(self) -> Self {
        Self { dark: true, ..self }
    }
}

impl Browser {
    /// Starts one.
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary folder")).await
    }

    /// Starts one whose user trusts a CA, which is given as PEM, beside those that everybody trusts.
    pub(crate) async fn start_trusting(ca: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        trust(home.path(), ca).await;
        Self::start_in(home).await
    }

    async fn start_in(home: TempDir) -> Self {
        let (driver, port) = Self::start_driver(home.path()).await;
        let mut line = Line {
            http: Http::new(SocketAddr::from(([127, 0, 0, 1], port))),
            window: String::new(),
        };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--no-first-run",
            "--disable-gpu",
            "--disable-quic",
            "--disable-sync",
            "--disable-breakpad",
            "--disable-extensions",
            "--disable-component-update",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            "--force-device-scale-factor=1",
            "--hide-scrollbars",
            "--lang=en-GB",
            // A mouse, which this machine need not have; a phone of the tests takes it away.
            "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
            // Over a pipe Chromium ends with its driver, however that ended.
            "--remote-debugging-pipe",
            &format!("--user-data-dir={}", home.path().join("profile").display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
            "timeouts": {"script": 60_000, "pageLoad": 60_000},
        }}});
        let created = line.ask("POST", "/session", &wanted).await;
        let session = created["sessionId"].as_str().expect("a session").to_owned();
        Self {
            driver,
            session,
            line: Mutex::new(line),
            _home: home,
        }
    }

    /// Starts the driver on a port of its choice. Rarely it ends at once, as where that port is taken on the other address
    /// family: then it is started again, a few times at most.
    async fn start_driver(home: &Path) -> (Child, u16) {
        for _ in 0..5 {
            let mut driver = Command::new("chromedriver");
            driver
                .arg("--port=0")
                .env("HOME", home)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true);
            let mut driver = driver.spawn().expect("chromedriver is installed");
            let mut lines = BufReader::new(driver.stdout.take().expect("it is piped")).lines();
            let port = timeout(PATIENCE, async {
                while let Some(line) = lines.next_line().await.expect("it writes text") {
                    if let Some((_, port)) = line.rsplit_once("successfully on port ") {
                        return Some(port.trim_end_matches('.').parse::<u16>().expect("a port"));
                    }
                }
                None
            });
            if let Some(port) = port.await.expect("chromedriver says its port or ends") {
                return (driver, port);
            }
        }
        panic!("chromedriver ended at once, time after time");
    }

    /// Opens a window with nothing in it.
    pub(crate) async fn window(&self) -> Page<'_> {
        let new = json!({"type": "window"});
        let opened = self.ask(None, "POST", "/window/new", &new).await;
        let window = opened["handle"].as_str().expect("a window").to_owned();
        let page = Page {
            browser: self,
            window,
        };
        page.cdp(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": WATCH}),
        )
        .await;
        page.look(Screen::DESKTOP).await;
        page
    }

    /// Closes all windows and waits for the end of all processes.
    pub(crate) async fn close(mut self) {
        self.ask(None, "DELETE", "", &Value::Null).await;
        self.driver.kill().await.expect("it is our child");
    }

    /// A command of the session, to `window` where it is about one.
    async fn ask(&self, window: Option<&str>, method: &str, path: &str, body: &Value) -> Value {
        let mut line = self.line.lock().await;
        let session = format!("/session/{}", self.session);
        if let Some(window) = window.filter(|window| *window != line.window) {
            let switch = json!({"handle": window});
            line.ask("POST", &format!("{session}/window"), &switch)
                .await;
            window.clone_into(&mut line.window);
        }
        line.ask(method, &format!("{session}{path}"), body).await
    }
}

/// Puts a CA into the store of a user's own, where Chromium looks for more of them.
async fn trust(home: &Path, ca: &str) {
    let store = home.join(".pki/nssdb");
    std::fs::create_dir_all(&store).expect("a writable folder");
    let file = home.join("ca.pem");
    std::fs::write(&file, ca).expect("a writable folder");
    let certutil = async |args: &[&str]| {
        let mut certutil = Command::new("certutil");
        certutil.arg("-d").arg(&store).args(args);
        let output = timeout(PATIENCE, certutil.output()).await;
        let output = output
            .expect("certutil ends")
            .expect("certutil is installed");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {complaint}");
    };
    certutil(&["-N", "--empty-password"]).await;
    let file = file.to_str().expect("a path in UTF-8");
    certutil(&["-A", "-n", "the tests' CA", "-t", "C,,", "-i", file]).await;
}

impl Line {
    /// The `value` of the answer.
    async fn ask(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let request = Request::new(method, path);
        let request = if body.is_null() {
            request
        } else {
            request.json(body)
        };
        let mut answer = self.http.ask_within(&request, PATIENCE * 3).await.json();
        let value = answer["value"].take();
        assert!(
            value["error"].is_null(),
            "{method} {path} {body:.300}: {}",
            value["message"].as_str().unwrap_or_default()
        );
        value
    }
}

impl Page<'_> {
    /// Goes to an address and waits until it has loaded.
    pub(crate) async fn go(&self, url: &str) {
        self.ask("POST", "/url", json!({"url": url})).await;
    }

    pub(crate) async fn reload(&self) {
        self.ask("POST", "/refresh", json!({})).await;
    }

    /// Closes the window, as a user would; one that was open before is the browser's own.
    pub(crate) async fn close(self) {
        let others = self.ask("DELETE", "/window", Value::Null).await;
        let first = others[0].as_str();
        self.browser
            .ask(first, "GET", "/window", &Value::Null)
            .await;
    }

    /// Runs the body of a function, in which `args` are its arguments; a promise that it returns is waited for.
    pub(crate) async fn run(&self, body: &str, args: impl IntoArguments) -> Value {
        let script = json!({"script": body, "args": args.into_arguments()});
        self.ask("POST", "/execute/sync", script).await
    }

    /// Evaluates an expression until it gives something true; gives that.
    pub(crate) async fn until(
        &self,
        what: &str,
        expression: &str,
        args: impl IntoArguments,
    ) -> Value {
        let body = format!("return {expression};");
        let args = args.into_arguments();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.run(&body, args.clone()).await;
            let nothing = json!([null, false, 0, ""]);
            if !nothing.as_array().expect("it is a list").contains(&value) {
                return value;
            }
            if Instant::now() > deadline {
                let text = self.run("return document.body.innerText;", ()).await;
                let console = self.console().await.join("\n");
                panic!(
                    "waited {PATIENCE:?} in vain for: {what}\n--- the page:\n{}\n--- its console:\n{console}",
                    text.as_str().unwrap_or_default()
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Clicks in the middle of an element, as a hand would: what is hidden or covered can't be clicked.
    pub(crate) async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.ask("POST", &format!("/element/{element}/click"), json!({}))
            .await;
    }

    /// Types into a field, in place of what it holds.
    pub(crate) async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.ask("POST", &format!("/element/{element}/clear"), json!({}))
            .await;
        self.ask(
            "POST",
            &format!("/element/{element}/value"),
            json!({"text": text}),
        )
        .await;
    }

    /// Presses and releases a key with the fingers where the focus is, with others held down.
    pub(crate) async fn press(&self, key: Key, held: &[Key]) {
        let down = |key: &Key| json!({"type": "keyDown", "value": key.0});
        let up = |key: &Key| json!({"type": "keyUp", "value": key.0});
        let strokes: Vec<Value> = held
            .iter()
            .map(down)
            .chain([down(&key), up(&key)])
            .chain(held.iter().rev().map(up))
            .collect();
        let hands = json!({"actions": [{"type": "key", "id": "keys", "actions": strokes}]});
        self.ask("POST", "/actions", hands).await;
    }

    /// Makes the window that of a device, or of a user with other wishes.
    pub(crate) async fn look(&self, screen: Screen) {
        let Screen {
            width,
            height,
            phone,
            dark,
        } = screen;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.cdp("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        let touch = json!({"enabled": phone});
        self.cdp("Emulation.setTouchEmulationEnabled", touch).await;
        let scheme = if dark { "dark" } else { "light" };
        self.wish("prefers-color-scheme", scheme).await;
        self.settled().await;
    }

    /// Waits until what moves has come to rest; what turns for ever is not waited for.
    pub(crate) async fn settled(&self) {
        let rest = "const still = document.getAnimations().map((one) => one.finished.catch(() => {}));
            const late = new Promise((done) => setTimeout(done, 1000));
            const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))));
            return drawn().then(() => Promise.race([Promise.all(still), late])).then(drawn);";
        self.run(rest, ()).await;
    }

    /// Sets what the user prefers, where a style sheet can ask for it.
    pub(crate) async fn wish(&self, feature: &str, value: &str) {
        let features = json!({"features": [{"name": feature, "value": value}]});
        self.cdp("Emulation.setEmulatedMedia", features).await;
    }

    /// What the window shows, as PNG.
    pub(crate) async fn screenshot(&self) -> Vec<u8> {
        let shot = self
            .cdp("Page.captureScreenshot", json!({"format": "png"}))
            .await;
        let data = shot["data"].as_str().expect("a picture");
        BASE64_STANDARD.decode(data).expect("it is base64")
    }

    /// A command of Chromium's own protocol.
    pub(crate) async fn cdp(&self, command: &str, params: Value) -> Value {
        let command = json!({"cmd": command, "params": params});
        self.ask("POST", "/goog/cdp/execute", command).await
    }

    /// What stands in the browser's console and was not asked for yet, warnings and errors only.
    pub(crate) async fn console(&self) -> Vec<String> {
        let log = self
            .ask("POST", "/se/log", json!({"type": "browser"}))
            .await;
        let entries = log.as_array().expect("a list").iter();
        let worth =
            entries.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        worth
            .map(|entry| format!("{}: {}", entry["level"], entry["message"]))
            .collect()
    }

    /// What went wrong in the page: breaches of its policy, errors that nobody caught, dialogs.
    pub(crate) async fn suffered(&self) -> Vec<String> {
        let list = self.run("return window.suffered;", ()).await;
        serde_json::from_value(list).expect("a list of texts")
    }

    async fn element(&self, selector: &str) -> String {
        let by = json!({"using": "css selector", "value": selector});
        let found = self.ask("POST", "/element", by).await;
        found[ELEMENT].as_str().expect("a reference").to_owned()
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        let window = Some(self.window.as_str());
        self.browser.ask(window, method, path, &body).await
    }
}

/// A key as WebDriver writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key(&'static str);

impl Key {
    pub(crate) const TAB: Self = Self("\u{e004}");
    pub(crate) const ENTER: Self = Self("\u{e007}");
    pub(crate) const ESCAPE: Self = Self("\u{e00c}");
    pub(crate) const SHIFT: Self = Self("\u{e008}");
}

/// The arguments of a script: none, one text, or a list.
pub(crate) trait IntoArguments {
    fn into_arguments(self) -> Value;
}

impl IntoArguments for () {
    fn into_arguments(self) -> Value {
        json!([])
    }
}

impl IntoArguments for &str {
    fn into_arguments(self) -> Value {
        json!([self])
    }
}

impl IntoArguments for Value {
    fn into_arguments(self) -> Value {
        assert!(self.is_array(), "arguments are a list: {self}");
        self
    }
}
