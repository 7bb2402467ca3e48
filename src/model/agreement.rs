//! Stored-credential agreements: what a buyer consented to, and who may charge the card because of it.

use std::borrow::Cow;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base::card::{Pan, find_pans};
use crate::base::clock::Millis;
use crate::base::fault::FieldFault;
use crate::base::ids::AgreementId;
use crate::base::json::{self, Object};
use crate::base::money::Amount;

use super::misplaced::{Spot, find_misplaced, has_pan_in, holds_number};

/// Largest consent record, in bytes.
const CONSENT_BYTES: usize = 4096;

/// What the buyer agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgreementType {
    /// The card is kept for the buyer's own later payments.
    CardOnFile,
    /// The merchant charges at fixed intervals.
    Scheduled,
    /// The merchant charges when something agreed upon happens.
    Unscheduled,
}

impl AgreementType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::CardOnFile, Self::Scheduled, Self::Unscheduled];

    /// The type as the API and the database spell it; also Antom's `recurringType` for the latter two.
    pub fn name(self) -> &'static str {
        match self {
            Self::CardOnFile => "CARD_ON_FILE",
            Self::Scheduled => "SCHEDULED",
            Self::Unscheduled => "UNSCHEDULED",
        }
    }

    /// Reads a type.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }
}

/// Where an agreement stands. It never leaves ENDED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgreementState {
    /// Its first payment has not succeeded yet.
    Pending,
    /// In force.
    Active,
    /// Over: its first payment failed, or it was withdrawn, revoked, expired, or its card erased.
    Ended,
}

impl AgreementState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Active, Self::Ended];

    /// The state as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Active => "ACTIVE",
            Self::Ended => "ENDED",
        }
    }

    /// Reads a state.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == text)
    }

    /// The state after something happened, or `None` where it changes nothing.
    pub fn after(self, event: AgreementEvent) -> Option<Self> {
        match (self, event) {
            (Self::Pending, AgreementEvent::FirstPaymentPaid) => Some(Self::Active),
            (Self::Pending, AgreementEvent::FirstPaymentFailed) => Some(Self::Ended),
            (
                Self::Pending | Self::Active,
                AgreementEvent::Withdrawn
                | AgreementEvent::Expired
                | AgreementEvent::CardErased
                | AgreementEvent::ConsentRevoked,
            ) => Some(Self::Ended),
            _ => None,
        }
    }
}

/// What can happen to an agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgreementEvent {
    /// The payment that opened it succeeded.
    FirstPaymentPaid,
    /// The payment that opened it failed or was cancelled.
    FirstPaymentFailed,
    /// The merchant withdrew it for the buyer.
    Withdrawn,
    /// Its time is over.
    Expired,
    /// Its card was erased.
    CardErased,
    /// The issuer says that the buyer stopped it.
    ConsentRevoked,
}

impl AgreementEvent {
    /// Why an agreement ended, as the API and the database spell it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::FirstPaymentPaid => "paid",
            Self::FirstPaymentFailed => "first_payment_failed",
            Self::Withdrawn => "withdrawn",
            Self::Expired => "expired",
            Self::CardErased => "card_erased",
            Self::ConsentRevoked => "consent_revoked",
        }
    }
}

/// Who begins a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initiator {
    /// The buyer is there.
    Customer,
    /// The merchant, without the buyer.
    Merchant,
}

impl Initiator {
    /// As the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Customer => "CUSTOMER",
            Self::Merchant => "MERCHANT",
        }
    }
}

/// The terms of an agreement that is being opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// What the buyer agreed to.
    pub kind: AgreementType,
    /// The consent as the merchant recorded it, JSON.
    pub consent: String,
    /// The most that the merchant may charge at once.
    pub max_amount: Option<Amount>,
    /// How often, in the merchant's words; recorded, not enforced.
    pub interval: Option<String>,
    /// When it ends by itself.
    pub expires_at: Option<Millis>,
}

impl Terms {
    /// Whether this number stands in what the merchant wrote.
    fn hold(&self, pan: &Pan) -> bool {
        has_pan_in(&self.consent, pan)
            || self.interval.as_deref().is_some_and(|interval| has_pan_in(interval, pan))
    }
}

/// `storedCredential` of a pay request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredCredential {
    /// Opens an agreement, the buyer being there.
    Open(Terms),
    /// Uses one.
    Use {
        /// Who begins the payment.
        initiator: Initiator,
        /// Which agreement.
        agreement_id: AgreementId,
    },
}

const AT: &str = "/storedCredential";

