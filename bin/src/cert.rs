//! `chinwag cert dev`: certificates for trying out, signed by a CA whose key nobody keeps.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use chinwag_core::clock::{SystemWallClock, WallClock};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::cli::Failure;

/// How long everything is good.
const DAYS: i64 = 365;
/// How far clocks may be apart.
const SKEW: Duration = Duration::hours(1);
/// What every server certificate is for.
const HERE: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The command line of `cert`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a CA, certificates of a server and of two clients, and a list that revokes one of these
    Dev {
        /// A folder for them, made where there is none; nothing in it is overwritten
        dir: PathBuf,
        /// Another name or address of the server, beside those of this machine for itself
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
    },
}

/// Runs the command and returns what to tell of it.
pub(crate) fn run(command: &Command) -> Result<String, Failure> {
    match command {
        Command::Dev { dir, hosts } => dev(dir, hosts),
    }
}

fn dev(dir: &Path, hosts: &[String]) -> Result<String, Failure> {
    let names = names(hosts)?;
    // It is to be copied into a configuration, and into a shell.
    if dir
        .to_str()
        .is_none_or(|dir| dir.contains(char::is_control))
    {
        return Err(Failure::new(format_args!(
            "{dir:?}: choose a folder whose name is UTF-8 and has no control characters"
        )));
    }
    if dir.exists() && !dir.is_dir() {
        return Err(Failure::new(format_args!(
            "{} is there and is no folder",
            dir.display()
        )));
    }
    let files = files(&names)
        .map_err(|error| Failure::new(format_args!("can't make certificates: {error}")))?;
    write(dir, &files)?;
    let dir = dir
        .canonicalize()
        .map_err(|error| Failure::new(format_args!("{}: {error}", dir.display())))?;
    Ok(report(&dir, &names))
}

/// What the server's certificate is to be for.
fn names(hosts: &[String]) -> Result<Vec<String>, Failure> {
    for host in hosts {
        if host.parse::<IpAddr>().is_err() && !is_name(host) {
            return Err(Failure::new(format_args!(
                "--host {host:?} is neither an address nor a DNS name in its ASCII form; a port does not belong there"
            )));
        }
    }
    let mut names: Vec<String> = Vec::new();
    for name in HERE.into_iter().chain(hosts.iter().map(String::as_str)) {
        // An address may be spelt in several ways.
        let name = match name.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => name.to_owned(),
        };
        if !names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether clients may look for a server by this name: labels of letters, digits and inner hyphens, the last of them no
/// number, and perhaps a `*` for the first.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len())
            && label.bytes().all(is_part)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let (rest, least) = match host.strip_prefix("*.") {
        Some(rest) => (rest, 2),
        None => (host, 1),
    };
    let labels: Vec<&str> = rest.split('.').collect();
    host.len() <= 253
        && labels.len() >= least
        && labels.iter().all(|label| is_label(label))
        && labels
            .last()
            .is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()))
}

struct NewFile {
    name: &'static str,
    content: String,
    is_secret: bool,
}

impl NewFile {
    fn shown(name: &'static str, content: String) -> Self {
        Self {
            name,
            content,
            is_secret: false,
        }
    }

    fn secret(name: &'static str, content: String) -> Self {
        Self {
            name,
            content,
            is_secret: true,
        }
    }
}

