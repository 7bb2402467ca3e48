//! Keys and certificates that `init` and `dev` make, and tests with them: a small authority, the
//! server's and the clients' certificates, and the RSA pair of a merchant. Everything is made from
//! the operating system's randomness. A private key leaves here only in a type that wipes itself;
//! nothing here is used while requests are served.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, RevokedCertParams, SanType, SerialNumber,
};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::rand_core::{TryCryptoRng, TryRng};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::base::clock::Millis;
use crate::base::entropy::{self, NoEntropy};
use crate::base::secret::SecretText;

/// Lifetime of a server's or client's certificate. Short, because the file on the client's disk is
/// all that an attacker needs.
pub const LEAF_DAYS: u32 = 90;
/// Lifetime of an authority that `init` or `dev` makes.
pub const AUTHORITY_DAYS: u32 = 3650;
/// Certificates start a little in the past, for peers whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// Bits of an RSA key: what Antom takes.
const RSA_BITS: usize = 2048;

/// A key or certificate could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// No randomness, so no key and no serial number.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
    /// A name that cannot stand in a certificate, or a key that the authority cannot use.
    #[error("the certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// A time outside of what a certificate can say.
    #[error("the certificate's lifetime is outside of what a certificate can hold")]
    Lifetime,
    /// The authority's certificate is not PEM, not X.509, or not of a shape that cardvault makes.
    #[error("this is not an authority that cardvault made; issue certificates with your own tools")]
    ForeignAuthority,
    /// The authority's key belongs to another certificate.
    #[error("the authority's private key does not belong to its certificate")]
    KeyMismatch,
    /// The RSA key could not be made.
    #[error("the RSA key could not be made")]
    Rsa(#[source] rsa::Error),
    /// The RSA key could not be written as PEM.
    #[error("the RSA key could not be encoded")]
    Encoding,
}

/// A certificate and its private key, both as PEM.
pub struct CertifiedPem {
    /// The certificate.
    pub certificate_pem: String,
    /// The key, PKCS#8.
    pub private_key_pem: SecretText,
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To be a TLS server.
    Server,
    /// To be a TLS client.
    Client,
}

/// What a leaf certificate says. Tests use it to make the certificates that must be refused.
#[derive(Debug, Clone)]
pub struct LeafOptions {
    /// For people; no check ever looks at it.
    pub common_name: String,
    /// URI names, such as `spiffe://cardvault/acme/checkout`.
    pub uri_sans: Vec<String>,
    /// DNS names.
    pub dns_sans: Vec<String>,
    /// IP addresses.
    pub ip_sans: Vec<IpAddr>,
    /// Extended key usages; none leaves the extension out.
    pub usages: Vec<Usage>,
    /// First moment of validity.
    pub not_before: Millis,
    /// Last moment of validity.
    pub not_after: Millis,
}

impl LeafOptions {
    /// No names and no usages, valid from a little before `now` for `days`.
    pub fn valid_for(now: Millis, days: u32) -> Self {
        Self {
            common_name: String::new(),
            uri_sans: Vec::new(),
            dns_sans: Vec::new(),
            ip_sans: Vec::new(),
            usages: Vec::new(),
            not_before: backdated(now),
            not_after: now.plus(days_long(days)),
        }
    }
}

