//! The walk of `cardvault dev`: the main job, step by step, with what crossed the wire on either side.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::sandbox::Sandbox;

use super::walk_ids::{self, CAPTURED, Ids, REFUNDED};

/// The request of Antom's card payment page.
const SAMPLE: &str = include_str!("../../tests/samples/pay-server-to-server.json");

/// What the walk goes through.
pub struct Walk<'a> {
    /// Where the certificates are.
    pub dir: &'a Path,
    /// Where the API listens.
    pub address: SocketAddr,
    /// The gateway, where it is the local one.
    pub sandbox: Option<&'a Sandbox>,
}

/// How many events are shown of a feed that has grown.
const EVENTS_SHOWN: usize = 20;

/// Goes through the main job and prints it; fails at the first step that does not do what it should. Gives the
/// id of its payment.
pub async fn run(walk: &Walk<'_>) -> anyhow::Result<String> {
    let merchant = Merchant::new(walk, "checkout")?;
    let sample: Value = serde_json::from_str(SAMPLE)?;
    let card_id = tokenise(&merchant, &sample).await?;
    let ids = walk_ids::choose(&merchant, walk, &sample, &card_id).await?;
    pay(&merchant, walk, &sample, &card_id, &ids.pay).await?;
    outcome(&merchant, walk, &ids.pay).await?;
    let subscriptions = Merchant::new(walk, "subscriptions")?;
    let backoffice = Merchant::new(walk, "backoffice")?;
    let request = by_reference(&sample, &card_id, &ids.store, "2500");
    let agreement_id = store(&merchant, walk, request).await?;
    let request = by_reference(&sample, &card_id, &ids.charge, "2500");
    charge(&subscriptions, walk, request, &agreement_id).await?;
    capture(&backoffice, walk, &ids).await?;
    refund(&backoffice, walk, &ids).await?;
    feed(&backoffice, &ids.refund).await?;
    Ok(ids.pay)
}

/// The sample's request by reference, under another id and for another sum.
fn by_reference(sample: &Value, card_id: &str, id: &str, value: &str) -> Value {
    let mut request = sample.clone();
    request["paymentRequestId"] = json!(id);
    request["paymentAmount"]["value"] = json!(value);
    let method = &mut request["paymentMethod"];
    method["paymentMethodId"] = json!(card_id);
    if let Some(metadata) = method["paymentMethodMetaData"].as_object_mut() {
        for name in
            ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName", "billingAddress", "isCardOnFile"]
        {
            metadata.remove(name);
        }
    }
    request
}

async fn store(merchant: &Merchant, walk: &Walk<'_>, mut request: Value) -> anyhow::Result<String> {
    title(4, "The buyer lets his card be kept for a subscription, and pays the first month");
    request["storedCredential"] = json!({
        "initiator": "CUSTOMER",
        "agreement": {
            "type": "SCHEDULED",
            "consent": { "acceptedAt": "2026-01-01T12:00:00Z", "textVersion": "terms-7" },
            "maxAmount": { "currency": "EUR", "value": "3000" },
            "interval": "P1M"
        }
    });
    let answer = paid(merchant, walk, &request, "storedCredential").await?;
    let agreement_id = answer["agreementId"].as_str().context("the answer has no agreementId")?;
    let path = format!("/v1/agreements/{agreement_id}");
    let (status, agreement) = merchant.call("GET", &path, None).await?;
    arrow(
        "merchant <- vault",
        &format!("{status}  GET {path}"),
        &members(&agreement, &["agreementId", "type", "state", "maxAmount", "networkTransactionId"]),
    );
    ensure!(agreement["state"] == "ACTIVE", "the agreement is not in force");
    Ok(agreement_id.to_owned())
}

async fn charge(
    merchant: &Merchant,
    walk: &Walk<'_>,
    mut request: Value,
    agreement_id: &str,
) -> anyhow::Result<()> {
    title(5, "The subscription service charges the next month; the buyer is not there");
    request["storedCredential"] = json!({ "initiator": "MERCHANT", "agreementId": agreement_id });
    request["paymentFactor"] = json!({ "isAuthorization": true, "captureMode": "MANUAL" });
    if let Some(env) = request["env"].as_object_mut() {
        env.remove("browserInfo");
    }
    if let Some(method) = request["paymentMethod"].as_object_mut() {
        method.remove("paymentMethodMetaData");
    }
    paid(merchant, walk, &request, "storedCredential").await.map(|_| ())
}