/// Makes everything; nothing is written yet.
fn files(names: &[String]) -> Result<Vec<NewFile>, Error> {
    let now = i64::try_from(SystemWallClock.unix_millis() / 1000).unwrap_or(0);
    let now = OffsetDateTime::from_unix_timestamp(now).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (begin, end) = (now - SKEW, now + Duration::days(DAYS));
    let params = |common_name: &str, key: &KeyPair| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        (params.not_before, params.not_after) = (begin, end);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial(&params.key_identifier(key)));
        params
    };

    let key = KeyPair::generate()?;
    let mut ca = params("", &key);
    // Clients remember CAs by their names, and this one is not the one of the last time.
    let mark = ca
        .key_identifier(&key)
        .iter()
        .take(4)
        .fold(String::new(), |mut mark, byte| {
            let _ = write!(mark, "{byte:02x}");
            mark
        });
    let name = format!("chinwag dev CA {mark}");
    ca.distinguished_name.push(DnType::CommonName, name);
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.use_authority_key_identifier_extension = false;
    let ca = CertifiedIssuer::self_signed(ca, key)?;

    let server_key = KeyPair::generate()?;
    let mut server = params("chinwag dev server", &server_key);
    server.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mut files = vec![
        NewFile::shown("ca.pem", ca.pem()),
        NewFile::shown("server.pem", server.signed_by(&server_key, &*ca)?.pem()),
        NewFile::secret("server.key", server_key.serialize_pem()),
    ];

    let mut revoked_certs = Vec::new();
    for (user, cert, private) in [
        ("alice", "alice.pem", "alice.key"),
        ("bob", "bob.pem", "bob.key"),
    ] {
        let key = KeyPair::generate()?;
        let mut client = params(user, &key);
        client.subject_alt_names = vec![SanType::Rfc822Name(email(user).try_into()?)];
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        client.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        files.push(NewFile::shown(cert, client.signed_by(&key, &*ca)?.pem()));
        files.push(NewFile::secret(private, key.serialize_pem()));
        if user == "bob" {
            revoked_certs.extend(client.serial_number.map(|serial_number| RevokedCertParams {
                serial_number,
                revocation_time: begin,
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }));
        }
    }
    let crl = CertificateRevocationListParams {
        this_update: begin,
        next_update: end,
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    files.push(NewFile::shown("crl.pem", crl.signed_by(&ca)?.pem()?));
    Ok(files)
}

/// A serial number that no other key has, and above zero.
fn serial(key: &[u8]) -> SerialNumber {
    let mut bytes = key.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    bytes.into()
}

fn email(user: &str) -> String {
    format!("{user}@example.org")
}

/// Writes all files or, as far as that can be had, none.
fn write(dir: &Path, files: &[NewFile]) -> Result<(), Failure> {
    let failure =
        |path: &Path, error: io::Error| Failure::new(format_args!("{}: {error}", path.display()));
    make(dir).map_err(|error| failure(dir, error))?;
    let exists = |file: &&NewFile| fs::symlink_metadata(dir.join(file.name)).is_ok();
    if let Some(file) = files.iter().find(exists) {
        return Err(Failure::new(format_args!(
            "{} is there already; nothing was written, since it may be in use: name another folder",
            dir.join(file.name).display()
        )));
    }
    for (place, file) in files.iter().enumerate() {
        let path = dir.join(file.name);
        if let Err(error) = create(&path, file) {
            let is_ours = error.kind() != io::ErrorKind::AlreadyExists;
            for file in files.iter().take(place + usize::from(is_ours)) {
                // What can't be removed either has to stay.
                let _ = fs::remove_file(dir.join(file.name));
            }
            return Err(failure(&path, error));
        }
    }
    Ok(())
}

fn make(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn create(path: &Path, file: &NewFile) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if file.is_secret { 0o600 } else { 0o644 });
    }
    options.open(path)?.write_all(file.content.as_bytes())
}

