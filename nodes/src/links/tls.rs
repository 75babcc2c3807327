//! TLS between nodes: one certificate for both roles, and an authority that everybody's certificate must come from.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The files of a node's certificate.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The node's certificate, the chain to its authority after it. PEM.
    pub certificate: PathBuf,
    /// Its private key. PEM.
    pub key: PathBuf,
    /// The authority of all nodes' certificates; with it a node that has none is refused. None: those that the machine
    /// trusts, and no certificate is asked of whoever dials.
    pub authority: Option<PathBuf>,
}

/// Both ends of TLS, ready to use.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or holds something else.
    #[error("cannot use {} for TLS", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not fit together.
    #[error("the certificate, key and authority of this node do not make a TLS configuration")]
    Unfit(#[source] rustls::Error),
    /// The authority is none that a certificate can be checked with.
    #[error("{} holds no authority", .0.display())]
    Authority(PathBuf),
    /// The other side has no certificate of ours, or none for the host we dialled.
    #[error("no TLS with the other side")]
    Handshake(#[source] io::Error),
    /// A host that no certificate can be for.
    #[error("{0} is no host that a certificate can be for")]
    Host(String),
}

impl Tls {
    /// Reads the files.
    pub(super) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(in_file(&files.key))?;
        let roots = Arc::new(match &files.authority {
            Some(path) => authority(path)?,
            None => machine(),
        });
        let server = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let server = server.map_err(TlsError::Unfit)?;
        let server = match &files.authority {
            Some(path) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
                server.with_client_cert_verifier(verifier.map_err(|_| TlsError::Authority(path.clone()))?)
            }
            None => server.with_no_client_auth(),
        };
        let server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(TlsError::Unfit)?;
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let client = client.map_err(TlsError::Unfit)?.with_root_certificates(roots);
        let client = client.with_client_auth_cert(chain, key).map_err(TlsError::Unfit)?;
        Ok(Self { connector: Arc::new(client).into(), acceptor: Arc::new(server).into() })
    }

    pub(super) async fn dial(&self, address: &str, stream: TcpStream) -> Result<client::TlsStream<TcpStream>, TlsError> {
        // `host:port`, an IPv6 host in brackets.
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Host(host.to_owned()))?;
        self.connector.connect(name, stream).await.map_err(TlsError::Handshake)
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> Result<server::TlsStream<TcpStream>, TlsError> {
        self.acceptor.accept(stream).await.map_err(TlsError::Handshake)
    }
}

/// A door that nobody gets through: it has no certificate to show, so every handshake fails.
pub(super) fn closed_door() -> TlsAcceptor {
    #[derive(Debug)]
    struct NoCertificate;
    impl rustls::server::ResolvesServerCert for NoCertificate {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
    }
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows the versions it was made for")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    Arc::new(config).into()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(in_file(path))?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(in_file(path))?;
    if certificates.is_empty() {
        return Err(in_file(path)(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn authority(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|_| TlsError::Authority(path.to_owned()))?;
    }
    Ok(roots)
}

fn machine() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn in_file(path: &Path) -> impl FnOnce(rustls::pki_types::pem::Error) -> TlsError {
    let path = path.to_owned();
    |source| TlsError::File { path, source }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn nobody_gets_through_the_closed_door() {
        let (near, far) = duplex(64 << 10);
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = TlsConnector::from(Arc::new(client)).connect(name, near);
        let (accepted, connected) = tokio::join!(closed_door().accept(far), connecting);
        assert!(accepted.is_err() && connected.is_err());
    }
}