/// A certificate authority with an ECDSA P-256 key.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority. `name` is for people.
    pub fn make(name: &str, now: Millis) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = authority_params(name);
        params.serial_number = Some(serial_number()?);
        params.not_before = moment(backdated(now))?;
        params.not_after = moment(now.plus(days_long(AUTHORITY_DAYS)))?;
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// Reads an authority that [`Authority::make`] made. One from elsewhere is refused: the names in
    /// its certificates might not be copied to the byte, and its leaves would not be trusted.
    pub fn load(certificate_pem: &str, private_key_pem: &SecretText) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(private_key_pem.expose())?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| PkiError::ForeignAuthority)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| PkiError::ForeignAuthority)?;
        let mut names = certificate.subject().iter_attributes();
        let name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().map_err(|_| PkiError::ForeignAuthority)?.to_owned(),
            _ => return Err(PkiError::ForeignAuthority),
        };
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::KeyMismatch);
        }
        let params = authority_params(&name);
        // The name that leaves will carry must be the authority's own, to the byte.
        let probe = params.self_signed(&key)?;
        let (_, probe) = X509Certificate::from_der(probe.der()).map_err(|_| PkiError::ForeignAuthority)?;
        if probe.subject().as_raw() != certificate.subject().as_raw() || !certificate.is_ca() {
            return Err(PkiError::ForeignAuthority);
        }
        Ok(Self { certificate_pem: certificate_pem.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's private key, PKCS#8.
    pub fn private_key_pem(&self) -> SecretText {
        SecretText::new(self.issuer.key().serialize_pem())
    }

    /// A server's certificate for DNS names and IP addresses.
    pub fn server(&self, names: &[&str], now: Millis, days: u32) -> Result<CertifiedPem, PkiError> {
        let mut options = LeafOptions::valid_for(now, days);
        options.common_name = "cardvault server".to_owned();
        options.usages = vec![Usage::Server];
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(address) => options.ip_sans.push(address),
                Err(_) => options.dns_sans.push((*name).to_owned()),
            }
        }
        self.leaf(&options)
    }

    /// A client's certificate. `uri_san` is the name that the configuration maps to a client.
    pub fn client(&self, uri_san: &str, now: Millis, days: u32) -> Result<CertifiedPem, PkiError> {
        let mut options = LeafOptions::valid_for(now, days);
        options.common_name = "cardvault client".to_owned();
        options.usages = vec![Usage::Client];
        options.uri_sans = vec![uri_san.to_owned()];
        self.leaf(&options)
    }

    /// A leaf certificate as `options` say, with a new ECDSA P-256 key.
    pub fn leaf(&self, options: &LeafOptions) -> Result<CertifiedPem, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&options.common_name);
        params.serial_number = Some(serial_number()?);
        params.not_before = moment(options.not_before)?;
        params.not_after = moment(options.not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = options
            .usages
            .iter()
            .map(|usage| match usage {
                Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
                Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            })
            .collect();
        for uri in &options.uri_sans {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        for dns in &options.dns_sans {
            params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into()?));
        }
        params.subject_alt_names.extend(options.ip_sans.iter().copied().map(SanType::IpAddress));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(CertifiedPem {
            certificate_pem: certificate.pem(),
            private_key_pem: SecretText::new(key.serialize_pem()),
        })
    }

    /// A signed revocation list (PEM) that names the certificates with these serial numbers.
    pub fn revocation_list(&self, serials: &[Vec<u8>], now: Millis, days: u32) -> Result<String, PkiError> {
        let this_update = moment(backdated(now))?;
        let params = CertificateRevocationListParams {
            this_update,
            next_update: moment(now.plus(days_long(days)))?,
            crl_number: serial_number()?,
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: this_update,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}

/// The serial number of a PEM certificate, as [`Authority::revocation_list`] wants it.
pub fn serial_of(certificate_pem: &str) -> Option<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(certificate.raw_serial().to_vec())
}

/// An RSA pair as Antom's dashboard and the vault's configuration take it.
pub struct RsaPair {
    /// The private key, PKCS#8 PEM.
    pub private_pkcs8_pem: SecretText,
    /// The public key, SubjectPublicKeyInfo PEM.
    pub public_spki_pem: String,
}

/// Makes a 2048-bit RSA pair. The `rsa` crate is used for this alone: it signs in variable time
/// (RUSTSEC-2023-0071), so all signing is done elsewhere.
pub fn rsa_key_pair() -> Result<RsaPair, PkiError> {
    let key = rsa::PrivateKey::new(&mut OsRandom, RSA_BITS).map_err(PkiError::Rsa)?;
    let private = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| PkiError::Encoding)?;
    let public = key.to_public_key().to_public_key_pem(LineEnding::LF).map_err(|_| PkiError::Encoding)?;
    Ok(RsaPair { private_pkcs8_pem: SecretText::from(private.as_str()), public_spki_pem: public })
}

/// Writes a new file that only its owner can read (0600), and waits for the disk. An existing file is
/// never overwritten: it may hold the only copy of a key.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_new(path, bytes, 0o600)
}

