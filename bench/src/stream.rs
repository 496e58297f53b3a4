//! A connection's bytes as a socket that does not block takes and gives them, in plain text or through TLS.

use std::{
    fs, io,
    io::{Read, Write},
    mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mio::net::TcpStream;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::crowd::Traffic;

/// What a client needs for TLS, as files in PEM form.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct TlsFiles {
    /// Who may have signed the server's certificate [default: those whom this system trusts]
    #[arg(long, value_name = "FILE")]
    pub ca: Vec<PathBuf>,
    /// The certificate that every member shows
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key [default: in the file of --cert]
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// Why TLS can't be spoken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file has not what it should.
    #[error("{}: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody is trusted.
    #[error("this system trusts nobody who could have signed a certificate: name a file with --ca")]
    NobodyTrusted,
    /// The server's name can't stand in a certificate.
    #[error("{name:?} is no name for a certificate")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        source: InvalidDnsNameError,
    },
}

/// How to speak TLS with a server.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsFiles {
    /// Whether nothing was named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the files, for a server of this name or address.
    ///
    /// # Errors
    /// If one can't be read, or has not what it should.
    pub fn read(&self, name: &str) -> Result<Tls, TlsError> {
        let mut roots = RootCertStore::empty();
        for path in &self.ca {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| at_fault(path, error))?;
            }
        }
        if self.ca.is_empty() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            return Err(TlsError::NobodyTrusted);
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has what the default versions need")
            .with_root_certificates(roots);
        let mut config = match &self.cert {
            None => builder.with_no_client_auth(),
            Some(cert) => {
                let file = self.key.as_ref().unwrap_or(cert);
                let key =
                    PrivateKeyDer::from_pem_file(file).map_err(|error| at_fault(file, error))?;
                builder
                    .with_client_auth_cert(certificates(cert)?, key)
                    .map_err(|error| at_fault(file, error))?
            }
        };
        // Every member is a stranger: of one program, only the first would have to introduce itself.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = ["chinwag", "http/1.1"].map(Vec::from).into();
        Ok(Tls {
            config: Arc::new(config),
            name: ServerName::try_from(name)
                .map_err(|source| TlsError::Name {
                    name: name.to_owned(),
                    source,
                })?
                .to_owned(),
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = fs::read(path).map_err(|error| at_fault(path, error))?;
    let certificates = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| at_fault(path, error))?;
    if certificates.is_empty() {
        return Err(at_fault(path, "it has no certificate in PEM form"));
    }
    Ok(certificates)
}

fn at_fault(path: &Path, why: impl ToString) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// A connection. See the [module](self).
#[derive(Debug)]
pub(crate) struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    traffic: Traffic,
}

