//! The example runs as it stands, and lets in who brings a token.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_token_gets_its_user_in_and_nothing_else_does() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_token-auth"));
    server
        .args(["serve", "--config", "chinwag.toml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CHINWAG_TRANSPORTS__LINE__BIND", "127.0.0.1:0")
        .env("CHINWAG_TRANSPORTS__POLL__BIND", "127.0.0.1:0")
        .env("CHINWAG_LOG__FORMAT", "json")
        .stderr(Stdio::piped());
    let mut server = Running(server.spawn().unwrap());
    let log = BufReader::new(server.0.stderr.take().unwrap());
    let address = log
        .lines()
        .map(|line| line.unwrap())
        .find_map(|line| {
            let (_, after) = line.split_once(r#""transport":"line","addr":""#)?;
            after.split('"').next().map(String::from)
        })
        .expect("the server says where it listens");
    for (login, answer) in [
        (
            r#"{"type":"login","token":"replace-this-by-32-random-bytes"}"#,
            r#""user":"alice""#,
        ),
        (
            r#"{"type":"login","token":"replace-this-by-32-random-bytez"}"#,
            r#""code":"auth_failed""#,
        ),
        (
            r#"{"type":"login","user":"alice","password":"replace-this-by-32-random-bytes"}"#,
            r#""code":"auth_failed""#,
        ),
    ] {
        let mut client = TcpStream::connect(&address).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        writeln!(client, "{login}").unwrap();
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        assert!(line.contains(answer), "{login} -> {line}");
    }
}