/// Pays, shows both sides, and gives the answer.
async fn paid(merchant: &Merchant, walk: &Walk<'_>, request: &Value, more: &str) -> anyhow::Result<Value> {
    let before = walk.sandbox.map_or(0, |sandbox| sandbox.recent_calls().len());
    let (status, answer) = merchant.call("POST", "/v1/payments", Some(request)).await?;
    let mut shown = payment_part(request);
    shown[more] = request[more].clone();
    arrow("merchant -> vault", "POST /v1/payments", &shown);
    if let Some(sandbox) = walk.sandbox {
        show_gateway(sandbox, before)?;
    }
    let mut shown = brief(&answer);
    shown["agreementId"] = answer["agreementId"].clone();
    arrow("merchant <- vault", &status.to_string(), &shown);
    ensure!(status == 200 && answer["status"] == "AUTHORIZED", "the payment was not authorised");
    Ok(answer)
}

async fn capture(merchant: &Merchant, walk: &Walk<'_>, ids: &Ids) -> anyhow::Result<()> {
    title(6, "The back office captures what it has shipped");
    let body = json!({ "captureRequestId": ids.capture, "captureAmount": euros(CAPTURED) });
    operate(merchant, walk, &format!("/v1/payments/{}/captures", ids.charge), &body).await
}

async fn refund(merchant: &Merchant, walk: &Walk<'_>, ids: &Ids) -> anyhow::Result<()> {
    title(7, "It gives a part back");
    let body = json!({ "refundRequestId": ids.refund, "refundAmount": euros(REFUNDED) });
    operate(merchant, walk, &format!("/v1/payments/{}/refunds", ids.charge), &body).await?;
    if let Some(sandbox) = walk.sandbox {
        let net = sandbox.net_charged(&ids.charge);
        println!(
            "   the gateway's ledger has {net} cents left of {}: {CAPTURED} captured, {REFUNDED} given back\n",
            ids.charge
        );
        ensure!(net == CAPTURED - REFUNDED, "the gateway's ledger has another sum");
    }
    Ok(())
}

fn euros(cents: u64) -> Value {
    json!({ "currency": "EUR", "value": cents.to_string() })
}

async fn operate(merchant: &Merchant, walk: &Walk<'_>, path: &str, body: &Value) -> anyhow::Result<()> {
    let before = walk.sandbox.map_or(0, |sandbox| sandbox.recent_calls().len());
    let (status, answer) = merchant.call("POST", path, Some(body)).await?;
    arrow("merchant -> vault", &format!("POST {path}"), body);
    let api = if path.ends_with("/captures") { "/capture" } else { "/refund" };
    let calls = walk.sandbox.map(Sandbox::recent_calls).unwrap_or_default();
    let mut sent = calls.get(before..).unwrap_or_default().iter();
    if let Some(call) = sent.find(|call| !call.notification && call.path.ends_with(api)) {
        let request: Value = serde_json::from_str(&call.request).context("the gateway saw no JSON")?;
        arrow("vault -> gateway", &format!("POST {}", call.path), &request);
    }
    let names = ["captureRequestId", "refundRequestId", "status", "captureId", "refundId", "result"];
    arrow("merchant <- vault", &status.to_string(), &members(&answer, &names));
    ensure!(status == 200 && answer["status"] == "SUCCEEDED", "the operation was not done");
    Ok(())
}

async fn feed(merchant: &Merchant, last: &str) -> anyhow::Result<()> {
    title(8, "What happened, in order, for whoever follows the feed");
    let (mut after, mut told) = ("0".to_owned(), Vec::new());
    // The refund is the last that this walk has made; what the gateway notifies of comes in between.
    while !told.iter().any(|line: &String| line.ends_with(last)) {
        let path = format!("/v1/events?after={after}&wait=10");
        let (status, page) = merchant.call("GET", &path, None).await?;
        let events = page["data"].as_array().filter(|events| status == 200 && !events.is_empty());
        for event in events.context("the feed does not tell the refund")? {
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            told.push(format!(
                "   {:>3}  {:<22} {}",
                text(&event["cursor"]),
                text(&event["type"]),
                text(&event["object"]["id"])
            ));
        }
        after = page["next"].as_str().context("the feed has no cursor")?.to_owned();
    }
    let skipped = told.len().saturating_sub(EVENTS_SHOWN);
    if skipped > 0 {
        println!("     …  {skipped} before these");
    }
    println!("{}\n", told[skipped..].join("\n"));
    Ok(())
}