impl Stream {
    /// Begins to connect; with TLS once the socket is connected, by the first write or [`flush`](Self::flush).
    pub(crate) fn open(addr: SocketAddr, tls: Option<&Tls>) -> io::Result<Self> {
        let socket = TcpStream::connect(addr)?;
        // Reset at the end: run after run, waiting connections would fill the table of local ports.
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        let tls = tls
            .map(|tls| ClientConnection::new(Arc::clone(&tls.config), tls.name.clone()))
            .transpose()
            .map_err(io::Error::other)?;
        Ok(Self {
            socket,
            tls: tls.map(Box::new),
            traffic: Traffic::default(),
        })
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// What went over the socket since this was asked the last time.
    pub(crate) fn take_traffic(&mut self) -> Traffic {
        mem::take(&mut self.traffic)
    }

    /// Whether a read that could have brought more has emptied the socket. What TLS gives ends with a record.
    pub(crate) fn is_empty_after_less(&self) -> bool {
        self.tls.is_none()
    }

    /// Reads as a socket does; an end without a word of TLS is an end like any other.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else {
                let count = self.socket.read(buffer)?;
                self.note_read(count);
                return Ok(count);
            };
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            let count = tls.read_tls(&mut self.socket)?;
            let done = tls.process_new_packets();
            self.note_read(count);
            // Also what tells the server why it is turned down.
            let flushed = self.flush();
            done.map_err(io::Error::other)?;
            flushed?;
        }
    }

    fn note_read(&mut self, count: usize) {
        if count > 0 {
            self.traffic.reads += 1;
            self.traffic.bytes_in += count as u64;
        }
    }

    /// Takes what it can of `bytes` and returns how much; zero where the socket, or what waits for it, is full.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return match self.socket.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                Err(error) => Err(error),
                Ok(count) => {
                    self.traffic.bytes_out += count as u64;
                    Ok(count)
                }
            };
        };
        let count = tls.writer().write(bytes)?;
        self.flush()?;
        Ok(count)
    }

    /// Hands the socket what waits for it here, as far as it takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(count) => self.traffic.bytes_out += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use mio::{Events, Interest, Poll, Token};
    use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{ServerConfig, ServerConnection, StreamOwned, server::WebPkiClientVerifier};

    use super::*;

    /// A CA, a certificate of `localhost` by it, and the folder where they are as files.
    struct Pki {
        folder: tempfile::TempDir,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    }

    impl Pki {
        fn new() -> Self {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            let cert = params.signed_by(&key, &*ca).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let both = cert.pem() + &key.serialize_pem();
            fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
            fs::write(folder.path().join("both.pem"), both).unwrap();
            Self {
                folder,
                chain: vec![cert.der().clone()],
                key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            }
        }

        fn files(&self) -> TlsFiles {
            TlsFiles {
                ca: vec![self.folder.path().join("ca.pem")],
                ..TlsFiles::default()
            }
        }

        /// A server that sends back what it reads from one client, and ends with it. It asks for a certificate where
        /// `mutual`.
        fn echo(&self, mutual: bool) -> SocketAddr {
            let provider = Arc::new(aws_lc_rs::default_provider());
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .unwrap();
            let builder = if mutual {
                let mut roots = RootCertStore::empty();
                let ca = certificates(&self.folder.path().join("ca.pem")).unwrap();
                roots.add(ca[0].clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            } else {
                builder.with_no_client_auth()
            };
            let config = builder
                .with_single_cert(self.chain.clone(), self.key.clone_key())
                .unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            thread::spawn(move || {
                let (socket, _) = listener.accept().unwrap();
                let connection = ServerConnection::new(Arc::new(config)).unwrap();
                let mut stream = StreamOwned::new(connection, socket);
                let mut buffer = [0; 4096];
                // A client that turns the server down ends it, too.
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
            addr
        }
    }

    /// Sends `bytes` and returns as many that came back, and what went over the socket.
    fn echoed(addr: SocketAddr, tls: &Tls, bytes: &[u8]) -> io::Result<(Vec<u8>, Traffic)> {
        let mut stream = Stream::open(addr, Some(tls))?;
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(8);
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(stream.socket(), Token(0), both)?;
        let (mut sent, mut back) = (0, Vec::new());
        let mut buffer = vec![0; 1000];
        let mut traffic = Traffic::default();
        while back.len() < bytes.len() {
            poll.poll(&mut events, Some(Duration::from_secs(30)))?;
            assert!(!events.is_empty(), "nothing has come for half a minute");
            if stream.socket().peer_addr().is_err() {
                continue;
            }
            loop {
                stream.flush()?;
                match stream.write(&bytes[sent..])? {
                    0 => break,
                    count => sent += count,
                }
            }
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => back.extend_from_slice(&buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            traffic += stream.take_traffic();
        }
        Ok((back, traffic))
    }

    #[test]
    fn bytes_come_through_tls_as_they_went_however_many_they_are() {
        let pki = Pki::new();
        let tls = pki.files().read("localhost").unwrap();
        for length in [1, 300_000] {
            let bytes: Vec<u8> = (0..length)
                .map(|at: u32| at.to_le_bytes()[at as usize % 3])
                .collect();
            let (back, traffic) = echoed(pki.echo(false), &tls, &bytes).unwrap();
            assert!(back == bytes);
            // With what TLS adds.
            assert!(traffic.bytes_in > bytes.len() as u64, "{traffic:?}");
            assert!(traffic.bytes_out > bytes.len() as u64, "{traffic:?}");
        }
    }

    fn fault(error: io::Error) -> rustls::Error {
        error.downcast().unwrap()
    }

    #[test]
    fn a_server_that_nobody_known_has_signed_for_its_name_is_turned_down() {
        let (pki, other) = (Pki::new(), Pki::new());
        let stranger = other.files().read("localhost").unwrap();
        let error = fault(echoed(pki.echo(false), &stranger, b"x").unwrap_err());
        assert!(
            matches!(error, rustls::Error::InvalidCertificate(_)),
            "{error}"
        );
        let elsewhere = pki.files().read("example.org").unwrap();
        let error = fault(echoed(pki.echo(false), &elsewhere, b"x").unwrap_err());
        assert!(error.to_string().contains("not valid for"), "{error}");
    }

    #[test]
    fn a_certificate_is_shown_to_a_server_that_wants_one() {
        let pki = Pki::new();
        let without = pki.files();
        let error = echoed(pki.echo(true), &without.read("localhost").unwrap(), b"x");
        let error = fault(error.unwrap_err());
        assert!(matches!(error, rustls::Error::AlertReceived(_)), "{error}");
        let with = TlsFiles {
            cert: Some(pki.folder.path().join("both.pem")),
            ..without
        };
        let (back, _) = echoed(pki.echo(true), &with.read("localhost").unwrap(), b"x").unwrap();
        assert_eq!(back, b"x");
    }

    #[test]
    fn files_that_have_not_what_they_should_are_told_by_name() {
        let pki = Pki::new();
        let ca = pki.folder.path().join("ca.pem");
        let empty = pki.folder.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        let told = |files: TlsFiles| files.read("localhost").unwrap_err().to_string();
        let files = |ca: &Path| TlsFiles {
            ca: vec![ca.to_owned()],
            ..TlsFiles::default()
        };
        assert!(told(files(&empty)).contains("empty.pem: it has no certificate"));
        assert!(told(files(Path::new("/nonexistent"))).starts_with("/nonexistent: "));
        let keyless = TlsFiles {
            cert: Some(ca.clone()),
            ..files(&ca)
        };
        assert!(told(keyless).contains("ca.pem: "));
        assert!(matches!(
            files(&ca).read("not a name"),
            Err(TlsError::Name { .. })
        ));
    }
}
