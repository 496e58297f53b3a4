//! The chat page: its files, as they are served, and the headers that go with them.
//!
//! The page is plain HTML, CSS and ES modules. What stands in the folder is what a browser gets, so nothing is built,
//! bundled or fetched from elsewhere. Serving it is another's business; nothing here knows HTTP.

use std::hash::{DefaultHasher, Hasher};

/// A file of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Where a browser asks for it, from the root of the site.
    pub path: &'static str,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: &'static [u8],
}

/// Every file of the page. The first one is the page itself, at `/`.
pub const FILES: [File; 7] = [
    File {
        path: "/",
        content_type: "text/html; charset=utf-8",
        body: include_bytes!("../index.html"),
    },
    script("/app.js", include_bytes!("../app.js")),
    script("/client.js", include_bytes!("../client.js")),
    script("/text.js", include_bytes!("../text.js")),
    script("/words.js", include_bytes!("../words.js")),
    File {
        path: "/style.css",
        content_type: "text/css; charset=utf-8",
        body: include_bytes!("../style.css"),
    },
    File {
        path: "/icon.svg",
        content_type: "image/svg+xml",
        body: include_bytes!("../icon.svg"),
    },
];

/// Where the page looks for what it has to know of the server: a JSON object, made at start-up.
pub const SETTINGS_PATH: &str = "/chinwag.json";

/// The headers of every answer with a file: the page runs its own scripts alone, speaks to its own origin alone, and
/// stands in nobody's frame.
///
/// `connect-src 'self'` covers WebSocket to the same host and port. Browsers from before 2022 may see that more
/// narrowly; there the page goes on by polling.
pub const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    // Asked for again each time and answered with 304: a page is never older than its server.
    ("cache-control", "no-cache"),
];

/// A strong entity tag of these bytes, quotes included. Equal bytes have equal tags in every process of one build.
#[must_use]
pub fn etag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("\"{:016x}\"", hasher.finish())
}

const fn script(path: &'static str, body: &'static [u8]) -> File {
    File {
        path,
        content_type: "text/javascript; charset=utf-8",
        body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_page_is_under_60_kb() {
        let bytes: usize = FILES.iter().map(|file| file.body.len()).sum();
        assert!(bytes < 60_000, "{bytes}");
    }

    #[test]
    fn everything_that_the_page_names_is_there() {
        for file in FILES {
            let Ok(text) = std::str::from_utf8(file.body) else {
                continue;
            };
            let named = text
                .split(['"', '\''])
                .filter(|word| word.starts_with('/') || word.starts_with("./"))
                .map(|word| word.trim_start_matches('.'))
                .filter(|word| {
                    [".js", ".css", ".svg"]
                        .iter()
                        .any(|end| word.ends_with(end))
                });
            for path in named {
                assert!(
                    FILES.iter().any(|other| other.path == path),
                    "{} names {path}",
                    file.path
                );
            }
        }
    }

    #[test]
    fn nothing_in_the_page_needs_what_its_policy_forbids() {
        let page = std::str::from_utf8(FILES[0].body).unwrap();
        assert!(!page.contains(" style=") && !page.contains("<style"));
        assert!(!page.contains("<script>") && !page.contains(" onclick="));
        for file in FILES {
            let text = std::str::from_utf8(file.body).unwrap();
            for word in ["innerHTML", "insertAdjacentHTML", "eval(", "document.write"] {
                assert!(!text.contains(word), "{} in {}", word, file.path);
            }
        }
    }

    #[test]
    fn a_tag_tells_bodies_apart() {
        let tags: Vec<String> = FILES.iter().map(|file| etag(file.body)).collect();
        for (index, tag) in tags.iter().enumerate() {
            assert!(tag.len() == 18 && tag.starts_with('"') && tag.ends_with('"'));
            assert!(!tags[..index].contains(tag));
        }
    }
}