/// Reads `storedCredential`.
pub fn read_stored_credential(raw: &str, now: Millis) -> Result<StoredCredential, Vec<FieldFault>> {
    let mut faults = Vec::new();
    let read = read(raw, now, &mut faults);
    match read {
        Some(read) if faults.is_empty() => Ok(read),
        _ => Err(faults),
    }
}

fn fault(faults: &mut Vec<FieldFault>, name: &str, code: &'static str) {
    faults.push(FieldFault { pointer: Cow::Owned(format!("{AT}{name}")), code });
}

fn read(raw: &str, now: Millis, faults: &mut Vec<FieldFault>) -> Option<StoredCredential> {
    let Some(object) = Object::parse(raw) else {
        fault(faults, "", "invalid_type");
        return None;
    };
    refuse_unknown(&object, "", &["initiator", "agreement", "agreementId"], faults);
    let initiator = read_initiator(&object).map_err(|code| fault(faults, "/initiator", code)).ok();
    match (object.get("agreement"), object.get("agreementId")) {
        (Some(_), Some(_)) => {
            fault(faults, "/agreementId", "conflict");
            None
        }
        (None, None) => {
            fault(faults, "/agreementId", "required");
            None
        }
        (Some(raw), None) => {
            if initiator == Some(Initiator::Merchant) {
                // Consent is given by a buyer who is there.
                fault(faults, "/initiator", "conflict");
            }
            read_terms(raw, &[], now, faults).map(StoredCredential::Open)
        }
        (None, Some(raw)) => {
            let id = json::string(raw).and_then(|text| AgreementId::parse(&text));
            if id.is_none() {
                fault(faults, "/agreementId", "invalid_value");
            }
            Some(StoredCredential::Use { initiator: initiator?, agreement_id: id? })
        }
    }
}

