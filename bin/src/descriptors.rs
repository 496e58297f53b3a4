//! The limit on open descriptors: every connection takes one.
//!
//! A system starts its services with a soft limit that is far below the hard one, for the sake of programs that can't
//! count beyond 1024. It is raised to what the listeners may need. Where that can't be had, whoever has asked for so
//! many connections is warned; whoever has left the number to us is told how many fit.

use tracing::{debug, info, warn};

use crate::config::{Listening, Loaded, LoadedTransport, sockets};

/// Descriptors beside those of connections: scrapes, of which there are at most 64, listening sockets, files that are
/// read, call-outs, and the runtime's own.
const OTHERS: u64 = 256;

/// Raises the soft limit of this process to what `loaded` may need, and tells how far that went.
pub(crate) fn provide(loaded: &Loaded) {
    let has = match rlimit::getrlimit(rlimit::Resource::NOFILE) {
        Ok((soft, hard)) => Limit { soft, hard },
        Err(error) => {
            debug!(%error, "The limit on open descriptors can't be read.");
            return;
        }
    };
    let mut needs = Needs::of(&loaded.transports, &|transport| {
        loaded.names(&["transports", &transport.name, "max_connections"])
    });
    if let Some(control) = &loaded.control {
        let is_asked = loaded.names(&["control", "max_connections"]);
        needs.add(control.listener.max_connections, is_asked);
    }
    let mut plan = needs.within(has);
    if let Some(soft) = plan.raise_to {
        match rlimit::setrlimit(rlimit::Resource::NOFILE, soft, has.hard) {
            Ok(()) if loaded.builtin => debug!(from = has.soft, to = soft, "descriptors"),
            Ok(()) => info!(from = has.soft, to = soft, "descriptors"),
            Err(error) => {
                debug!(%error, "The limit on open descriptors can't be raised.");
                plan = plan.needs.within(Limit {
                    hard: has.soft,
                    ..has
                });
            }
        }
    }
    match plan.short {
        None => (),
        Some(Short::Asked { connections, fit }) => warn!(
            "max_connections adds up to {connections}, and descriptors are left for about {fit}: others wait until one \
             is free; raise the hard limit on open files (LimitNOFILE of systemd, ulimit -Hn) or lower max_connections"
        ),
        Some(Short::Left { fit }) => info!(
            "Descriptors are left for about {fit} connections; the hard limit on open files says so, not max_connections."
        ),
    }
}

/// The limits of this process.
#[derive(Debug, Clone, Copy)]
struct Limit {
    soft: u64,
    hard: u64,
}

/// Connections that listeners may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    /// In all.
    connections: u64,
    /// Those of listeners whose number the file names.
    asked: u64,
}

/// What to do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    needs: Needs,
    raise_to: Option<u64>,
    short: Option<Short>,
}

/// There are too few descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    /// For what the file asks for.
    Asked { connections: u64, fit: u64 },
    /// For what applies where it asks for nothing.
    Left { fit: u64 },
}

impl Needs {
    /// `names`: whether a transport's table has the number.
    fn of(transports: &[LoadedTransport], names: &dyn Fn(&LoadedTransport) -> bool) -> Self {
        let listening = transports.iter().map(|transport| Listening {
            name: &transport.name,
            kind: &transport.kind,
            wire: transport.wire,
            listener: &transport.listener,
        });
        let mut needs = Self {
            connections: 0,
            asked: 0,
        };
        for socket in sockets(listening) {
            let is_asked = transports.iter().any(|transport| {
                socket
                    .transports
                    .iter()
                    .any(|&(name, _)| name == transport.name)
                    && names(transport)
            });
            needs.add(socket.max_connections, is_asked);
        }
        needs
    }

    /// Those of another listener.
    fn add(&mut self, connections: usize, is_asked: bool) {
        // Exact, but on a machine that has more than 2^64 of anything.
        let connections = connections as u64;
        self.connections = self.connections.saturating_add(connections);
        if is_asked {
            self.asked = self.asked.saturating_add(connections);
        }
    }

    fn within(self, limit: Limit) -> Plan {
        let wanted = self.connections.saturating_add(OTHERS);
        let raise_to = Some(wanted.min(limit.hard)).filter(|&to| to > limit.soft);
        let fit = raise_to.unwrap_or(limit.soft).saturating_sub(OTHERS);
        let short = if self.asked > fit {
            Some(Short::Asked {
                connections: self.asked,
                fit,
            })
        } else {
            (self.connections > fit).then_some(Short::Left { fit })
        };
        Plan {
            needs: self,
            raise_to,
            short,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(connections: u64, asked: u64, soft: u64, hard: u64) -> (Option<u64>, Option<Short>) {
        let plan = Needs { connections, asked }.within(Limit { soft, hard });
        (plan.raise_to, plan.short)
    }

    #[test]
    fn the_soft_limit_is_raised_to_what_is_needed_and_no_further() {
        assert_eq!(plan(1000, 1000, 1024, 1 << 20), (Some(1256), None));
        assert_eq!(plan(1000, 0, 1256, 1 << 20), (None, None));
        assert_eq!(plan(1000, 0, u64::MAX, u64::MAX), (None, None));
        assert_eq!(
            plan(u64::MAX, 0, 1024, u64::MAX),
            (
                Some(u64::MAX),
                Some(Short::Left {
                    fit: u64::MAX - 256
                })
            )
        );
    }

    #[test]
    fn listeners_add_up_and_those_that_are_asked_for_too() {
        let mut needs = Needs {
            connections: 5,
            asked: 3,
        };
        needs.add(100, true);
        needs.add(1000, false);
        let (connections, asked) = (1105, 103);
        assert_eq!(needs, Needs { connections, asked });
        needs.add(usize::MAX, true);
        needs.add(usize::MAX, true);
        assert_eq!((needs.connections, needs.asked), (u64::MAX, u64::MAX));
    }

    #[test]
    fn only_who_names_a_number_is_warned_that_it_can_not_be_had() {
        let asked = Short::Asked {
            connections: 5000,
            fit: 3840,
        };
        assert_eq!(plan(5000, 5000, 1024, 4096), (Some(4096), Some(asked)));
        assert_eq!(
            plan(200_000, 50, 1024, 4096),
            (Some(4096), Some(Short::Left { fit: 3840 }))
        );
        assert_eq!(plan(5000, 5000, 4096, 4096), (None, Some(asked)));
        assert_eq!(
            plan(5000, 5000, 100, 100),
            (
                None,
                Some(Short::Asked {
                    connections: 5000,
                    fit: 0
                })
            )
        );
    }
}
