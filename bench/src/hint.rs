//! What to do about a server whose limits get in the way.

use crate::link::{Stage, Trouble};

/// Where every limit is lifted.
const POINTER: &str = "configs/bench.toml lifts every limit that bench may run into";

/// A sentence to follow `trouble`; empty where there is nothing to advise.
pub(crate) fn after(trouble: &Trouble, stage: Stage) -> String {
    let code = match trouble {
        Trouble::Refused { code, .. } | Trouble::Bye { code, .. } => code,
        Trouble::CloseFrame { reason, .. } => reason,
        Trouble::Closed if stage != Stage::Present => {
            return format!(
                ". The server may count connections: see max_connections, max_connections_per_ip \
                 and limits.connects_per_ip; {POINTER}"
            );
        }
        Trouble::Tls(error) => return over_tls(error).to_owned(),
        _ => return String::new(),
    };
    let keys = match (&**code, stage) {
        ("rate_limited", Stage::Connecting | Stage::Opening | Stage::LoggingIn) => {
            "raise limits.connects_per_ip"
        }
        ("rate_limited", Stage::Joining) => "raise limits.room_creations and limits.commands",
        ("rate_limited", _) => {
            "raise limits.sends, limits.sends_per_user and room.sends, or spread the messages over \
             more --publishers"
        }
        ("too_many", _) => {
            "raise the limit that it names: limits.sessions, limits.rooms, room.members, or \
             max_connections of the transport"
        }
        ("message_too_long" | "too_large", _) => {
            "raise limits.message_bytes and limits.frame_bytes, or ask for a smaller --payload"
        }
        ("abuse", _) => "raise limits.violations and the limits that were broken",
        ("slow_consumer", _) => {
            return ". This client, or the machine, could not keep up: ask for less, or raise \
                    limits.member_queue and limits.poll_queue in the server's configuration"
                .to_owned();
        }
        ("login_timeout", _) => "raise login_timeout of the transport",
        ("session_expired", _) => "raise sessions.timeout",
        ("auth_failed", _) => {
            return ". Name users that may come in with --user PREFIX, and their password in the \
                    environment as CHINWAG_PASSWORD"
                .to_owned();
        }
        ("name_in_use" | "name_invalid", _) => {
            return ". Choose names with --user PREFIX; a number follows it".to_owned();
        }
        ("forbidden" | "room_invalid", _) => {
            return ". Choose rooms with --room PREFIX".to_owned();
        }
        _ => return String::new(),
    };
    format!(". In the server's configuration, {keys}; {POINTER}")
}

/// The same where two did not come to terms over TLS.
fn over_tls(error: &rustls::Error) -> &'static str {
    use rustls::{AlertDescription as Alert, CertificateError, Error, InvalidMessage};
    match error {
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => ". Name who signed the server's certificate with --ca FILE",
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            ". The server may speak plain text there"
        }
        Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => {
            ". The server may want a certificate: --cert FILE, and --key FILE where its key stands apart"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(code: &str, stage: Stage) -> String {
        let refused = Trouble::Refused {
            code: code.to_owned(),
            message: String::new(),
        };
        after(&refused, stage)
    }

    #[test]
    fn limits_are_told_by_their_keys() {
        assert!(hint("rate_limited", Stage::Present).contains("limits.sends"));
        assert!(hint("rate_limited", Stage::LoggingIn).contains("limits.connects_per_ip"));
        assert!(hint("rate_limited", Stage::Joining).contains("limits.room_creations"));
        assert!(hint("too_many", Stage::Joining).contains("configs/bench.toml"));
        assert!(hint("auth_failed", Stage::LoggingIn).contains("CHINWAG_PASSWORD"));
        assert_eq!(hint("internal", Stage::Present), "");
    }

    #[test]
    fn files_for_tls_are_told_where_one_is_missing() {
        let hint = |error| after(&Trouble::Tls(error), Stage::Opening);
        let unknown = rustls::CertificateError::UnknownIssuer;
        assert!(hint(rustls::Error::InvalidCertificate(unknown)).contains("--ca"));
        let required = rustls::AlertDescription::CertificateRequired;
        assert!(hint(rustls::Error::AlertReceived(required)).contains("--cert"));
        assert_eq!(hint(rustls::Error::DecryptError), "");
    }

    #[test]
    fn a_connection_that_is_closed_early_may_be_one_too_many() {
        assert!(after(&Trouble::Closed, Stage::LoggingIn).contains("max_connections"));
        assert_eq!(after(&Trouble::Closed, Stage::Present), "");
    }
}
