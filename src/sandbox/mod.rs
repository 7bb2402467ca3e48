//! A local emulator of the Antom gateway, for `dev` and for merchants' own tests.
//!
//! It checks every signature, signs every answer, charges one `paymentRequestId` once, sends signed
//! notifications until they are acknowledged, and keeps its books on disk. Test cards decide how a payment ends; amounts make the gateway slow, silent, wrong or
//! malicious, so that a client's recovery can be tested ([`CARDS_HELP`] lists them all). It shares no code
//! with the gateway client but the data types: one mistake cannot hide in both. It is not for real cards.

mod answer;
mod api;
mod cards;
mod check;
mod deliver;
mod inquiry;
mod ledger;
mod mask;
mod notices;
mod operations;
mod pages;
mod pay;
mod payment;
mod server;
mod sign;
mod spoil;
#[cfg(test)]
mod tests;
mod triggers;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::base::mutex::held;

use self::api::Core;
use self::ledger::Ledger;
use self::sign::{GatewayKey, MerchantKey};

pub use self::cards::CardFacts;
pub use self::ledger::{LedgerEntry, Operation, Status, ThreeDs};

/// Every card and every amount that means something, for `sandbox --help`.
pub const CARDS_HELP: &str = include_str!("cards.txt");

/// Where the sandbox listens when nothing else is said.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8444);

/// How long a slow answer takes; silence takes four times as long, more than a client waits.
pub const DEFAULT_SLOW: Duration = Duration::from_secs(10);

/// The gaps between the sendings of a notification that nobody acknowledges: eight in all, over a day.
pub const DEFAULT_NOTIFY_GAPS: [Duration; 7] = [
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(15 * 3600),
];

/// How notifications are sent.
#[derive(Debug, Clone)]
pub struct NotifyOptions {
    /// The only roots that a receiver's certificate may lead to; without them, those of the public web.
    pub ca_pem: Option<Vec<u8>>,
    /// One sending, and one more after each of these.
    pub gaps: Vec<Duration>,
}

impl Default for NotifyOptions {
    fn default() -> Self {
        Self { ca_pem: None, gaps: DEFAULT_NOTIFY_GAPS.to_vec() }
    }
}

/// What a sandbox needs.
pub struct Options {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate chain of the HTTPS server.
    pub tls_certificate_pem: Vec<u8>,
    /// Its private key.
    pub tls_private_key_pem: Vec<u8>,
    /// The file of payments; made if it is not there.
    pub ledger: PathBuf,
    /// The only client id that is served.
    pub client_id: String,
    /// SubjectPublicKeyInfo, PEM or bare base64: verifies requests.
    pub merchant_public_key_pem: Vec<u8>,
    /// PKCS#8 or PKCS#1, PEM or bare base64: signs answers.
    pub gateway_private_key_pem: Vec<u8>,
    /// Named in signatures.
    pub gateway_key_version: u32,
    /// How long a slow answer takes.
    pub slow: Duration,
    /// Whether notifications are sent, to `paymentNotifyUrl` and `refundNotifyUrl`; `None` sends none.
    pub notify: Option<NotifyOptions>,
}

/// A running sandbox. Dropping it closes its connections.
pub struct Sandbox {
    core: Arc<Core>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
    notifying: Option<JoinHandle<()>>,
}

/// One call as it may be shown, to the gateway or, a notification, from it: card numbers and CVVs are
/// masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// With its query; a notification's is its whole address.
    pub path: String,
    /// The request's body.
    pub request: String,
    /// The answer's body, or what was done in its place.
    pub answer: String,
    /// Whether the gateway made the call.
    pub notification: bool,
}

/// Why a sandbox does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate chain is not PEM.
    #[error("the TLS certificate is not PEM")]
    Certificate,
    /// The certificate's key is not PEM.
    #[error("the TLS private key is not PEM")]
    PrivateKey,
    /// Certificate and key do not go together.
    #[error("the TLS certificate or its key cannot be used")]
    Tls(#[from] tokio_rustls::rustls::Error),
    /// Neither PEM nor base64 of a SubjectPublicKeyInfo.
    #[error("the merchant's public key is not a SubjectPublicKeyInfo")]
    MerchantPublicKey,
    /// Neither PEM nor base64 of an RSA private key.
    #[error("the gateway's private key is not an RSA private key")]
    GatewayPrivateKey,
    /// The roots for notifications are not PEM certificates.
    #[error("the roots for notifications are not certificates")]
    NotifyRoots,
    /// The client that sends notifications.
    #[error("notifications cannot be sent")]
    NotifyClient,
    /// A line that this program did not write.
    #[error("line {0} of the ledger is not a ledger line")]
    LedgerLine(usize),
    /// Another sandbox has the ledger open.
    #[error("the ledger is in use by another sandbox")]
    LedgerInUse,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoEntropy,
    /// The ledger or the listener.
    #[error("the ledger or the listener cannot be opened")]
    Io(#[from] std::io::Error),
}

impl Sandbox {
    /// Opens the ledger, binds the listener and serves.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let tls = server::tls(&options.tls_certificate_pem, &options.tls_private_key_pem)?;
        let merchant = MerchantKey::read(&options.merchant_public_key_pem)?;
        let gateway = GatewayKey::read(&options.gateway_private_key_pem, options.gateway_key_version)?;
        let sender = options.notify.map(deliver::Sender::new).transpose()?;
        let path = options.ledger;
        let delay = sender.is_some().then_some(options.slow);
        let ledger = tokio::task::spawn_blocking(move || Ledger::open(&path, delay))
            .await
            .map_err(std::io::Error::other)??;
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let core = Arc::new(Core {
            client_id: options.client_id,
            merchant,
            gateway,
            ledger,
            calls: Mutex::new(VecDeque::new()),
            slow: options.slow,
            base_url: format!("https://{}", reachable(address)),
        });
        let accepting = tokio::spawn(server::accept(listener, tls, Arc::clone(&core)));
        let notifying = sender.map(|sender| tokio::spawn(deliver::run(Arc::clone(&core), sender)));
        tracing::info!(%address, client_id = core.client_id, "the sandbox takes requests");
        Ok(Self { core, address, accepting, notifying })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:PORT`, or the address that it was told to listen on.
    pub fn base_url(&self) -> String {
        self.core.base_url.clone()
    }

    /// Every payment that it has acted on, in the order of first sight.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        self.core.ledger.entries()
    }

    /// What a payment has cost its buyer in the end, in smallest units: captured, less refunded, nothing
    /// if cancelled or unknown.
    pub fn net_charged(&self, payment_request_id: &str) -> u64 {
        let entries = self.ledger();
        let of_id = |entry: &&LedgerEntry| entry.payment_request_id == payment_request_id;
        entries.iter().find(of_id).map_or(0, LedgerEntry::net_charged)
    }

    /// The last 64 calls, notifications among them, oldest first.
    pub fn recent_calls(&self) -> Vec<Call> {
        held(&self.core.calls).iter().cloned().collect()
    }

    /// Closes the listener and every connection, and sends no more; what was not acknowledged is sent
    /// when a sandbox opens the ledger again.
    pub async fn stop(mut self) {
        self.accepting.abort();
        // Cancelled is what it should be.
        let _ = (&mut self.accepting).await;
        if let Some(mut notifying) = self.notifying.take() {
            notifying.abort();
            let _ = (&mut notifying).await;
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Some(notifying) = &self.notifying {
            notifying.abort();
        }
    }
}

/// An address that a client on this machine can call when the listener takes any.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