fn report(dir: &Path, names: &[String]) -> String {
    let path = |name: &str| {
        let path = dir.join(name).display().to_string();
        (quoted(&path), shell(&path))
    };
    let [ca, cert, key, crl] =
        ["ca.pem", "server.pem", "server.key", "crl.pem"].map(|name| path(name).0);
    let [ca_arg, alice, alice_key] = ["ca.pem", "alice.pem", "alice.key"].map(|name| path(name).1);
    let (alice_mail, bob_mail) = (email("alice"), email("bob"));
    let names = names.join(", ");
    let dir = dir.display();
    format!(
        r#"# Made in {dir}, for trying out and good for {DAYS} days:
#   ca.pem                 the CA; its key was thrown away
#   server.pem server.key  the server, as {names}
#   alice.pem alice.key    a client, {alice_mail}
#   bob.pem bob.key        another one, {bob_mail}, whose certificate is revoked
#   crl.pem                the list that revokes it
# A configuration with them:

[server]
default_room = "lobby"

[tls.dev]
cert = {cert}
key = {key}
client_ca = {ca}
client_cert = "required"
crl = [{crl}]

[transports.line]
kind = "tcp"
bind = "127.0.0.1:4020"
tls = "dev"
auth = ["certs"]

[transports.poll]
kind = "http-polling"
bind = "127.0.0.1:8080"
tls = "dev"
auth = ["certs"]

[authenticators.certs]
kind = "certificate"
user = "san-email"

# Alice logs in with her certificate alone:
#   chinwag chat tls://localhost:4020 --ca {ca_arg} \
#     --cert {alice} --key {alice_key}
# or by other means:
#   openssl s_client -quiet -verify_return_error -connect localhost:4020 \
#     -CAfile {ca_arg} -cert {alice} -key {alice_key}
#   and type {{"type":"login"}}
#   curl --cacert {ca_arg} --cert {alice} --key {alice_key} \
#     -H 'Content-Type: application/json' -d '{{}}' https://localhost:8080/v1/session
# Bob, with bob.pem and bob.key, is refused before he can say anything."#
    )
}

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            _ if letter.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            _ => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// A word as a shell takes it.
fn shell(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+,:@%".contains(letter);
    if text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use chinwag_core::{TlsFailure, TlsLink, plugin::TlsFacts};
    use chinwag_transports::tls::{Alpn, Tls, TlsConfig, TlsContext};
    use rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    };
    use serde::Deserialize;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, duplex};
    use tokio_rustls::TlsConnector;

    use super::*;

    /// The tables of the printed configuration that matter here.
    #[derive(Deserialize)]
    struct Printed {
        tls: BTreeMap<String, TlsConfig>,
        transports: BTreeMap<String, toml::Table>,
        authenticators: BTreeMap<String, toml::Table>,
    }

    fn made(hosts: &[&str]) -> (TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let command = Command::Dev {
            dir: folder.path().join("pki"),
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        };
        let text = run(&command).unwrap();
        (folder, text)
    }

    #[test]
    fn names_are_such_as_clients_look_for() {
        for good in [
            "chat",
            "chat.example.org",
            "*.example.org",
            "192.0.2.1",
            "2001:db8::1",
            "a_b.c",
        ] {
            assert!(names(&[good.to_owned()]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "*",
            "a*b.org",
            "foo.*",
            "*.*.org",
            "*.org",
            "--help",
            "foo-",
            "-foo.org",
            "a..b",
            "999.1.1.1",
            "127.1",
            "192.0.2.01",
            "example.org:80",
            "a b",
            "b\u{fc}cher.org",
        ] {
            assert!(names(&[bad.to_owned()]).is_err(), "{bad}");
        }
        let one = names(&["0:0:0:0:0:0:0:1".to_owned(), "LOCALHOST".to_owned()]).unwrap();
        assert_eq!(one, HERE);
    }

    #[test]
    fn a_folder_is_one_that_can_be_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "mine").unwrap();
        for (dir, says) in [
            (folder.path().join("a\nb"), "control characters"),
            (file.clone(), "no folder"),
        ] {
            let told = dev(&dir, &[]).unwrap_err().message;
            assert!(told.contains(says), "{told}");
        }
        assert_eq!(fs::read_to_string(file).unwrap(), "mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    async fn meet(
        tls: &Arc<Tls>,
        folder: &Path,
        host: &str,
        user: &str,
    ) -> Result<Arc<TlsFacts>, TlsFailure> {
        let at = |name: String| folder.join("pki").join(name);
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(at("ca.pem".into())).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(at(format!("{user}.pem"))).unwrap()],
                PrivateKeyDer::from_pem_file(at(format!("{user}.key"))).unwrap(),
            )
            .unwrap();
        let (near, far) = duplex(1 << 16);
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let address = ([127, 0, 0, 1], 1).into();
        let client = async {
            let mut stream = TlsConnector::from(Arc::new(config))
                .connect(name, far)
                .await
                .expect("the server is trusted");
            // Until the server has closed the connection, with or without an alert.
            let _ = stream.read_u8().await;
        };
        let server = async {
            let accepted = tls.accept(near, Alpn::CHINWAG, address, address).await;
            accepted.map(|(_, peer)| Arc::clone(peer.facts()))
        };
        tokio::join!(server, client).0
    }

    #[tokio::test]
    async fn what_is_made_works_as_printed() {
        let (folder, text) = made(&["chat.example.org", "192.0.2.7"]);
        let mut printed: Printed = toml::from_str(&text).unwrap();
        for transport in printed.transports.values() {
            assert_eq!(transport["tls"].as_str(), Some("dev"));
        }
        let certs = &printed.authenticators["certs"];
        assert_eq!(certs["kind"].as_str(), Some("certificate"));
        let config = printed.tls.remove("dev").unwrap();
        // Paths are whole, wherever the configuration is put.
        let cx = TlsContext::new("dev", "/nowhere");
        let tls = config.load(cx).await.unwrap();
        assert_eq!(tls.warnings(), [""; 0]);
        for host in [
            "localhost",
            "127.0.0.1",
            "::1",
            "chat.example.org",
            "192.0.2.7",
        ] {
            let facts = meet(&tls, folder.path(), host, "alice").await.unwrap();
            let certificate = facts.certificate.as_ref().unwrap();
            assert_eq!(certificate.emails, ["alice@example.org"]);
            assert_eq!(certificate.common_names, ["alice"]);
        }
        let verdict = meet(&tls, folder.path(), "localhost", "bob").await;
        assert_eq!(verdict.err(), Some(TlsFailure::Revoked));
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, _) = made(&[]);
        let mut keys = 0;
        for entry in fs::read_dir(folder.path().join("pki")).unwrap() {
            let entry = entry.unwrap();
            let is_key = entry.path().extension().unwrap() == "key";
            let content = fs::read_to_string(entry.path()).unwrap();
            assert_eq!(content.contains("PRIVATE KEY"), is_key, "{entry:?}");
            if is_key {
                keys += 1;
                let mode = entry.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{entry:?}");
            }
        }
        assert_eq!(keys, 3, "that of the CA is nowhere");
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alice.key");
        fs::write(&path, "precious").unwrap();
        let command = Command::Dev {
            dir: folder.path().into(),
            hosts: Vec::new(),
        };
        let failure = run(&command).unwrap_err();
        assert!(
            failure.message.contains("alice.key is there already"),
            "{}",
            failure.message
        );
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(fs::read_to_string(path).unwrap(), "precious");
    }

    #[test]
    fn a_host_is_an_address_or_a_name() {
        for bad in [
            "",
            "a b",
            "exämple.org",
            "localhost:8080",
            "https://x",
            ".",
            "a..b",
        ] {
            let command = Command::Dev {
                dir: "/nowhere/at/all".into(),
                hosts: vec![bad.to_owned()],
            };
            let failure = run(&command).unwrap_err();
            assert!(
                failure.message.contains("--host"),
                "{bad}: {}",
                failure.message
            );
        }
        let same = names(&["LOCALHOST".to_owned(), "*.example.org".to_owned()]).unwrap();
        assert_eq!(same, ["localhost", "127.0.0.1", "::1", "*.example.org"]);
    }

    #[test]
    fn odd_paths_are_printed_so_that_they_can_be_pasted() {
        assert_eq!(quoted("C:\\a \"b\"\n"), r#""C:\\a \"b\"\u000a""#);
        assert_eq!(shell("/tmp/a-b.pem"), "/tmp/a-b.pem");
        assert_eq!(shell("/tmp/it's here"), r"'/tmp/it'\''s here'");
    }
}
