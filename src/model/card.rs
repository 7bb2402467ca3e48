//! A card as callers type it and as they see it.

use std::borrow::Cow;

use crate::base::card::{Expiry, ExpiryFault, Pan, PanFault, find_pans};
use crate::base::clock::Millis;
use crate::base::cvv::Cvv;
use crate::base::fault::FieldFault;
use crate::base::ids::{BuyerId, CardId, PaymentRequestId};
use crate::base::json::{self, Object, ObjectWriter};
use crate::base::secret::SecretText;

/// A member of a name or an address, and the most characters Antom takes for it.
type Part = (&'static str, usize);

/// Reference, section 6: first, middle and last name 32, full name 128.
const NAME_PARTS: &[Part] = &[("firstName", 32), ("lastName", 32), ("middleName", 32), ("fullName", 128)];
/// Reference, section 7.3.
const ADDRESS_PARTS: &[Part] =
    &[("region", 2), ("state", 8), ("city", 32), ("address1", 256), ("address2", 256), ("zipCode", 32)];

/// A cardholder's name or address: known string members in the order they were written.
pub struct Parts(Vec<(&'static str, SecretText)>);

impl Parts {
    /// Reads an object of known string members. With `strict`, any other member is a fault.
    fn read(raw: &str, parts: &[Part], at: &str, strict: bool) -> Result<Self, FieldFault> {
        let fault = |name: &str, code| FieldFault { pointer: Cow::Owned(format!("{at}{name}")), code };
        let object = Object::parse(raw).ok_or_else(|| fault("", "invalid_type"))?;
        let mut read = Vec::new();
        for (name, raw) in object.iter() {
            let Some((name, limit)) = parts.iter().find(|(part, _)| *part == name) else {
                if strict {
                    return Err(fault("", "unknown_field"));
                }
                continue;
            };
            let at = format!("/{name}");
            let text = json::string(raw).ok_or_else(|| fault(&at, "invalid_type"))?;
            if text.chars().count() > *limit {
                return Err(fault(&at, "too_long"));
            }
            if text.chars().any(char::is_control) {
                return Err(fault(&at, "invalid_characters"));
            }
            if !find_pans(&text).is_empty() {
                return Err(fault(&at, "card_data_outside_card"));
            }
            read.push((*name, SecretText::new(text.into_owned())));
        }
        Ok(Self(read))
    }

    /// A cardholder's name.
    pub fn name(raw: &str, at: &str, strict: bool) -> Result<Self, FieldFault> {
        Self::read(raw, NAME_PARTS, at, strict)
    }

    /// A billing address.
    pub fn address(raw: &str, at: &str, strict: bool) -> Result<Self, FieldFault> {
        let address = Self::read(raw, ADDRESS_PARTS, at, strict)?;
        let region = address.0.iter().find(|(name, _)| *name == "region");
        if region.is_some_and(|(_, text)| !is_region(text.expose())) {
            return Err(FieldFault { pointer: Cow::Owned(format!("{at}/region")), code: "invalid_value" });
        }
        Ok(address)
    }

    /// The same again, for another owner.
    fn copy(&self) -> Self {
        Self(self.0.iter().map(|(name, text)| (*name, text.expose().into())).collect())
    }

    /// As JSON, in the order it was written.
    pub fn json(&self) -> String {
        let mut out = ObjectWriter::default();
        for (name, text) in &self.0 {
            out.string(name, text.expose());
        }
        out.finish()
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Self) -> bool {
        let has = |parts: &Self, name: &str, text: &SecretText| {
            parts.0.iter().any(|(n, t)| *n == name && t.expose() == text.expose())
        };
        self.0.len() == other.0.len() && self.0.iter().all(|(name, text)| has(other, name, text))
    }
}

fn is_region(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase())
}

/// What is known of a card besides its number.
pub struct Details {
    /// When the card ends.
    pub expiry: Expiry,
    /// As embossed.
    pub name: Option<Parts>,
    /// For address verification.
    pub address: Option<Parts>,
}

impl Details {
    /// These details as they were typed, with what was not typed taken from `old`.
    pub fn over(&self, old: Details) -> Details {
        Details {
            expiry: self.expiry,
            name: self.name.as_ref().map(Parts::copy).or(old.name),
            address: self.address.as_ref().map(Parts::copy).or(old.address),
        }
    }

    /// As JSON, to be sealed.
    pub fn json(&self) -> String {
        let mut out = ObjectWriter::default();
        out.string("expiryMonth", &self.expiry.month_text()).string("expiryYear", &self.expiry.year_text());
        if let Some(name) = &self.name {
            out.raw("cardholderName", &name.json());
        }
        if let Some(address) = &self.address {
            out.raw("billingAddress", &address.json());
        }
        out.finish()
    }

    /// Reads what [`Self::json`] wrote; `None` where it is anything else.
    pub fn from_json(text: &str) -> Option<Self> {
        let object = Object::parse(text)?;
        let month = json::string(object.get("expiryMonth")?)?;
        let year = json::string(object.get("expiryYear")?)?;
        let expiry = Expiry::new(Expiry::parse_month(&month).ok()?, Expiry::parse_year(&year).ok()?);
        let name = object.get("cardholderName").map(|raw| Parts::name(raw, "", true)).transpose().ok()?;
        let address =
            object.get("billingAddress").map(|raw| Parts::address(raw, "", true)).transpose().ok()?;
        Some(Self { expiry, name, address })
    }
}

/// Reads the members of a card, wherever they stand, and gathers every fault.
pub struct CardReader<'a> {
    object: &'a Object<'a>,
    at: &'static str,
    /// What was wrong so far.
    pub faults: Vec<FieldFault>,
}

impl<'a> CardReader<'a> {
    /// A reader of the members of `object`, which stands at the pointer `at`.
    pub fn new(object: &'a Object<'a>, at: &'static str) -> Self {
        Self { object, at, faults: Vec::new() }
    }

    /// Notes a fault of one member.
    pub fn fault(&mut self, name: &str, code: &'static str) {
        self.faults.push(FieldFault { pointer: Cow::Owned(format!("{}/{name}", self.at)), code });
    }

    /// A string member; notes a fault where it is another kind of value.
    pub fn string(&mut self, name: &str) -> Option<SecretText> {
        let raw = self.object.get(name)?;
        let text = json::string(raw).map(|text| SecretText::new(text.into_owned()));
        if text.is_none() {
            self.fault(name, "invalid_type");
        }
        text
    }

    fn required(&mut self, name: &str) -> Option<SecretText> {
        if self.object.get(name).is_none() {
            self.fault(name, "required");
        }
        self.string(name)
    }

    /// `cardNo`.
    pub fn pan(&mut self) -> Option<Pan> {
        let text = self.required("cardNo")?;
        match Pan::parse(text.expose()) {
            Ok(pan) => Some(pan),
            Err(fault) => {
                let code = match fault {
                    PanFault::NotDigits => "invalid_characters",
                    PanFault::Length => "invalid_length",
                    PanFault::Luhn => "invalid_check_digit",
                };
                self.fault("cardNo", code);
                None
            }
        }
    }

    /// `expiryMonth` and `expiryYear`, of a card that has not ended.
    pub fn expiry(&mut self, now: Millis) -> Option<Expiry> {
        let month = self.month(true);
        let year = self.year(true);
        let expiry = Expiry::new(month?, year?);
        if expiry.check(now) == Err(ExpiryFault::Expired) {
            self.fault("expiryYear", "expired");
            return None;
        }
        Some(expiry)
    }

    /// `expiryMonth`.
    pub fn month(&mut self, required: bool) -> Option<u8> {
        let text = if required { self.required("expiryMonth") } else { self.string("expiryMonth") }?;
        let month = Expiry::parse_month(text.expose()).ok();
        if month.is_none() {
            self.fault("expiryMonth", "invalid_value");
        }
        month
    }

    /// `expiryYear`.
    pub fn year(&mut self, required: bool) -> Option<u8> {
        let text = if required { self.required("expiryYear") } else { self.string("expiryYear") }?;
        let year = Expiry::parse_year(text.expose()).ok();
        if year.is_none() {
            self.fault("expiryYear", "invalid_value");
        }
        year
    }

    /// `cardholderName`.
    pub fn name(&mut self) -> Option<Parts> {
        self.parts("cardholderName", true, Parts::name)
    }

    /// `billingAddress`; with `strict`, unknown members in it are faults.
    pub fn address(&mut self, strict: bool) -> Option<Parts> {
        self.parts("billingAddress", strict, Parts::address)
    }

    fn parts(
        &mut self,
        name: &str,
        strict: bool,
        read: fn(&str, &str, bool) -> Result<Parts, FieldFault>,
    ) -> Option<Parts> {
        let raw = self.object.get(name)?;
        read(raw, &format!("{}/{name}", self.at), strict).map_err(|fault| self.faults.push(fault)).ok()
    }

    /// `cvv`.
    pub fn cvv(&mut self) -> Option<Cvv> {
        let text = self.string("cvv")?;
        let cvv = Cvv::parse(text.expose());
        if cvv.is_none() {
            self.fault("cvv", "invalid_value");
        }
        cvv
    }

    /// `referenceBuyerId`.
    pub fn buyer(&mut self) -> Option<BuyerId> {
        let text = self.string("referenceBuyerId")?;
        if !find_pans(text.expose()).is_empty() {
            self.fault("referenceBuyerId", "card_data_outside_card");
            return None;
        }
        let buyer = BuyerId::parse(text.expose());
        if buyer.is_none() {
            self.fault("referenceBuyerId", "invalid_value");
        }
        buyer
    }

    /// Notes a fault where a member is none of `known`. Its name is not repeated.
    pub fn refuse_unknown(&mut self, known: &[&str]) {
        if self.object.iter().any(|(name, _)| !known.contains(&name)) {
            self.faults.push(FieldFault { pointer: Cow::Borrowed(self.at), code: "unknown_field" });
        }
    }
}

/// A card as typed: the body of `POST /v1/cards`, or the card of an inline payment.
pub struct TypedCard {
    /// The number.
    pub pan: Pan,
    /// Everything else that is kept.
    pub details: Details,
    /// Whose card it is.
    pub buyer: Option<BuyerId>,
}

/// The members of a new card.
pub const NEW_CARD: &[&str] =
    &["cardNo", "expiryMonth", "expiryYear", "cvv", "cardholderName", "billingAddress", "referenceBuyerId"];

/// Reads the body of `POST /v1/cards`.
pub fn read_new_card(object: &Object<'_>, now: Millis) -> Result<(TypedCard, Option<Cvv>), Vec<FieldFault>> {
    let mut reader = CardReader::new(object, "");
    reader.refuse_unknown(NEW_CARD);
    let (pan, expiry) = (reader.pan(), reader.expiry(now));
    let (name, address) = (reader.name(), reader.address(true));
    let (cvv, buyer) = (reader.cvv(), reader.buyer());
    match (pan, expiry, reader.faults) {
        (Some(pan), Some(expiry), faults) if faults.is_empty() => {
            Ok((TypedCard { pan, details: Details { expiry, name, address }, buyer }, cvv))
        }
        (_, _, faults) => Err(faults),
    }
}

/// The members of `PATCH /v1/cards/{cardId}`: what is absent stays.
pub struct CardPatch {
    month: Option<u8>,
    year: Option<u8>,
    name: Option<Parts>,
    address: Option<Parts>,
}

impl CardPatch {
    /// Reads the body; an expiry is changed as a whole.
    pub fn read(object: &Object<'_>, now: Millis) -> Result<Self, Vec<FieldFault>> {
        let mut reader = CardReader::new(object, "");
        reader.refuse_unknown(&["expiryMonth", "expiryYear", "cardholderName", "billingAddress"]);
        let (month, year) = (reader.month(false), reader.year(false));
        if object.get("expiryMonth").is_some() != object.get("expiryYear").is_some() {
            let missing = if object.get("expiryMonth").is_none() { "expiryMonth" } else { "expiryYear" };
            reader.fault(missing, "required");
        }
        if let (Some(month), Some(year)) = (month, year)
            && Expiry::new(month, year).check(now).is_err()
        {
            reader.fault("expiryYear", "expired");
        }
        let (name, address) = (reader.name(), reader.address(true));
        if reader.faults.is_empty() { Ok(Self { month, year, name, address }) } else { Err(reader.faults) }
    }

    /// The details after the change.
    pub fn apply(self, old: Details) -> Details {
        let expiry = match (self.month, self.year) {
            (Some(month), Some(year)) => Expiry::new(month, year),
            _ => old.expiry,
        };
        Details { expiry, name: self.name.or(old.name), address: self.address.or(old.address) }
    }
}

/// Reads the body of `PUT /v1/cards/{cardId}/cvv`.
pub fn read_cvv(object: &Object<'_>) -> Result<(Cvv, Option<PaymentRequestId>), Vec<FieldFault>> {
    let mut reader = CardReader::new(object, "");
    reader.refuse_unknown(&["cvv", "paymentRequestId"]);
    if object.get("cvv").is_none() {
        reader.fault("cvv", "required");
    }
    let cvv = reader.cvv();
    let request = reader.string("paymentRequestId").and_then(|text| {
        let request = PaymentRequestId::parse(text.expose());
        if request.is_none() {
            reader.fault("paymentRequestId", "invalid_value");
        }
        request
    });
    match cvv {
        Some(cvv) if reader.faults.is_empty() => Ok((cvv, request)),
        _ => Err(reader.faults),
    }
}

/// What may be shown of a card's number, and what goes with it.
pub struct MaskedPan {
    /// Antom's name of the brand.
    pub brand: String,
    /// The first six (or eight) digits.
    pub bin: String,
    /// The last four digits.
    pub last4: String,
    /// Expiry, name and address.
    pub details: Details,
    /// `fp_…`: the same PAN has the same one within a merchant.
    pub fingerprint: String,
}

/// A card as callers see it: nothing of it needs the PAN to be opened.
pub struct MaskedCard {
    /// The reference.
    pub card_id: CardId,
    /// Its number, masked; none where only Antom holds it.
    pub number: Option<MaskedPan>,
    /// Whose card it is.
    pub buyer: Option<String>,
    /// Until when a CVV is held for its next payment.
    pub cvv_held_until: Option<Millis>,
    /// When it was first tokenised.
    pub created_at: Millis,
    /// When anything of it last changed.
    pub updated_at: Millis,
}

impl MaskedCard {
    /// The card as the API shows it.
    pub fn json(&self) -> String {
        let number = self.number.as_ref();
        let details = number.map(|number| &number.details);
        let parts = |parts: Option<&Parts>| parts.map_or("null".to_owned(), Parts::json);
        let mut out = ObjectWriter::default();
        out.string("cardId", self.card_id.as_str())
            .string("source", if number.is_some() { "PAN" } else { "GATEWAY_TOKEN" })
            .string_or_null("brand", number.map(|number| number.brand.as_str()))
            .string_or_null("bin", number.map(|number| number.bin.as_str()))
            .string_or_null("last4", number.map(|number| number.last4.as_str()))
            .string_or_null("expiryMonth", details.map(|details| details.expiry.month_text()).as_deref())
            .string_or_null("expiryYear", details.map(|details| details.expiry.year_text()).as_deref())
            .string_or_null("fingerprint", number.map(|number| number.fingerprint.as_str()))
            .raw("cardholderName", &parts(details.and_then(|details| details.name.as_ref())))
            .raw("billingAddress", &parts(details.and_then(|details| details.address.as_ref())))
            .string_or_null("referenceBuyerId", self.buyer.as_deref())
            .string_or_null("cvvHeldUntil", self.cvv_held_until.map(Millis::rfc3339).as_deref())
            .string("createdAt", &self.created_at.rfc3339())
            .string("updatedAt", &self.updated_at.rfc3339());
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_772_366_400_000);

    fn faults(text: &str) -> Vec<(String, &'static str)> {
        let object = Object::parse(text).expect("an object");
        let faults = read_new_card(&object, NOW).err().unwrap_or_default();
        faults.into_iter().map(|fault| (fault.pointer.into_owned(), fault.code)).collect()
    }

    #[test]
    fn a_whole_card_is_read() {
        let text = r#"{"cardNo":"4117 3478 0615 6383","expiryMonth":"12","expiryYear":"29","cvv":"850",
            "cardholderName":{"firstName":"Tom","lastName":"Jay"},
            "billingAddress":{"zipCode":"310000","region":"CN","state":"Zhejiang"},"referenceBuyerId":"b1"}"#;
        let (card, cvv) = read_new_card(&Object::parse(text).expect("an object"), NOW).expect("a card");
        assert_eq!(card.pan.expose(), "4117347806156383");
        assert!(cvv.is_some() && card.buyer.is_some());
        let again = Details::from_json(&card.details.json()).expect("details");
        assert!(again.name == card.details.name && again.address == card.details.address);
        assert_eq!(again.expiry, card.details.expiry);
    }

    #[test]
    fn every_bad_member_is_named_and_none_is_echoed() {
        let good = |extra: &str| {
            format!(r#"{{"cardNo":"4111111111111111","expiryMonth":"12","expiryYear":"29"{extra}}}"#)
        };
        assert_eq!(faults(&good("")), []);
        for (extra, pointer, code) in [
            (r#","x4111":1"#, "", "unknown_field"),
            (r#","cvv":850"#, "/cvv", "invalid_type"),
            (r#","cvv":"85""#, "/cvv", "invalid_value"),
            (r#","cardholderName":"Tom""#, "/cardholderName", "invalid_type"),
            (r#","cardholderName":{"nick":"T"}"#, "/cardholderName", "unknown_field"),
            (r#","cardholderName":{"firstName":4}"#, "/cardholderName/firstName", "invalid_type"),
            (
                r#","cardholderName":{"firstName":"4111 1111 1111 1111"}"#,
                "/cardholderName/firstName",
                "card_data_outside_card",
            ),
            (r#","billingAddress":{"region":"cn"}"#, "/billingAddress/region", "invalid_value"),
            (r#","billingAddress":{"state":"123456789"}"#, "/billingAddress/state", "too_long"),
            (r#","referenceBuyerId":"""#, "/referenceBuyerId", "invalid_value"),
            (r#","referenceBuyerId":"4111111111111111""#, "/referenceBuyerId", "card_data_outside_card"),
        ] {
            assert_eq!(faults(&good(extra)), [(pointer.to_owned(), code)], "{extra}");
        }
        assert_eq!(
            faults(r#"{"cardNo":4111111111111111,"expiryMonth":"13","expiryYear":"1"}"#),
            [
                ("/cardNo".to_owned(), "invalid_type"),
                ("/expiryMonth".to_owned(), "invalid_value"),
                ("/expiryYear".to_owned(), "invalid_value")
            ]
        );
        assert_eq!(faults("{}").len(), 3);
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let old = || {
            Details::from_json(r#"{"expiryMonth":"01","expiryYear":"29","cardholderName":{"firstName":"A"}}"#)
        };
        let patch = |text: &str| CardPatch::read(&Object::parse(text).expect("an object"), NOW);
        let new = patch(r#"{"expiryMonth":"02","expiryYear":"30"}"#).expect("a patch");
        assert_eq!(
            new.apply(old().expect("details")).json(),
            r#"{"expiryMonth":"02","expiryYear":"30","cardholderName":{"firstName":"A"}}"#
        );
        assert_eq!(patch(r#"{"expiryMonth":"02"}"#).err().expect("a fault")[0].pointer, "/expiryYear");
        assert!(patch(r#"{"cardNo":"4111111111111111"}"#).is_err());
        assert!(patch(r#"{"expiryMonth":"02","expiryYear":"26"}"#).is_err());
    }
}