fn read_initiator(object: &Object<'_>) -> Result<Initiator, &'static str> {
    let text = json::string(object.get("initiator").ok_or("required")?).ok_or("invalid_type")?;
    let known = [Initiator::Customer, Initiator::Merchant];
    known.into_iter().find(|initiator| initiator.name() == text).ok_or("invalid_value")
}

fn refuse_unknown(object: &Object<'_>, at: &str, known: &[&str], faults: &mut Vec<FieldFault>) {
    if object.iter().any(|(name, _)| !known.contains(&name)) {
        fault(faults, at, "unknown_field");
    }
}

/// Reads what the buyer agreed to; `also` are members that somebody else reads.
fn read_terms(raw: &str, also: &[&str], now: Millis, faults: &mut Vec<FieldFault>) -> Option<Terms> {
    let Some(object) = Object::parse(raw) else {
        fault(faults, "/agreement", "invalid_type");
        return None;
    };
    let known = [&["type", "consent", "maxAmount", "interval", "expiresAt"], also].concat();
    refuse_unknown(&object, "/agreement", &known, faults);
    let kind = match object.get("type").map(json::string) {
        Some(Some(text)) => AgreementType::parse(&text),
        _ => None,
    };
    if kind.is_none() {
        let code = if object.get("type").is_none() { "required" } else { "invalid_value" };
        fault(faults, "/agreement/type", code);
    }
    let consent = read_consent(&object, now, faults);
    let max_amount = object.get("maxAmount").and_then(|raw| read_amount(raw, faults));
    let interval = object.get("interval").and_then(|raw| read_interval(raw, faults));
    let expires_at = object.get("expiresAt").and_then(|raw| read_expiry(raw, now, faults));
    Some(Terms { kind: kind?, consent: consent?, max_amount, interval, expires_at })
}

/// The consent must say when it was given and to which text; the rest is the merchant's.
fn read_consent(object: &Object<'_>, now: Millis, faults: &mut Vec<FieldFault>) -> Option<String> {
    const HERE: &str = "/agreement/consent";
    let Some(raw) = object.get("consent") else {
        fault(faults, HERE, "required");
        return None;
    };
    let Some(consent) = Object::parse(raw) else {
        fault(faults, HERE, "invalid_type");
        return None;
    };
    if raw.len() > CONSENT_BYTES {
        fault(faults, HERE, "too_long");
    }
    if holds_number(raw) {
        fault(faults, HERE, "card_data_outside_card");
    }
    let accepted = consent.get("acceptedAt").and_then(json::string).and_then(|text| parse_time(&text));
    match accepted {
        None => fault(faults, "/agreement/consent/acceptedAt", "invalid_value"),
        // A clock may be a little off; consent from the future is none.
        Some(at) if at > now.plus(std::time::Duration::from_secs(300)) => {
            fault(faults, "/agreement/consent/acceptedAt", "invalid_value");
        }
        Some(_) => {}
    }
    let version = consent.get("textVersion").and_then(json::string);
    if version.is_none_or(|text| text.is_empty() || text.chars().count() > 64) {
        fault(faults, "/agreement/consent/textVersion", "invalid_value");
    }
    Some(raw.to_owned())
}

fn read_amount(raw: &str, faults: &mut Vec<FieldFault>) -> Option<Amount> {
    let amount = Object::parse(raw).and_then(|object| {
        let currency = json::string(object.get("currency")?)?;
        let value = json::string(object.get("value")?)?;
        Amount::from_wire(&currency, &value).ok()
    });
    if amount.is_none() {
        fault(faults, "/agreement/maxAmount", "invalid_value");
    }
    amount
}

fn read_interval(raw: &str, faults: &mut Vec<FieldFault>) -> Option<String> {
    let text = json::string(raw).filter(|text| {
        (1..=64).contains(&text.chars().count())
            && !text.chars().any(char::is_control)
            && find_pans(text).is_empty()
    });
    if text.is_none() {
        fault(faults, "/agreement/interval", "invalid_value");
    }
    text.map(Cow::into_owned)
}

fn read_expiry(raw: &str, now: Millis, faults: &mut Vec<FieldFault>) -> Option<Millis> {
    let at = json::string(raw).and_then(|text| parse_time(&text)).filter(|at| *at > now);
    if at.is_none() {
        fault(faults, "/agreement/expiresAt", "invalid_value");
    }
    at
}

/// An agreement that a buyer gave elsewhere, and that another vault kept.
pub struct Brought {
    /// What he agreed to.
    pub terms: Terms,
    /// The scheme's id of the payment that began the chain.
    pub network_transaction_id: Option<String>,
    /// Mastercard's Transaction Link ID.
    pub transaction_link_id: Option<String>,
}

/// Reads an agreement that comes from another vault and stands at the pointer `at`. Its terms are read as
/// those of an agreement that is opened here. One that the merchant charges needs its chain: without it, it
/// could never be charged.
pub fn read_brought(raw: &str, at: &str, pan: Option<&Pan>, now: Millis) -> Result<Brought, Vec<FieldFault>> {
    const CHAIN: &str = "networkTransactionId";
    const LINK: &str = "transactionLinkId";
    let mut faults = Vec::new();
    let terms = read_terms(raw, &[CHAIN, LINK], now, &mut faults);
    let object = Object::parse(raw);
    let mut id = |name: &str, is_good: fn(&str) -> bool| {
        let raw = object.as_ref()?.get(name)?;
        let Some(text) = json::string(raw) else {
            fault(&mut faults, &format!("/agreement/{name}"), "invalid_type");
            return None;
        };
        if pan.is_some_and(|pan| text.contains(pan.expose())) {
            fault(&mut faults, &format!("/agreement/{name}"), "card_data_outside_card");
        } else if !is_good(&text) {
            fault(&mut faults, &format!("/agreement/{name}"), "invalid_value");
        }
        Some(text.into_owned())
    };
    let network_transaction_id = id(CHAIN, is_network_transaction_id);
    let transaction_link_id = id(LINK, is_transaction_link_id);
    let is_charged = terms.as_ref().is_some_and(|terms| terms.kind != AgreementType::CardOnFile);
    if is_charged && object.as_ref().is_some_and(|object| object.get(CHAIN).is_none()) {
        fault(&mut faults, &format!("/agreement/{CHAIN}"), "required");
    }
    // Numbers of a brand that is not known are found by the card's own alone.
    if pan.is_some_and(|pan| terms.as_ref().is_some_and(|terms| terms.hold(pan))) {
        fault(&mut faults, "/agreement", "card_data_outside_card");
    }
    let mut misplaced = Vec::new();
    find_misplaced(raw, Spot::Elsewhere, &mut misplaced);
    for found in misplaced {
        fault(&mut faults, &format!("/agreement{}", found.pointer), found.code);
    }
    match terms {
        Some(terms) if faults.is_empty() => {
            Ok(Brought { terms, network_transaction_id, transaction_link_id })
        }
        _ => {
            for fault in &mut faults {
                let rest = fault.pointer.strip_prefix(AT).and_then(|rest| rest.strip_prefix("/agreement"));
                fault.pointer = Cow::Owned(format!("{at}{}", rest.unwrap_or_default()));
            }
            Err(faults)
        }
    }
}

/// Whether a text can be the scheme's id of a payment (reference, section 7.3).
pub fn is_network_transaction_id(text: &str) -> bool {
    (1..=256).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Whether a text can be Mastercard's Transaction Link ID: exactly 22 characters of `[A-Za-z0-9_-]`.
pub fn is_transaction_link_id(text: &str) -> bool {
    text.len() == 22 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// An RFC 3339 time.
pub fn parse_time(text: &str) -> Option<Millis> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_772_366_400_000);

    /// All 18 cells.
    #[test]
    fn an_agreement_never_leaves_its_end() {
        use AgreementEvent as E;
        use AgreementState::{Active, Ended, Pending};
        for (event, pending, active) in [
            (E::FirstPaymentPaid, Some(Active), None),
            (E::FirstPaymentFailed, Some(Ended), None),
            (E::Withdrawn, Some(Ended), Some(Ended)),
            (E::Expired, Some(Ended), Some(Ended)),
            (E::CardErased, Some(Ended), Some(Ended)),
            (E::ConsentRevoked, Some(Ended), Some(Ended)),
        ] {
            assert_eq!(Pending.after(event), pending, "{event:?}");
            assert_eq!(Active.after(event), active, "{event:?}");
            assert_eq!(Ended.after(event), None, "{event:?}");
        }
    }

    fn codes(text: &str) -> Vec<(String, &'static str)> {
        let faults = read_stored_credential(text, NOW).err().unwrap_or_default();
        faults.into_iter().map(|fault| (fault.pointer.into_owned(), fault.code)).collect()
    }

    const OPEN: &str = r#"{"initiator":"CUSTOMER","agreement":{"type":"SCHEDULED","consent":{"acceptedAt":"2026-03-01T11:00:00Z","textVersion":"v1","ip":"203.0.113.7"},"maxAmount":{"currency":"EUR","value":"5000"},"interval":"P1M","expiresAt":"2027-03-01T00:00:00+01:00"}}"#;

    #[test]
    fn terms_are_read_whole() {
        let Ok(StoredCredential::Open(terms)) = read_stored_credential(OPEN, NOW) else { panic!("terms") };
        assert_eq!(terms.kind, AgreementType::Scheduled);
        assert_eq!(terms.max_amount.map(|amount| amount.to_string()).as_deref(), Some("EUR 50.00"));
        assert_eq!(terms.interval.as_deref(), Some("P1M"));
        assert!(terms.consent.contains("203.0.113.7") && terms.expires_at.is_some());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, pointer, code) in [
            ("\"CUSTOMER\"", "\"MERCHANT\"", "/initiator", "conflict"),
            ("\"CUSTOMER\"", "\"customer\"", "/initiator", "invalid_value"),
            ("\"CUSTOMER\"", "1", "/initiator", "invalid_type"),
            ("\"SCHEDULED\"", "\"WEEKLY\"", "/agreement/type", "invalid_value"),
            (
                "\"acceptedAt\":\"2026-03-01T11:00:00Z\",",
                "",
                "/agreement/consent/acceptedAt",
                "invalid_value",
            ),
            (
                "2026-03-01T11:00:00Z",
                "2026-03-02T11:00:00Z",
                "/agreement/consent/acceptedAt",
                "invalid_value",
            ),
            ("\"v1\"", "\"\"", "/agreement/consent/textVersion", "invalid_value"),
            ("203.0.113.7", "4111111111111111", "/agreement/consent", "card_data_outside_card"),
            ("203.0.113.7", "\\u0034111 1111-1111.1111", "/agreement/consent", "card_data_outside_card"),
            ("\"5000\"", "5000", "/agreement/maxAmount", "invalid_value"),
            ("\"P1M\"", "\"\"", "/agreement/interval", "invalid_value"),
            ("2027-03-01T00:00:00+01:00", "2020-03-01T00:00:00Z", "/agreement/expiresAt", "invalid_value"),
            ("\"interval\"", "\"colour\"", "/agreement", "unknown_field"),
            ("{\"initiator\"", "{\"agreementId\":\"x\",\"initiator\"", "/agreementId", "conflict"),
        ] {
            assert!(OPEN.contains(from), "{from}");
            let expected = [(format!("/storedCredential{pointer}"), code)];
            assert_eq!(codes(&OPEN.replacen(from, to, 1)), expected, "{from} -> {to}");
        }
        assert_eq!(codes("[]"), [("/storedCredential".to_owned(), "invalid_type")]);
        assert_eq!(codes("{}").len(), 2);
    }

    #[test]
    fn an_agreement_is_used_by_its_id() {
        let id = AgreementId::make().expect("entropy");
        let text = format!(r#"{{"initiator":"MERCHANT","agreementId":"{id}"}}"#);
        assert_eq!(
            read_stored_credential(&text, NOW).ok(),
            Some(StoredCredential::Use { initiator: Initiator::Merchant, agreement_id: id })
        );
        assert_eq!(codes(r#"{"initiator":"MERCHANT","agreementId":"agr_1"}"#)[0].1, "invalid_value");
    }
}