async fn tokenise(merchant: &Merchant, sample: &Value) -> anyhow::Result<String> {
    title(1, "The checkout service hands a card over, and keeps a reference");
    let typed = &sample["paymentMethod"]["paymentMethodMetaData"];
    let mut card = json!({ "referenceBuyerId": sample["order"]["buyer"]["referenceBuyerId"] });
    for name in ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName", "billingAddress"] {
        card[name] = typed[name].clone();
    }
    let (status, answer) = merchant.call("POST", "/v1/cards", Some(&card)).await?;
    arrow("merchant -> vault", "POST /v1/cards", &masked(&card));
    arrow("merchant <- vault", &status.to_string(), &answer);
    ensure!(matches!(status, 200 | 201), "the card was not taken");
    let card_id = answer["cardId"].as_str().context("the answer has no cardId")?;
    ensure!(!answer.to_string().contains(number(sample)), "the answer repeats the card number");
    Ok(card_id.to_owned())
}

async fn pay(
    merchant: &Merchant,
    walk: &Walk<'_>,
    sample: &Value,
    card_id: &str,
    id: &str,
) -> anyhow::Result<()> {
    title(2, "It pays with the reference: Antom's own request, without a card in it");
    let mut request = sample.clone();
    request["paymentRequestId"] = json!(id);
    let method = &mut request["paymentMethod"];
    method["paymentMethodId"] = json!(card_id);
    if let Some(metadata) = method["paymentMethodMetaData"].as_object_mut() {
        for name in ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName", "billingAddress"] {
            metadata.remove(name);
        }
    }
    ensure!(!request.to_string().contains(number(sample)), "the merchant's request holds the card number");
    let before = walk.sandbox.map_or(0, |sandbox| sandbox.recent_calls().len());
    let (status, answer) = merchant.call("POST", "/v1/payments", Some(&request)).await?;
    arrow("merchant -> vault", "POST /v1/payments  (no card number on this side)", &payment_part(&request));
    if let Some(sandbox) = walk.sandbox {
        show_gateway(sandbox, before)?;
    }
    arrow("merchant <- vault", &status.to_string(), &brief(&answer));
    ensure!(status == 200 && answer["status"] == "AUTHORIZED", "the payment was not authorised");
    ensure!(answer["cardId"] == card_id, "the payment is another card's");
    ensure!(answer["paymentRequestId"] == id, "the answer is another payment's");
    Ok(())
}

fn show_gateway(sandbox: &Sandbox, before: usize) -> anyhow::Result<()> {
    let calls = sandbox.recent_calls();
    let sent = calls.get(before..).unwrap_or_default();
    let Some(call) = sent.iter().find(|call| !call.notification && call.path.ends_with("/pay")) else {
        println!(
            "   vault -> gateway    nothing: this paymentRequestId is known, and nothing is sent twice\n"
        );
        return Ok(());
    };
    let request: Value = serde_json::from_str(&call.request).context("the gateway saw no JSON")?;
    let metadata = &request["paymentMethod"]["paymentMethodMetaData"];
    ensure!(
        metadata["cardNo"].as_str().is_some_and(|text| text.ends_with("6383")),
        "the gateway saw no card"
    );
    arrow(
        "vault -> gateway",
        &format!("POST {}  (signed; here the card number is, masked for you)", call.path),
        &payment_part(&request),
    );
    if let Ok(answer) = serde_json::from_str::<Value>(&call.answer) {
        arrow("vault <- gateway", "200  (signature verified)", &brief_gateway(&answer));
    }
    Ok(())
}

async fn outcome(merchant: &Merchant, walk: &Walk<'_>, id: &str) -> anyhow::Result<()> {
    title(3, "It looks at the outcome");
    let path = format!("/v1/payments/{id}");
    let (status, answer) = merchant.call("GET", &path, None).await?;
    arrow("merchant <- vault", &format!("{status}  GET {path}"), &brief(&answer));
    ensure!(status == 200 && answer["status"] == "AUTHORIZED", "the outcome is not what it was");
    if let Some(sandbox) = walk.sandbox {
        let charges =
            sandbox.ledger().iter().filter(|entry| entry.payment_request_id == id && entry.charged).count();
        println!("   the gateway's ledger has {charges} charge for {id}\n");
        ensure!(charges == 1, "there is not exactly one charge");
    }
    Ok(())
}

