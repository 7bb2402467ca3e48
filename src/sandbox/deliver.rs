//! Sends notifications until they are acknowledged. The queue is the ledger's: what a sandbox did not get
//! rid of, the next one sends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::api::Core;
use super::notices::Notice;
use super::server::{SILENCE, blocking};
use super::sign::Signed;
use super::{Call, Error, NotifyOptions, mask};
use crate::base::clock::Millis;
use crate::gateway::antom::wire;

/// For one sending, from the connection to the last byte of the answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// More of an answer is not read.
const ANSWER_BYTES: usize = 64 * 1024;
/// Most notifications on their way at once.
const AT_ONCE: usize = 64;
/// How long the queue rests when there is nothing to wait for, or when the disk fails.
const REST: Duration = Duration::from_secs(60);
/// How often a held answer looks whether its notification has been sent.
const LOOK: Duration = Duration::from_millis(10);

/// What is needed to send.
pub(super) struct Sender {
    http: Client,
    gaps: Vec<Duration>,
}

impl Sender {
    /// A client that trusts what it is told to trust, and follows nobody.
    pub fn new(options: NotifyOptions) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        match &options.ca_pem {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|_| Error::NotifyRoots)?;
                    roots.add(certificate).map_err(|_| Error::NotifyRoots)?;
                }
            }
        }
        if roots.is_empty() {
            return Err(Error::NotifyRoots);
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .timeout(TIMEOUT)
            .build()
            .map_err(|_| Error::NotifyClient)?;
        Ok(Self { http, gaps: options.gaps })
    }

    /// When a notification that was sent `sent` times before and now once more is due again, if ever.
    fn next(&self, sent: u32, now: Millis) -> Option<Millis> {
        let gap = usize::try_from(sent).ok().and_then(|sent| self.gaps.get(sent))?;
        Some(now.plus(*gap))
    }
}

/// Sends what is due until it is dropped. Notifications of one payment go one after the other.
pub(super) async fn run(core: Arc<Core>, sender: Sender) {
    let sender = Arc::new(sender);
    let mut busy: HashSet<String> = HashSet::new();
    let mut sending: JoinSet<String> = JoinSet::new();
    loop {
        let (ready, pause) = due(&core, &busy).await;
        for notice in ready {
            if sending.len() >= AT_ONCE {
                break;
            }
            if busy.insert(notice.payment_request_id.clone()) {
                sending.spawn(send(Arc::clone(&core), Arc::clone(&sender), notice));
            }
        }
        tokio::select! {
            Some(sent) = sending.join_next() => match sent {
                Ok(payment_request_id) => drop(busy.remove(&payment_request_id)),
                Err(_) => tracing::error!("a notification of the sandbox broke off"),
            },
            () = core.ledger.queued.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// The first notifications to send now, of payments that are not busy, and how long the next one waits.
async fn due(core: &Arc<Core>, busy: &HashSet<String>) -> (Vec<Notice>, Duration) {
    let (books, busy) = (Arc::clone(core), busy.clone());
    let found = blocking(move || {
        let now = books.now().0;
        // All that is seen here is on disk when it is sent.
        books.ledger.with(|books| {
            let idle = books.notices().filter(|notice| !busy.contains(&notice.payment_request_id));
            let (mut ready, later): (Vec<_>, Vec<_>) = idle.partition(|notice| notice.due <= now);
            ready.sort_by_key(|notice| (notice.due, notice.number));
            let ready: Vec<Notice> = ready.into_iter().take(AT_ONCE).cloned().collect();
            let pause = later.iter().map(|notice| notice.due.abs_diff(now)).min();
            Ok((ready, pause.map_or(REST, Duration::from_millis).min(REST)))
        })
    })
    .await;
    match found {
        Ok(Ok(found)) => found,
        _ => {
            tracing::error!("the sandbox's notifications could not be read");
            (Vec::new(), REST)
        }
    }
}

/// Sends a notification once and writes down what came of it.
async fn send(core: Arc<Core>, sender: Arc<Sender>, notice: Notice) -> String {
    let (acknowledged, answer) = attempt(&core, &sender, &notice).await;
    core.show(Call {
        path: mask::text(&notice.url),
        request: mask::body(notice.body.as_bytes()),
        answer,
        notification: true,
    });
    tracing::info!(acknowledged, sent = notice.sent, "the sandbox has sent a notification");
    let due = if acknowledged { None } else { sender.next(notice.sent, core.now()) };
    let number = notice.number;
    let written = blocking(move || core.ledger.with(|books| books.sent(number, due))).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::error!("the sandbox's ledger could not be written");
        // Not to be sent again and again while the disk fails.
        sleep(REST).await;
    }
    notice.payment_request_id
}

async fn attempt(core: &Core, sender: &Sender, notice: &Notice) -> (bool, String) {
    let Ok(url) = Url::parse(&notice.url) else {
        return (false, "(not sent: the address cannot be read)".to_owned());
    };
    let Some(headers) = headers(core, &url, notice) else {
        return (false, "(not sent: it could not be signed)".to_owned());
    };
    match sender.http.post(url).headers(headers).body(notice.body.clone()).send().await {
        Ok(answer) => {
            let status = answer.status();
            match read(answer).await {
                Some(bytes) if status == StatusCode::OK => (acknowledges(&bytes), mask::body(&bytes)),
                _ => (false, format!("(HTTP {})", status.as_u16())),
            }
        }
        Err(_) => (false, "(no answer)".to_owned()),
    }
}

fn headers(core: &Core, url: &Url, notice: &Notice) -> Option<HeaderMap> {
    let time = core.now().0.to_string();
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let body: &[u8] = if notice.wrongly_signed { b"{}" } else { notice.body.as_bytes() };
    let signature = core.gateway.sign(Signed {
        method: "POST",
        path: &path,
        client_id: &core.client_id,
        time: &time,
        body,
    })?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    let named = [
        (wire::CLIENT_ID, core.client_id.as_str()),
        (wire::REQUEST_TIME, &time),
        (wire::SIGNATURE, &signature),
    ];
    for (name, value) in named {
        headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value).ok()?);
    }
    Some(headers)
}

/// Nothing but a success takes a notification off the queue (reference 5).
fn acknowledges(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Value>(bytes).is_ok_and(|answer| {
        answer["result"]["resultStatus"] == "S" && answer["result"]["resultCode"] == "SUCCESS"
    })
}

async fn read(mut answer: Response) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if bytes.len() + chunk.len() > ANSWER_BYTES {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

/// Waits until every notification of a payment has been sent once, for as long as silence lasts.
pub(super) async fn notified(core: &Arc<Core>, payment_request_id: Option<&str>) {
    let Some(id) = payment_request_id else { return };
    let all_sent = async {
        loop {
            let (books, id) = (Arc::clone(core), id.to_owned());
            let waits = blocking(move || {
                books.ledger.with(|books| {
                    Ok(books.notices().any(|notice| notice.payment_request_id == id && notice.sent == 0))
                })
            });
            if !matches!(waits.await, Ok(Ok(true))) {
                return;
            }
            sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(core.slow * SILENCE, all_sent).await;
}
