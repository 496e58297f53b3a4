//! Many users who log in at once with passwords, beside a room that goes on talking.
//!
//! Each connects, says who it is, and comes again when the server tells it to, on a thread of its own that waits: they
//! are few, and what they cost is the server's hashing. That a server says `unavailable` is no fault: it has a bound.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::Barrier,
    thread,
    time::Duration,
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    clock::Stopwatch,
    interrupt,
    load::LoadError,
    target::{Dialect, Names, Target},
    wire::Framing,
};

/// The password of everybody on a server of one's own.
pub const PASSWORD: &str = "wonderland";
/// Its hash as `chinwag passwd` makes one: Argon2id in 19 MiB, two passes.
const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$vzcA1lsgi5z2lExdPkyH5g$2EXC+UOfTS4vaCWGLaENJ3NBMKe0GV7VVEx5N4ibvik";
/// The same for those whose log-in is not what is measured: bcrypt at its lowest cost.
const CHEAP_HASH: &str = "$2y$04$abcdefghijklmnopqrstuujZkTwHUiJ9XdZPwKfcfDo7dMp5DjlTu";
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time until everybody is in.
const LIMIT: Duration = Duration::from_secs(600);

/// How everybody logged in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Logins {
    /// How many users.
    pub users: usize,
    /// Until the last one was in, in seconds.
    pub seconds_until_in: f64,
    /// Until one was in, those times when it was told to come again included: the median and the 99th percentile.
    pub seconds_p50: f64,
    /// The same.
    pub seconds_p99: f64,
    /// Users that heard `unavailable` at least once.
    pub users_turned_away: usize,
    /// How often anybody did.
    pub unavailable: u64,
}

/// One user's way in.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    took: Duration,
    unavailable: u64,
}

/// The lines of a password file: `members` of the room, and after them as many `users` as log in at once.
#[must_use]
pub fn password_file(names: &Names, members: usize, users: usize) -> String {
    (0..members + users).fold(String::new(), |mut lines, index| {
        let hash = if index < members { CHEAP_HASH } else { HASH };
        writeln!(lines, "{}:{hash}", names.user(index)).expect("writing to a string can't fail");
        lines
    })
}

/// Checks that `target` can be stormed.
///
/// # Errors
/// It is spoken to in another way.
pub fn check(target: &Target) -> Result<(), LoadError> {
    if target.dialect != Dialect::Chinwag(Framing::Lines) || target.tls.is_some() {
        return Err(LoadError::Plan("login-storm goes over tcp://HOST:PORT"));
    }
    Ok(())
}

/// Has the users with the numbers from `first` on log in at once, and lets go of them when all are in.
///
/// # Errors
/// If one is refused, or they are not in in time.
pub fn log_in(
    target: &Target,
    names: &Names,
    first: usize,
    users: usize,
    watch: Stopwatch,
) -> Result<Logins, LoadError> {
    check(target)?;
    let together = Barrier::new(users);
    let begun = watch.elapsed();
    let arrivals: Result<Vec<Arrival>, LoadError> = thread::scope(|scope| {
        let comers: Vec<_> = (first..first + users)
            .map(|index| {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    let user = names.user(index);
                    come_in(target, names, &user, watch)
                        .map_err(|why| LoadError::LogIn { user, why })
                })
            })
            .collect();
        let arrived: Vec<_> = comers
            .into_iter()
            .map(|comer| comer.join().expect("a user does not panic"))
            .collect();
        // All of them hold their sessions until here.
        let arrived: Result<Vec<_>, _> = arrived.into_iter().collect();
        Ok(arrived?
            .into_iter()
            .map(|(arrival, _held)| arrival)
            .collect())
    });
    let arrivals = arrivals?;
    Ok(summary(&arrivals, watch.elapsed() - begun))
}

