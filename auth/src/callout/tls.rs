//! TLS towards those who are asked: whom to believe, and what to show them.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use chinwag_core::plugin::BuildError;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::watch::Unusable;

/// The files of one side of TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    /// Those who may have signed the other's certificate. `None`: those that the system trusts.
    pub(crate) ca: Option<PathBuf>,
    /// What is shown to the other, with its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(identity).cloned().collect()
    }

    /// Reads the files. Blocks.
    pub(crate) fn read(&self) -> Result<Arc<ClientConfig>, Unusable<BuildError>> {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            for certificate in certificates("ca", ca)? {
                roots
                    .add(certificate)
                    .map_err(|error| at_fault("ca", ca, &error))?;
            }
        } else {
            let trusted = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(trusted.certs);
            if roots.is_empty() {
                let nobody = BuildError::key(
                    "ca",
                    "the system trusts nobody: name with `ca` who may sign the certificates of endpoints",
                );
                return Err(if trusted.errors.is_empty() {
                    Unusable::Bad(nobody)
                } else {
                    Unusable::Unread(nobody)
                });
            }
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what the default versions need")
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates("cert", cert)?;
                let private = PrivateKeyDer::from_pem_slice(&bytes("key", key)?)
                    .map_err(|error| at_fault("key", key, &error))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| at_fault("cert", cert, &error))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Unusable<BuildError>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes(key, path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| at_fault(key, path, &error))?;
    if certificates.is_empty() {
        return Err(Unusable::Bad(BuildError::key(
            key,
            format!("{} has no certificate in PEM form", path.display()),
        )));
    }
    Ok(certificates)
}

fn bytes(key: &'static str, path: &Path) -> Result<Vec<u8>, Unusable<BuildError>> {
    fs::read(path).map_err(|error| Unusable::Unread(fault(key, path, &error)))
}

fn at_fault(key: &'static str, path: &Path, error: &dyn Display) -> Unusable<BuildError> {
    Unusable::Bad(fault(key, path, error))
}

fn fault(key: &'static str, path: &Path, error: &dyn Display) -> BuildError {
    BuildError::key(key, format!("{} can't be used: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_can_not_be_read_is_tried_again_and_a_faulty_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let files = TlsFiles {
            ca: Some(ca.clone()),
            identity: None,
        };
        assert!(matches!(files.read(), Err(Unusable::Unread(_))));
        fs::write(&ca, "nonsense").unwrap();
        assert!(matches!(files.read(), Err(Unusable::Bad(_))));
    }
}