/// Ready-to-paste commands; with that payment, where there is one.
pub fn print_curl(dir: &Path, address: SocketAddr, payment: Option<&str>) {
    let file = |name: &str| quoted(&dir.join("pki").join(name).display().to_string());
    let base = format!(
        "curl --cacert {} --cert {} --key {}",
        file("ca.pem"),
        file("clients/checkout.pem"),
        file("clients/checkout.key")
    );
    let address = reachable(address);
    let json = "-H 'Content-Type: application/json'";
    println!("Try it yourself:\n");
    println!("{base} https://{address}/v1/whoami\n");
    println!(
        "{base} {json} \\\n  -d '{{\"cardNo\":\"4054695723100768\",\"expiryMonth\":\"12\",\"expiryYear\":\"29\",\"cardholderName\":{{\"firstName\":\"Tom\",\"lastName\":\"Jay\"}}}}' \\\n  https://{address}/v1/cards\n"
    );
    println!("{base} https://{address}/v1/cards\n");
    if let Some(id) = payment {
        println!("{base} 'https://{address}/v1/payments/{id}?refresh=true'\n");
    }
    println!("{base} 'https://{address}/v1/events?after=0&limit=5'\n");
}

/// One word of a shell's command line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A merchant service with its certificate.
pub(super) struct Merchant {
    http: reqwest::Client,
    base: String,
}

impl Merchant {
    fn new(walk: &Walk<'_>, client: &str) -> anyhow::Result<Self> {
        let pki = walk.dir.join("pki");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.join("ca.pem"))?)?;
        let certificate = CertificateDer::from_pem_file(pki.join(format!("clients/{client}.pem")))?;
        let key = PrivateKeyDer::from_pem_file(pki.join(format!("clients/{client}.key")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
        Ok(Self { http, base: format!("https://{}", reachable(walk.address)) })
    }

    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let url = format!("{}{path}", self.base);
        let request = match (method, body) {
            ("GET", _) => self.http.get(url),
            ("POST", Some(body)) => {
                self.http.post(url).header("content-type", "application/json").body(body.to_string())
            }
            _ => bail!("the walk makes no such call"),
        };
        let answer = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).with_context(|| format!("{method} {path}: no JSON"))?))
    }
}

/// The address to call for one that was listened on.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        address
    }
}

fn number(sample: &Value) -> &str {
    sample["paymentMethod"]["paymentMethodMetaData"]["cardNo"].as_str().unwrap_or("-")
}

fn masked(card: &Value) -> Value {
    let mut shown = card.clone();
    shown["cardNo"] = json!("************6383");
    shown["cvv"] = json!("***");
    shown
}

/// The members that matter here; the others are passed on as they are.
fn payment_part(request: &Value) -> Value {
    let mut part = json!({});
    for name in ["paymentRequestId", "paymentAmount", "paymentMethod"] {
        part[name] = request[name].clone();
    }
    let others = request.as_object().map_or(0, serde_json::Map::len).saturating_sub(3);
    part["…"] = json!(format!("{others} more members, untouched"));
    part
}

fn brief(answer: &Value) -> Value {
    members(answer, &["paymentRequestId", "status", "cardId", "paymentId", "result"])
}

fn brief_gateway(answer: &Value) -> Value {
    members(answer, &["paymentRequestId", "paymentId", "paymentResultInfo", "result"])
}

/// Those members that there are.
fn members(answer: &Value, names: &[&str]) -> Value {
    let mut part = json!({});
    for name in names {
        if let Some(value) = answer.get(name) {
            part[*name] = value.clone();
        }
    }
    part
}

fn title(step: u8, text: &str) {
    println!("{step}. {text}\n");
}

fn arrow(who: &str, what: &str, body: &Value) {
    println!("   {who:<19} {what}");
    let text = serde_json::to_string_pretty(body).unwrap_or_default();
    for line in text.lines() {
        println!("       {line}");
    }
    println!();
}
