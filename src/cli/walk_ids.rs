//! Under which ids `cardvault dev` walks: always the same, so that a second start shows that nothing is sent
//! twice, unless what was paid under them is no longer as the walk left it.

use anyhow::ensure;
use serde_json::Value;

use crate::base::entropy;
use crate::sandbox::Sandbox;

use super::walk::{Merchant, Walk};

/// What the walk captures of its charge, and gives back, in cents.
pub const CAPTURED: u64 = 2_000;
pub const REFUNDED: u64 = 500;

/// The request ids of one walk.
pub struct Ids {
    pub pay: String,
    pub store: String,
    pub charge: String,
    pub capture: String,
    pub refund: String,
}

impl Ids {
    /// The document's own id, and four that tell what they are for.
    fn known(sample: &Value) -> Self {
        let pay = sample["paymentRequestId"].as_str().unwrap_or_default().to_owned();
        Self::named(pay, "")
    }

    fn fresh() -> anyhow::Result<Self> {
        let end = data_encoding::BASE32_NOPAD.encode(&entropy::array::<5>()?);
        Ok(Self::named(format!("WALK_PAY_{end}"), &format!("_{end}")))
    }

    fn named(pay: String, end: &str) -> Self {
        let name = |word: &str| format!("WALK_{word}{end}");
        Self {
            pay,
            store: name("STORE"),
            charge: name("CHARGE"),
            capture: name("CAPTURE"),
            refund: name("REFUND"),
        }
    }
}

/// The known ids while they can be walked with, or fresh ones, and a line that says why.
pub async fn choose(
    merchant: &Merchant,
    walk: &Walk<'_>,
    sample: &Value,
    card_id: &str,
) -> anyhow::Result<Ids> {
    let ids = Ids::known(sample);
    match spent(merchant, walk, &ids, card_id).await? {
        None => Ok(ids),
        Some(why) => {
            println!("   {why}: this walk pays under ids of its own\n");
            Ids::fresh()
        }
    }
}

/// Why the ids cannot be walked with.
async fn spent(
    merchant: &Merchant,
    walk: &Walk<'_>,
    ids: &Ids,
    card_id: &str,
) -> anyhow::Result<Option<String>> {
    for id in [&ids.pay, &ids.store, &ids.charge] {
        let Some(payment) = read(merchant, &format!("/v1/payments/{id}")).await? else { continue };
        if payment["status"] != "AUTHORIZED" {
            return Ok(Some(format!("{id} is {}", payment["status"].as_str().unwrap_or("-"))));
        }
        if payment["cardId"] != card_id {
            return Ok(Some(format!("{id} was paid with a card that is gone")));
        }
        if id == &ids.store && !is_in_force(merchant, &payment).await? {
            return Ok(Some(format!("the agreement of {id} is no longer in force")));
        }
        if let Some(why) = differs(ids, id, &payment, walk.sandbox) {
            return Ok(Some(format!("{id} {why}")));
        }
    }
    Ok(None)
}

async fn is_in_force(merchant: &Merchant, payment: &Value) -> anyhow::Result<bool> {
    let Some(id) = payment["agreementId"].as_str() else { return Ok(false) };
    let agreement = read(merchant, &format!("/v1/agreements/{id}")).await?;
    Ok(agreement.is_some_and(|agreement| agreement["state"] == "ACTIVE"))
}

/// What was captured and given back beside the walk, here or at the gateway.
fn differs(ids: &Ids, id: &str, payment: &Value, sandbox: Option<&Sandbox>) -> Option<&'static str> {
    let charged = |sandbox: &Sandbox| {
        sandbox.ledger().iter().filter(|entry| entry.payment_request_id == id && entry.charged).count()
    };
    if sandbox.is_some_and(|sandbox| charged(sandbox) != 1) {
        return Some("is not charged once in the gateway's ledger");
    }
    if id != ids.charge {
        return None;
    }
    let mut left = 0;
    for (list, name, own, value) in [
        ("captures", "captureRequestId", &ids.capture, CAPTURED),
        ("refunds", "refundRequestId", &ids.refund, REFUNDED),
    ] {
        for operation in payment[list].as_array().into_iter().flatten() {
            let (is_own, status) = (operation[name] == own.as_str(), &operation["status"]);
            if !is_own && *status == "FAILED" {
                continue;
            }
            if !is_own || *status != "SUCCEEDED" {
                return Some("was captured or given back by others since");
            }
            left = if list == "captures" { left + value } else { left.saturating_sub(value) };
        }
    }
    sandbox
        .is_some_and(|sandbox| sandbox.net_charged(id) != left)
        .then_some("has another sum in the gateway's ledger")
}

/// An object; none where there is none.
async fn read(merchant: &Merchant, path: &str) -> anyhow::Result<Option<Value>> {
    let (status, object) = merchant.call("GET", path, None).await?;
    ensure!(matches!(status, 200 | 404), "GET {path}: {status}");
    Ok((status == 200).then_some(object))
}
