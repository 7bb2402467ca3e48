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

/// Goes through the main job and prints it; fails at the first step that does not do what it should.
pub async fn run(walk: &Walk<'_>) -> anyhow::Result<()> {
    let merchant = Merchant::new(walk, "checkout")?;
    let sample: Value = serde_json::from_str(SAMPLE)?;
    let card_id = tokenise(&merchant, &sample).await?;
    let id = pay(&merchant, walk, &sample, &card_id).await?;
    outcome(&merchant, walk, &id).await
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

async fn pay(merchant: &Merchant, walk: &Walk<'_>, sample: &Value, card_id: &str) -> anyhow::Result<String> {
    title(2, "It pays with the reference: Antom's own request, without a card in it");
    let mut request = sample.clone();
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
    answer["paymentRequestId"].as_str().map(str::to_owned).context("the answer has no paymentRequestId")
}

fn show_gateway(sandbox: &Sandbox, before: usize) -> anyhow::Result<()> {
    let calls = sandbox.recent_calls();
    let Some(call) = calls.get(before..).and_then(<[_]>::last) else {
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

/// Ready-to-paste commands.
pub fn print_curl(dir: &Path, address: SocketAddr) {
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
    println!("{base} 'https://{address}/v1/payments/PAY_20221114141714891?refresh=true'\n");
}

/// One word of a shell's command line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A merchant service with its certificate.
struct Merchant {
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

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
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
    let mut part = json!({});
    for name in ["paymentRequestId", "status", "cardId", "paymentId", "result"] {
        part[name] = answer[name].clone();
    }
    part
}

fn brief_gateway(answer: &Value) -> Value {
    let mut part = json!({});
    for name in ["paymentRequestId", "paymentId", "paymentResultInfo", "result"] {
        part[name] = answer[name].clone();
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
