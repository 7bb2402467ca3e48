//! Builds the pay body from the typed card section and the caller's untouched remainder.
//!
//! The body is first a [`Template`], with holes where the PAN and sensitive authentication data belong:
//! that is what may be kept (sealed). Only [`Template::fill`] makes the real body, in one buffer of the
//! exact size, which is signed, sent and wiped.

use crate::base::bytes::{length_prefixed, split_length_prefixed};
use crate::base::card::Pan;
use crate::base::json::{Object, ObjectWriter};
use crate::base::secret::{SecretBuf, SecretText};
use crate::model::agreement::AgreementType;
use crate::model::card::{Details, Parts};
use crate::model::pay_request::{PayRequest, Sensitive};

/// What is missing at a place of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    CardNo,
    Cvv,
    Cavv,
    PasswordDigest,
    Token,
}

impl Hole {
    const ALL: [Self; 5] = [Self::CardNo, Self::Cvv, Self::Cavv, Self::PasswordDigest, Self::Token];

    /// Stands for the hole while the text is put together. U+0001 is never in JSON text.
    fn marker(self) -> &'static str {
        match self {
            Self::CardNo => "\u{1}n\u{1}",
            Self::Cvv => "\u{1}v\u{1}",
            Self::Cavv => "\u{1}a\u{1}",
            Self::PasswordDigest => "\u{1}d\u{1}",
            Self::Token => "\u{1}t\u{1}",
        }
    }
}

/// What a card is charged by: its number, or Antom's token of it.
#[derive(Clone, Copy)]
pub enum Instrument<'a> {
    /// The card's number.
    Pan(&'a Pan),
    /// Antom's token.
    Token(&'a SecretText),
}

/// A pay body without its PAN, token, CVV, cryptogram and card password.
pub struct Template(SecretText);

/// A template cannot be filled: it needs something that is not there any more, or it is damaged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the pay body cannot be completed")]
pub struct CannotFill;

/// How the vault says that a card is charged: one column of the truth table (reference, section 8.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardFlags {
    /// Whether the card was kept from an earlier payment.
    pub is_card_on_file: bool,
    /// For a merchant-initiated payment: `SCHEDULED` or `UNSCHEDULED`, and the scheme's id of the first
    /// payment. 3D Secure and its upgrade are then switched off: nobody is there to authenticate.
    pub merchant_initiated: Option<(AgreementType, String)>,
}

impl CardFlags {
    /// Column A or B: a card that was typed for this payment.
    pub fn fresh() -> Self {
        Self { is_card_on_file: false, merchant_initiated: None }
    }

    /// Columns C and D: the buyer pays again with a kept card.
    pub fn on_file() -> Self {
        Self { is_card_on_file: true, merchant_initiated: None }
    }

    /// Columns E and F: the merchant charges.
    pub fn merchant(kind: AgreementType, network_transaction_id: String) -> Self {
        Self { is_card_on_file: true, merchant_initiated: Some((kind, network_transaction_id)) }
    }

    fn write(&self, metadata: &mut ObjectWriter) {
        metadata.raw("isCardOnFile", if self.is_card_on_file { "true" } else { "false" });
        if let Some((kind, network_transaction_id)) = &self.merchant_initiated {
            metadata
                .string("recurringType", kind.name())
                .string("networkTransactionId", network_transaction_id)
                .raw("is3DSAuthentication", "false")
                .raw("enableAuthenticationUpgrade", "false");
        }
    }

    /// Whether a member is written here and not passed on.
    fn owns(&self, name: &str) -> bool {
        name == "isCardOnFile"
            || (self.merchant_initiated.is_some()
                && matches!(name, "is3DSAuthentication" | "enableAuthenticationUpgrade"))
    }
}

impl Template {
    /// The body of a payment with a card of the vault.
    pub fn with_card(request: &PayRequest, details: &Details, flags: &CardFlags) -> Self {
        let mut metadata = ObjectWriter::default();
        metadata.raw("cardNo", &quoted(Hole::CardNo));
        metadata.string("expiryYear", &details.expiry.year_text());
        metadata.string("expiryMonth", &details.expiry.month_text());
        if let Some(name) = &details.name {
            metadata.raw("cardholderName", &name.json());
        }
        let passes = |wanted: &str| request.metadata.iter().any(|(name, _)| name == wanted);
        if let (Some(address), false) = (&details.address, passes("billingAddress")) {
            metadata.raw("billingAddress", &Parts::json(address));
        }
        if request.sensitive.cvv.is_some() || request.held_cvv {
            metadata.raw("cvv", &quoted(Hole::Cvv));
        }
        if request.sensitive.password_digest.is_some() {
            metadata.raw("cardPasswordDigest", &quoted(Hole::PasswordDigest));
        }
        pass_metadata(&mut metadata, request, |name| flags.owns(name));
        flags.write(&mut metadata);
        Self::whole(request, None, Some(&metadata.finish()))
    }