fn summary(arrivals: &[Arrival], until_in: Duration) -> Logins {
    let mut took: Vec<f64> = arrivals.iter().map(|it| it.took.as_secs_f64()).collect();
    took.sort_unstable_by(f64::total_cmp);
    let at = |percent: usize| {
        let place = (took.len() * percent).div_ceil(100).max(1) - 1;
        took.get(place).copied().unwrap_or_default()
    };
    Logins {
        users: arrivals.len(),
        seconds_until_in: until_in.as_secs_f64(),
        seconds_p50: at(50),
        seconds_p99: at(99),
        users_turned_away: arrivals.iter().filter(|it| it.unavailable > 0).count(),
        unavailable: arrivals.iter().map(|it| it.unavailable).sum(),
    }
}

/// Logs in, however often it has to come again. Gives its connection too, which holds the session.
fn come_in(
    target: &Target,
    names: &Names,
    user: &str,
    watch: Stopwatch,
) -> Result<(Arrival, TcpStream), String> {
    let begun = watch.elapsed();
    let mut login = json!({"type": "login", "id": 1, "user": user});
    if let Some(password) = &names.password {
        login["password"] = password.as_str().into();
    }
    let login = format!("{login}\n");
    let mut unavailable = 0;
    loop {
        let (answer, stream) = ask(target, &login).map_err(|error| error.to_string())?;
        if answer["type"] == "session" {
            let took = watch.elapsed() - begun;
            return Ok((Arrival { took, unavailable }, stream));
        }
        if answer["code"] != "unavailable" {
            return Err(format!("it was told {answer}"));
        }
        unavailable += 1;
        let retry = answer["retry_ms"].as_u64();
        let retry = retry.ok_or("it was not told when to come again")?;
        if watch.elapsed() - begun > LIMIT {
            return Err(format!("it was not in after {LIMIT:?}"));
        }
        if interrupt::asked() {
            return Err("interrupted".to_owned());
        }
        drop(stream);
        thread::sleep(Duration::from_millis(retry));
    }
}

/// One attempt, on a connection of its own.
fn ask(target: &Target, login: &str) -> std::io::Result<(Value, TcpStream)> {
    let mut stream = TcpStream::connect(target.addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(login.as_bytes())?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok((serde_json::from_str(&line)?, stream))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_file_has_everybody_and_a_costly_hash_for_those_who_come_at_once() {
        let names = Names {
            user: "u".to_owned(),
            ..Names::own()
        };
        let file = password_file(&names, 2, 1);
        let lines: Vec<&str> = file.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("u00002:$2y$04$"), "{file}");
        assert!(lines[2].starts_with("u00003:$argon2id$"), "{file}");
    }

    #[test]
    fn who_is_turned_away_comes_again_and_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::here(
            Dialect::Chinwag(Framing::Lines),
            listener.local_addr().unwrap(),
        );
        // The first two are turned away, and then everybody is let in.
        let server = thread::spawn(move || {
            for turn in 0..5 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let login: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(login["password"], "secret");
                let answer = match turn {
                    0 | 1 => json!({"type": "error", "code": "unavailable", "retry_ms": 5}),
                    _ => json!({"type": "session"}),
                };
                stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
            }
        });
        let names = Names {
            password: Some("secret".to_owned()),
            ..Names::own()
        };
        let logins = log_in(&target, &names, 0, 3, Stopwatch::start()).unwrap();
        server.join().unwrap();
        assert_eq!((logins.users, logins.unavailable), (3, 2));
        assert!((1..=2).contains(&logins.users_turned_away), "{logins:?}");
        assert!(logins.seconds_p50 <= logins.seconds_p99);
        assert!(logins.seconds_p99 <= logins.seconds_until_in);
    }

    #[test]
    fn who_is_refused_ends_the_storm() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialect = Dialect::Chinwag(Framing::Lines);
        let target = Target::here(dialect, listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let answer = json!({"type": "error", "code": "auth_failed"});
            stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
        });
        let refused = log_in(&target, &Names::own(), 0, 1, Stopwatch::start());
        assert!(refused.unwrap_err().to_string().contains("auth_failed"));
        server.join().unwrap();
    }
}