/// Writes a new file that everybody may read (0644), and waits for the disk. An existing file is
/// never overwritten.
pub fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_new(path, bytes, 0o644)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits away.
    file.set_permissions(PermissionsExt::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// The operating system's randomness in the shape that the `rsa` crate asks for.
struct OsRandom;

impl TryRng for OsRandom {
    type Error = NoEntropy;

    fn try_next_u32(&mut self) -> Result<u32, NoEntropy> {
        Ok(u32::from_ne_bytes(entropy::array()?))
    }

    fn try_next_u64(&mut self) -> Result<u64, NoEntropy> {
        Ok(u64::from_ne_bytes(entropy::array()?))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), NoEntropy> {
        entropy::fill(bytes)
    }
}

impl TryCryptoRng for OsRandom {}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    // It signs leaves and nothing else, so a stolen leaf can never become an authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::Sha256;
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
    names
}

/// 126 random bits: positive, and never with a leading zero byte to be dropped by an encoder.
fn serial_number() -> Result<SerialNumber, PkiError> {
    let mut bytes: [u8; 16] = entropy::array()?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn moment(at: Millis) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(at.0.div_euclid(1000)).map_err(|_| PkiError::Lifetime)
}

fn backdated(now: Millis) -> Millis {
    Millis(now.0.saturating_sub(i64::try_from(BACKDATED.as_millis()).unwrap_or(0)))
}

fn days_long(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{Clock, SystemClock};
    use ring::rand::SystemRandom;
    use ring::signature;

    #[test]
    fn an_authority_survives_being_written_and_read() {
        let now = SystemClock.now();
        let made = Authority::make("cardvault development authority", now).unwrap();
        let loaded = Authority::load(made.certificate_pem(), &made.private_key_pem()).unwrap();
        let leaf = loaded.client("spiffe://cardvault/acme/checkout", now, LEAF_DAYS).unwrap();
        let ca = CertificateDer::from_pem_slice(made.certificate_pem().as_bytes()).unwrap();
        let leaf = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes()).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        assert_eq!(leaf.issuer().as_raw(), ca.subject().as_raw());
        assert!(!leaf.is_ca() && ca.is_ca());
        let lifetime = leaf.validity().not_after.timestamp() - now.0 / 1000;
        assert_eq!(lifetime, i64::from(LEAF_DAYS) * 86_400);
    }

    #[test]
    fn another_authoritys_key_or_certificate_is_refused() {
        let now = SystemClock.now();
        let one = Authority::make("one", now).unwrap();
        let two = Authority::make("two", now).unwrap();
        let mixed = Authority::load(one.certificate_pem(), &two.private_key_pem());
        assert!(matches!(mixed, Err(PkiError::KeyMismatch)));
        let leaf = one.client("spiffe://x/y", now, 1).unwrap();
        let not_a_ca = Authority::load(&leaf.certificate_pem, &leaf.private_key_pem);
        assert!(matches!(not_a_ca, Err(PkiError::ForeignAuthority)));
        assert!(Authority::load("no PEM", &one.private_key_pem()).is_err());
    }

    #[test]
    fn a_name_that_is_not_ascii_is_an_error() {
        let now = SystemClock.now();
        let authority = Authority::make("one", now).unwrap();
        assert!(authority.client("spiffe://cardvault/ä", now, 1).is_err());
        assert!(matches!(authority.client("a:b", Millis(i64::MAX), 1), Err(PkiError::Lifetime)));
    }

    #[test]
    fn the_rsa_pair_is_one_that_ring_signs_and_verifies_with() {
        let pair = rsa_key_pair().unwrap();
        let private =
            rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(pair.private_pkcs8_pem.expose().as_bytes())
                .unwrap();
        let key = signature::RsaKeyPair::from_pkcs8(private.secret_pkcs8_der()).unwrap();
        assert_eq!(key.public().modulus_len(), RSA_BITS / 8);
        let mut signed = vec![0; key.public().modulus_len()];
        key.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), b"words", &mut signed).unwrap();
        let public =
            rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pair.public_spki_pem.as_bytes())
                .unwrap();
        let (_, spki) = x509_parser::x509::SubjectPublicKeyInfo::from_der(&public).unwrap();
        signature::UnparsedPublicKey::new(
            &signature::RSA_PKCS1_2048_8192_SHA256,
            &spki.subject_public_key.data,
        )
        .verify(b"words", &signed)
        .unwrap();
    }

    #[test]
    fn files_get_their_mode_and_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("a.key"), dir.path().join("a.pem"));
        write_private(&private, b"key").unwrap();
        write_public(&public, b"certificate").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&private), mode(&public)), (0o600, 0o644));
        let again = write_private(&private, b"other").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&private).unwrap(), b"key");
    }
}