    /// The body of a payment with a card that only Antom holds: its token in the place of the card
    /// (reference, section 8.2).
    pub fn with_token(request: &PayRequest, flags: &CardFlags) -> Self {
        let mut metadata = ObjectWriter::default();
        pass_metadata(&mut metadata, request, |name| flags.owns(name));
        flags.write(&mut metadata);
        Self::whole(request, Some(Hole::Token), Some(&metadata.finish()))
    }

    /// The body of a payment whose card the buyer types on Antom's page: the caller's own.
    pub fn hosted_page(request: &PayRequest) -> Self {
        let mut metadata = ObjectWriter::default();
        pass_metadata(&mut metadata, request, |_| false);
        if let Some(flag) = request.claims.is_card_on_file {
            metadata.raw("isCardOnFile", if flag { "true" } else { "false" });
        }
        // An agreement needs the card again, and only Antom's token brings it (reference, section 8.2).
        if request.add_tokenize {
            metadata.raw("tokenize", "true");
        }
        let metadata = metadata.finish();
        let some = request.has_metadata || request.add_tokenize;
        Self::whole(request, None, some.then_some(metadata.as_str()))
    }

    fn whole(request: &PayRequest, id: Option<Hole>, metadata: Option<&str>) -> Self {
        let mut method = ObjectWriter::default();
        for (name, raw) in &request.method {
            method.raw(name, raw.expose());
        }
        if let Some(hole) = id {
            method.raw("paymentMethodId", &quoted(hole));
        }
        if let Some(metadata) = metadata {
            method.raw("paymentMethodMetaData", metadata);
        }
        let method = SecretText::new(method.finish());
        let mut body = ObjectWriter::default();
        for (name, raw) in &request.top {
            match (name.as_str(), &request.notify_url) {
                ("paymentMethod", _) => drop(body.raw(name, method.expose())),
                ("paymentNotifyUrl", Some(_)) => {}
                _ => drop(body.raw(name, raw.expose())),
            }
        }
        body.string_if("paymentNotifyUrl", request.notify_url.as_deref());
        Self(SecretText::new(body.finish()))
    }

    /// The template as bytes, to be sealed.
    pub fn to_bytes(&self) -> SecretBuf {
        SecretBuf::from_vec(length_prefixed(&[b"template/1", self.0.expose().as_bytes()]))
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &SecretBuf) -> Result<Self, CannotFill> {
        let parts = split_length_prefixed(bytes.expose()).ok_or(CannotFill)?;
        match parts.as_slice() {
            [b"template/1", text] => {
                let text = std::str::from_utf8(text).map_err(|_| CannotFill)?;
                Ok(Self(text.into()))
            }
            _ => Err(CannotFill),
        }
    }

    /// Whether the body needs a PAN or a token.
    pub fn needs_card(&self) -> bool {
        [Hole::CardNo, Hole::Token].iter().any(|hole| self.0.expose().contains(hole.marker()))
    }

    /// The body with every hole marked by what belongs there, for people to look at.
    pub fn masked(&self, card_no: &str) -> String {
        Hole::ALL.into_iter().fold(self.0.expose().to_owned(), |text, hole| {
            text.replace(hole.marker(), if hole == Hole::CardNo { card_no } else { "***" })
        })
    }

    /// The body as it is sent.
    pub fn fill(&self, card: Option<Instrument<'_>>, sensitive: &Sensitive) -> Result<SecretBuf, CannotFill> {
        let value = |hole: Hole| match hole {
            Hole::CardNo => match card {
                Some(Instrument::Pan(pan)) => Some(pan.expose()),
                _ => None,
            },
            Hole::Token => match card {
                Some(Instrument::Token(token)) => Some(token.expose()),
                _ => None,
            },
            Hole::Cvv => sensitive.cvv.as_ref().map(|cvv| cvv.expose()),
            Hole::Cavv => sensitive.cavv.as_ref().map(SecretText::expose),
            Hole::PasswordDigest => sensitive.password_digest.as_ref().map(SecretText::expose),
        };
        let text = self.0.expose();
        // Values are at most 64 characters, a token 2048, that need no escape (checked where they are read).
        let token = match card {
            Some(Instrument::Token(token)) => token.expose().len(),
            _ => 0,
        };
        let mut body = SecretBuf::with_capacity(text.len() + 4 * 64 + token);
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('\u{1}') {
            let (mark, after) = after.split_once('\u{1}').ok_or(CannotFill)?;
            let hole = Hole::ALL
                .into_iter()
                .find(|hole| hole.marker().trim_matches('\u{1}') == mark)
                .ok_or(CannotFill)?;
            body.push(before.as_bytes()).map_err(|_| CannotFill)?;
            body.push(value(hole).ok_or(CannotFill)?.as_bytes()).map_err(|_| CannotFill)?;
            rest = after;
        }
        body.push(rest.as_bytes()).map_err(|_| CannotFill)?;
        Ok(body)
    }
}

fn quoted(hole: Hole) -> String {
    format!("\"{}\"", hole.marker())
}

fn pass_metadata(out: &mut ObjectWriter, request: &PayRequest, owned: impl Fn(&str) -> bool) {
    for (place, (name, raw)) in request.metadata.iter().enumerate() {
        if request.mpi_with_cavv == Some(place) {
            out.raw(name, &with_cavv(raw));
        } else if !owned(name) {
            out.raw(name, raw.expose());
        }
    }
}

/// `mpiData` with the hole for its cryptogram put back.
fn with_cavv(mpi: &SecretText) -> String {
    let mut out = ObjectWriter::default();
    // It was read as an object before its cryptogram was taken out.
    for (name, raw) in Object::parse(mpi.expose()).iter().flat_map(Object::iter) {
        out.raw(name, raw);
    }
    out.raw("cavv", &quoted(Hole::Cavv));
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Millis;
    use crate::model::pay_request::CardForm;

    const NOW: Millis = Millis(1_772_366_400_000);

    fn sent(text: &str) -> serde_json::Value {
        sent_as(text, &CardFlags::fresh())
    }

    fn sent_as(text: &str, flags: &CardFlags) -> serde_json::Value {
        let request = PayRequest::read(text, NOW).unwrap_or_else(|faults| panic!("{faults:?}"));
        let (template, card) = match &request.card {
            CardForm::Inline(card) => {
                (Template::with_card(&request, &card.details, flags), Some(Instrument::Pan(&card.pan)))
            }
            CardForm::Token(token) => (Template::with_token(&request, flags), Some(Instrument::Token(token))),
            _ => (Template::hosted_page(&request), None),
        };
        let kept = template.to_bytes();
        let kept_text = String::from_utf8_lossy(kept.expose());
        if let Some(card) = card {
            let secret = match card {
                Instrument::Pan(pan) => pan.expose(),
                Instrument::Token(token) => token.expose(),
            };
            assert!(!kept_text.contains(secret) && template.needs_card());
        }
        for secret in [
            request.sensitive.cvv.as_ref().map(|cvv| format!("\"{}\"", cvv.expose())),
            request.sensitive.cavv.as_ref().map(|text| text.expose().to_owned()),
        ] {
            assert!(secret.is_none_or(|secret| !kept_text.contains(&secret)));
        }
        let again = Template::from_bytes(&kept).expect("a template");
        let body = again.fill(card, &request.sensitive).expect("a body");
        assert_eq!(body.expose(), template.fill(card, &request.sensitive).expect("a body").expose());
        serde_json::from_slice(body.expose()).expect("JSON")
    }

    /// What the official SDK would send for the same payment, member for member, in every column of the
    /// truth table.
    #[test]
    fn bodies_equal_the_sdks() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/antom/s2s_pay_requests.json"))
                .expect("vectors");
        let scenarios = vectors["scenarios"].as_array().expect("scenarios");
        let mut compared = 0;
        for scenario in scenarios {
            let mut request = scenario["body"].clone();
            // What the vault writes itself is not in a caller's request.
            let metadata = request["paymentMethod"]["paymentMethodMetaData"].as_object_mut().expect("a map");
            let on_file = metadata.remove("isCardOnFile") == Some(true.into());
            let chain = metadata.remove("networkTransactionId");
            let recurring = metadata.remove("recurringType");
            let flags = match (recurring.as_ref().and_then(|v| v.as_str()), chain) {
                (Some(kind), Some(chain)) => {
                    let kind = AgreementType::parse(kind).expect("a type");
                    CardFlags::merchant(kind, chain.as_str().expect("an id").to_owned())
                }
                _ if on_file => CardFlags::on_file(),
                _ => CardFlags::fresh(),
            };
            let text = serde_json::to_string(&request).expect("text");
            assert_eq!(sent_as(&text, &flags), scenario["body"], "{}", scenario["name"]);
            compared += 1;
        }
        assert_eq!(compared, 13);
    }

    #[test]
    fn the_documents_samples_leave_as_they_came() {
        for text in [
            include_str!("../../../tests/samples/pay-server-to-server.json"),
            include_str!("../../../tests/samples/pay-hosted-page.json"),
        ] {
            assert_eq!(sent(text), serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
        }
    }

    #[test]
    fn what_the_vault_does_not_own_is_kept_byte_for_byte() {
        let text = include_str!("../../../tests/samples/pay-hosted-page.json").replacen(
            "\"env\"",
            "\"newMember\": [ 1.50, {\"deep\" :\t\"\\u00e9\"} ],\n\"env\"",
            1,
        );
        let request = PayRequest::read(&text, NOW).unwrap_or_else(|faults| panic!("{faults:?}"));
        let body = Template::hosted_page(&request).fill(None, &request.sensitive).expect("a body");
        let body = String::from_utf8(body.expose().to_vec()).expect("text");
        assert!(body.contains("\"newMember\":[ 1.50, {\"deep\" :\t\"\\u00e9\"} ]"), "{body}");
    }

    #[test]
    fn the_vaults_own_address_takes_notifications() {
        for text in [
            include_str!("../../../tests/samples/pay-hosted-page.json").to_owned(),
            include_str!("../../../tests/samples/pay-hosted-page.json")
                .replace("\"paymentNotifyUrl\": \"https://www.alipay.com/notify\",", ""),
        ] {
            let mut request = PayRequest::read(&text, NOW).unwrap_or_else(|faults| panic!("{faults:?}"));
            request.notify_url = Some("https://vault.example/n".into());
            let body = Template::hosted_page(&request).fill(None, &request.sensitive).expect("a body");
            let body: serde_json::Value = serde_json::from_slice(body.expose()).expect("JSON");
            assert_eq!(body["paymentNotifyUrl"], "https://vault.example/n");
        }
    }

    #[test]
    fn a_body_is_not_completed_without_what_it_needs() {
        let text = include_str!("../../../tests/samples/pay-server-to-server.json");
        let request = PayRequest::read(text, NOW).unwrap_or_else(|faults| panic!("{faults:?}"));
        let CardForm::Inline(card) = &request.card else { panic!("inline") };
        let template = Template::with_card(&request, &card.details, &CardFlags::fresh());
        assert_eq!(template.fill(None, &request.sensitive).err(), Some(CannotFill));
        assert_eq!(
            template.fill(Some(Instrument::Pan(&card.pan)), &Sensitive::default()).err(),
            Some(CannotFill)
        );
        assert!(Template::from_bytes(&SecretBuf::from_vec(b"x".to_vec())).is_err());
        assert!(template.masked("************6383").contains("\"cvv\":\"***\""));
    }

    /// Whatever stands last in `mpiData`, the cryptogram comes back into the right object.
    #[test]
    fn the_cryptogram_goes_back_beside_nested_members() {
        const SAMPLE: &str = include_str!("../../../tests/samples/pay-server-to-server.json");
        for (mpi, rest) in [
            (r#"{"cavv":"AAAB"}"#, serde_json::json!({})),
            (r#"{"eci":"05","cavv":"AAAB"}"#, serde_json::json!({"eci": "05"})),
            (r#"{"cavv":"AAAB","ext":{"a":{"b":{}}}}"#, serde_json::json!({"ext": {"a": {"b": {}}}})),
            (r#" { "cavv" : "AAAB" , "ext" : [ { } ] } "#, serde_json::json!({"ext": [{}]})),
        ] {
            let text = SAMPLE.replacen("\"cvv\": \"850\"", &format!("\"mpiData\": {mpi}"), 1);
            let mut expected = rest;
            expected["cavv"] = "AAAB".into();
            assert_eq!(sent(&text)["paymentMethod"]["paymentMethodMetaData"]["mpiData"], expected, "{mpi}");
        }
    }
}
