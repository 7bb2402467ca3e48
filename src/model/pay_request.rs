//! The body of `POST /v1/payments`: Antom's own pay request, with the members that the vault owns taken
//! out and typed, and all others kept as they were written.

use crate::base::card::{Pan, find_pans};
use crate::base::clock::Millis;
use crate::base::cvv::Cvv;
use crate::base::fault::FieldFault;
use crate::base::ids::{BuyerId, CardId, PaymentRequestId};
use crate::base::json::{self, Object};
use crate::base::money::Amount;
use crate::base::secret::SecretText;

use super::agreement::{StoredCredential, parse_time, read_stored_credential};
use super::card::{CardReader, Details, Parts, TypedCard};
use super::misplaced::{self, Spot, find_misplaced};

const METADATA: &str = "/paymentMethod/paymentMethodMetaData";
const METADATA_NAME: &str = "paymentMethodMetaData";

/// Members of `paymentMethodMetaData` that the vault writes itself.
const OWNED: &[&str] = &[
    "cardNo",
    "cvv",
    "expiryMonth",
    "expiryYear",
    "cardholderName",
    "isCardOnFile",
    "recurringType",
    "networkTransactionId",
    "cardPasswordDigest",
];

/// Which card is paid with.
pub enum CardForm {
    /// Typed in this request.
    Inline(TypedCard),
    /// One of the vault's.
    Reference(CardId),
    /// Antom's own token of a card that only Antom holds.
    Token(SecretText),
    /// None: the buyer types it on Antom's page.
    HostedPage,
}

/// Sensitive authentication data that a payment brings along. None of it is ever stored.
#[derive(Default)]
pub struct Sensitive {
    /// Card verification value.
    pub cvv: Option<Cvv>,
    /// 3D Secure cryptogram of `mpiData`.
    pub cavv: Option<SecretText>,
    /// First two digits of a Korean card's password.
    pub password_digest: Option<SecretText>,
}

impl Sensitive {
    /// Whether there is nothing to protect.
    pub fn is_empty(&self) -> bool {
        self.cvv.is_none() && self.cavv.is_none() && self.password_digest.is_none()
    }
}

/// A member that is passed on: its name and its raw value.
pub type Member = (String, SecretText);

/// What the caller says of the card, or of how it is charged; it must agree with what is stored and sent.
#[derive(Default)]
pub struct Claims {
    /// `expiryMonth`.
    pub month: Option<u8>,
    /// `expiryYear`.
    pub year: Option<u8>,
    /// `cardholderName`.
    pub name: Option<Parts>,
    /// `isCardOnFile`.
    pub is_card_on_file: Option<bool>,
    /// `recurringType`.
    pub recurring_type: Option<String>,
    /// `networkTransactionId`.
    pub network_transaction_id: Option<String>,
}

/// A pay request, read and checked as far as the vault answers for it.
pub struct PayRequest {
    /// The idempotency key.
    pub payment_request_id: PaymentRequestId,
    /// What is charged.
    pub amount: Amount,
    /// `order.buyer.referenceBuyerId`.
    pub buyer: Option<BuyerId>,
    /// Which card.
    pub card: CardForm,
    /// CVV and its like.
    pub sensitive: Sensitive,
    /// A CVV that is held for the card will go with this payment.
    pub held_cvv: bool,
    /// The caller says that a CVV which is held shall not be waited for (`cvv: "OMIT"`).
    pub omit_cvv: bool,
    /// What the caller claims.
    pub claims: Claims,
    /// `storedCredential`.
    pub stored_credential: Option<StoredCredential>,
    /// The same as it was written; only looked into.
    stored_text: Option<SecretText>,
    /// Whether 3D Secure or its upgrade is asked for.
    pub three_ds: bool,
    /// Whether `env` has a `browserInfo`.
    pub has_browser_info: bool,
    /// `paymentFactor.captureMode` is `MANUAL`: money is taken by captures only.
    pub manual_capture: bool,
    /// `tokenize`: Antom's token is asked for; none where the caller does not say.
    pub tokenize: Option<bool>,
    /// Antom's token is asked for by the vault.
    pub add_tokenize: bool,
    /// The card is one that only Antom holds.
    pub pays_by_token: bool,
    /// `paymentExpiryTime`.
    pub expires_at: Option<Millis>,
    /// Stands in place of the caller's `paymentNotifyUrl`, where the vault takes notifications itself.
    pub notify_url: Option<String>,
    /// Top-level members but `paymentMethod`, in their order.
    pub top: Vec<Member>,
    /// Members of `paymentMethod` but `paymentMethodId` and `paymentMethodMetaData`.
    pub method: Vec<Member>,
    /// Members of `paymentMethodMetaData` that the vault does not own, `mpiData` without its `cavv`.
    pub metadata: Vec<Member>,
    /// Where `mpiData` stands in `metadata`, if it has a `cavv`.
    pub mpi_with_cavv: Option<usize>,
    /// Whether the caller sent a `paymentMethodMetaData` at all.
    pub has_metadata: bool,
}

/// The paths that a request's meaning does not depend on: the device, the card (its reference stands
/// for it), the flag that the vault alone decides, and what no durable digest may be made of.
fn no_meaning(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["env"] | ["order", "env"] | ["paymentMethod", "paymentMethodId"] => true,
        ["paymentMethod", "paymentMethodMetaData", "mpiData", "cavv"] => true,
        ["paymentMethod", "paymentMethodMetaData", name] => {
            matches!(
                *name,
                "cardNo"
                    | "cvv"
                    | "expiryMonth"
                    | "expiryYear"
                    | "cardholderName"
                    | "cardPasswordDigest"
                    | "isCardOnFile"
            )
        }
        _ => false,
    }
}

/// The request's meaning in one canonical text, the card left out.
pub fn canonical(text: &str) -> SecretText {
    let mut out = String::with_capacity(text.len());
    let bare = is_metadata_bare(text);
    let skip = |path: &[String]| no_meaning(path) || (bare && path == ["paymentMethod", METADATA_NAME]);
    json::push_canonical(&mut out, text, &mut Vec::new(), &skip);
    SecretText::new(out)
}

/// Whether the card's map says nothing that has a meaning: then it is as good as absent, which it may be
/// beside a reference.
fn is_metadata_bare(text: &str) -> bool {
    let metadata = || {
        let method = Object::parse(Object::parse(text)?.get("paymentMethod")?)?;
        Object::parse(method.get(METADATA_NAME)?)
    };
    let path = |name: &str| ["paymentMethod", METADATA_NAME, name].map(str::to_owned);
    metadata().is_some_and(|metadata| metadata.iter().all(|(name, _)| no_meaning(&path(name))))
}

/// The id of a request that may not be readable otherwise: it is looked up before anything else.
pub fn payment_request_id(object: &Object<'_>) -> Result<PaymentRequestId, FieldFault> {
    let at = |code| FieldFault::at("/paymentRequestId", code);
    let raw = object.get("paymentRequestId").ok_or_else(|| at("required"))?;
    let text = json::string(raw).ok_or_else(|| at("invalid_type"))?;
    if text.chars().count() > crate::base::limits::ID_CHARS {
        return Err(at("too_long"));
    }
    if !find_pans(&text).is_empty() {
        return Err(at("card_data_outside_card"));
    }
    PaymentRequestId::parse(&text).ok_or_else(|| at("invalid_value"))
}

impl PayRequest {
    /// Reads a body that [`json::check`] has passed. All faults are gathered, so that a caller mends
    /// them in one go.
    pub fn read(text: &str, now: Millis) -> Result<Self, Vec<FieldFault>> {
        let top = Object::parse(text).ok_or_else(|| vec![FieldFault::at("", "invalid_type")])?;
        let mut faults = Vec::new();
        let id = payment_request_id(&top).map_err(|fault| faults.push(fault)).ok();
        let amount = read_amount(&top, &mut faults);
        let buyer = read_buyer(&top, &mut faults);
        let stored = top.get("storedCredential").and_then(|raw| {
            read_stored_credential(raw, now).map_err(|mut wrong| faults.append(&mut wrong)).ok()
        });
        let manual_capture = read_capture_mode(&top, &mut faults);
        let expires_at = read_expiry_time(&top, &mut faults);
        // Where the vault takes notifications itself, the caller's address goes; what it is must be right still.
        if top.get("paymentNotifyUrl").is_some_and(|raw| json::string(raw).is_none()) {
            faults.push(FieldFault::at("/paymentNotifyUrl", "invalid_type"));
        }
        let method = read_method(&top, &mut faults);
        let card = method.as_ref().and_then(|(method, metadata)| {
            read_card(method, metadata.as_ref(), buyer.as_ref(), now, &mut faults)
        });
        find_misplaced(text, Spot::PayRequest, &mut faults);
        match (id, amount, method, card) {
            (Some(payment_request_id), Some(amount), Some((method, metadata)), Some(card))
                if faults.is_empty() =>
            {
                let (passed, mpi_with_cavv) = pass_metadata(metadata.as_ref());
                Ok(Self {
                    payment_request_id,
                    amount,
                    buyer,
                    card: card.form,
                    sensitive: card.sensitive,
                    held_cvv: false,
                    omit_cvv: card.omit_cvv,
                    claims: card.claims,
                    stored_credential: stored,
                    stored_text: top.get("storedCredential").map(SecretText::from),
                    three_ds: card.three_ds,
                    has_browser_info: has_browser_info(&top),
                    manual_capture,
                    tokenize: card.tokenize,
                    add_tokenize: false,
                    pays_by_token: false,
                    expires_at,
                    notify_url: None,
                    top: pass(&top, &["storedCredential"]),
                    method: pass(&method, &["paymentMethodId", "paymentMethodMetaData"]),
                    metadata: passed,
                    mpi_with_cavv,
                    has_metadata: metadata.is_some(),
                })
            }
            _ => Err(faults),
        }
    }

    /// Finds this payment's own PAN in any member that is passed on, or kept.
    pub fn find_outside_card(&self, pan: &Pan) -> Option<FieldFault> {
        const STORED: &str = "storedCredential";
        if self.stored_text.as_ref().is_some_and(|raw| misplaced::holds(STORED, raw.expose(), pan)) {
            return Some(misplaced::fault_at("", STORED));
        }
        let inside = |prefix: &str, members: &[Member]| {
            members.iter().find_map(|(name, raw)| {
                // `paymentMethod` stands in `top` for its place only; its parts are looked at below.
                (name != "paymentMethod" && misplaced::holds(name, raw.expose(), pan))
                    .then(|| misplaced::fault_at(prefix, name))
            })
        };
        inside("", &self.top)
            .or_else(|| inside("/paymentMethod", &self.method))
            .or_else(|| inside(METADATA, &self.metadata))
    }
}

fn read_amount(top: &Object<'_>, faults: &mut Vec<FieldFault>) -> Option<Amount> {
    let pointers = ["/paymentAmount", "/paymentAmount/currency", "/paymentAmount/value"];
    read_sum(top, "paymentAmount", pointers, faults)
}

/// Reads a sum of money; `pointers` name it, its currency and its value.
pub(super) fn read_sum(
    top: &Object<'_>,
    name: &str,
    pointers: [&'static str; 3],
    faults: &mut Vec<FieldFault>,
) -> Option<Amount> {
    let [at, at_currency, at_value] = pointers;
    let mut fault = |pointer, code| {
        faults.push(FieldFault::at(pointer, code));
        None
    };
    let Some(raw) = top.get(name) else { return fault(at, "required") };
    let Some(object) = Object::parse(raw) else { return fault(at, "invalid_type") };
    let Some(currency) = object.get("currency") else { return fault(at_currency, "required") };
    let Some(value) = object.get("value") else { return fault(at_value, "required") };
    let Some(currency) = json::string(currency) else { return fault(at_currency, "invalid_type") };
    let Some(value) = json::string(value) else { return fault(at_value, "invalid_type") };
    match Amount::from_wire(&currency, &value) {
        Ok(amount) => Some(amount),
        Err(error) if error.is_currency() => fault(at_currency, "invalid_value"),
        Err(_) => fault(at_value, "invalid_value"),
    }
}

/// Whether `paymentFactor.captureMode` is `MANUAL`; absent is `AUTOMATIC`.
fn read_capture_mode(top: &Object<'_>, faults: &mut Vec<FieldFault>) -> bool {
    const AT: &str = "/paymentFactor/captureMode";
    let factor = match top.get("paymentFactor").map(Object::parse) {
        None => return false,
        Some(None) => {
            faults.push(FieldFault::at("/paymentFactor", "invalid_type"));
            return false;
        }
        Some(Some(factor)) => factor,
    };
    match factor.get("captureMode").map(json::string) {
        None => false,
        Some(None) => {
            faults.push(FieldFault::at(AT, "invalid_type"));
            false
        }
        Some(Some(text)) if matches!(text.as_ref(), "AUTOMATIC" | "") => false,
        Some(Some(text)) if text == "MANUAL" => true,
        Some(Some(_)) => {
            faults.push(FieldFault::at(AT, "invalid_value"));
            false
        }
    }
}

fn read_expiry_time(top: &Object<'_>, faults: &mut Vec<FieldFault>) -> Option<Millis> {
    let raw = top.get("paymentExpiryTime")?;
    let at = json::string(raw).and_then(|text| parse_time(&text));
    if at.is_none() {
        faults.push(FieldFault::at("/paymentExpiryTime", "invalid_value"));
    }
    at
}

fn read_buyer<'a>(top: &Object<'a>, faults: &mut Vec<FieldFault>) -> Option<BuyerId> {
    let mut object = |raw: &'a str, at| {
        let object = Object::parse(raw);
        if object.is_none() {
            faults.push(FieldFault::at(at, "invalid_type"));
        }
        object
    };
    let order = object(top.get("order")?, "/order")?;
    let buyer = object(order.get("buyer")?, "/order/buyer")?;
    let mut reader = CardReader::new(&buyer, "/order/buyer");
    let id = reader.buyer();
    faults.append(&mut reader.faults);
    id
}

fn has_browser_info(top: &Object<'_>) -> bool {
    top.get("env").and_then(Object::parse).is_some_and(|env| env.get("browserInfo").is_some())
}

fn read_method<'a>(
    top: &Object<'a>,
    faults: &mut Vec<FieldFault>,
) -> Option<(Object<'a>, Option<Object<'a>>)> {
    let mut fault = |pointer, code| {
        faults.push(FieldFault::at(pointer, code));
        None
    };
    let Some(raw) = top.get("paymentMethod") else { return fault("/paymentMethod", "required") };
    let Some(method) = Object::parse(raw) else { return fault("/paymentMethod", "invalid_type") };
    match method.get("paymentMethodType").map(json::string) {
        None => return fault("/paymentMethod/paymentMethodType", "required"),
        Some(None) => return fault("/paymentMethod/paymentMethodType", "invalid_type"),
        Some(Some(text)) if text != "CARD" => {
            return fault("/paymentMethod/paymentMethodType", "invalid_value");
        }
        Some(Some(_)) => {}
    }
    match method.get("paymentMethodMetaData").map(Object::parse) {
        None => Some((method, None)),
        Some(None) => fault(METADATA, "invalid_type"),
        Some(metadata) => Some((method, metadata)),
    }
}

struct ReadCard {
    form: CardForm,
    sensitive: Sensitive,
    omit_cvv: bool,
    claims: Claims,
    three_ds: bool,
    tokenize: Option<bool>,
}

/// Longest token of Antom's (reference, section 16), in characters.
const TOKEN_CHARS: usize = 2048;

/// A `paymentMethodId` that is not a card's reference: Antom's own token. What looks like a reference
/// and is none, or like a card number, is a mistake.
fn read_token(text: &str) -> Option<SecretText> {
    let good = (1..=TOKEN_CHARS).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'))
        && !text.starts_with("card_")
        && find_pans(text).is_empty();
    good.then(|| text.into())
}

fn read_card(
    method: &Object<'_>,
    metadata: Option<&Object<'_>>,
    buyer: Option<&BuyerId>,
    now: Millis,
    faults: &mut Vec<FieldFault>,
) -> Option<ReadCard> {
    let before = faults.len();
    let empty = Object::parse("{}")?;
    let mut reader = CardReader::new(metadata.unwrap_or(&empty), METADATA);
    let has = |name: &str| metadata.is_some_and(|object| object.get(name).is_some());
    let flags = read_flags(&mut reader, metadata.unwrap_or(&empty));
    let mut read = ReadCard {
        form: CardForm::HostedPage,
        sensitive: Sensitive { cavv: read_cavv(metadata, faults), ..Sensitive::default() },
        omit_cvv: false,
        claims: flags.claims,
        three_ds: flags.three_ds,
        tokenize: flags.tokenize,
    };
    match (method.get("paymentMethodId"), has("cardNo")) {
        (Some(_), true) => faults.push(FieldFault::at("/paymentMethod/paymentMethodId", "conflict")),
        (Some(raw), false) => {
            let id = json::string(raw);
            match id.as_deref().map(|text| (CardId::parse(text), read_token(text))) {
                Some((Some(id), _)) => read.form = CardForm::Reference(id),
                Some((None, Some(token))) => read.form = CardForm::Token(token),
                Some((None, None)) => {
                    faults.push(FieldFault::at("/paymentMethod/paymentMethodId", "invalid_value"));
                }
                None => faults.push(FieldFault::at("/paymentMethod/paymentMethodId", "invalid_type")),
            }
            read.claims.month = reader.month(false);
            read.claims.year = reader.year(false);
            read.claims.name = reader.name();
            read.omit_cvv = says_omit(metadata);
            read.sensitive.cvv = if read.omit_cvv { None } else { reader.cvv() };
        }
        (None, true) => {
            let (pan, expiry) = (reader.pan(), reader.expiry(now));
            let (name, address) = (reader.name(), reader.address(false));
            read.sensitive.cvv = reader.cvv();
            if let (Some(pan), Some(expiry)) = (pan, expiry) {
                let details = Details { expiry, name, address };
                read.form = CardForm::Inline(TypedCard { pan, details, buyer: buyer.cloned() });
            }
        }
        (None, false) => {
            for name in
                ["cvv", "expiryMonth", "expiryYear", "cardholderName", "cardPasswordDigest", "mpiData"]
            {
                if has(name) {
                    reader.fault(name, "without_card");
                }
            }
        }
    }
    read.sensitive.password_digest = read_password_digest(&mut reader);
    faults.append(&mut reader.faults);
    (faults.len() == before).then_some(read)
}

/// `cvv: "OMIT"` beside a reference.
fn says_omit(metadata: Option<&Object<'_>>) -> bool {
    metadata.and_then(|object| object.get("cvv")).and_then(json::string).is_some_and(|text| text == "OMIT")
}

struct Flags {
    claims: Claims,
    three_ds: bool,
    tokenize: Option<bool>,
}

/// The members that say how a card is charged. The vault writes most of them itself: what the caller
/// says is kept as a claim, and compared with what is sent.
fn read_flags(reader: &mut CardReader<'_>, metadata: &Object<'_>) -> Flags {
    let mut flag = |name: &str| match metadata.get(name).map(json::boolean) {
        None => None,
        Some(Some(value)) => Some(value),
        Some(None) => {
            reader.fault(name, "invalid_type");
            None
        }
    };
    let is_card_on_file = flag("isCardOnFile");
    let three_ds = [flag("is3DSAuthentication"), flag("enableAuthenticationUpgrade")];
    let tokenize = flag("tokenize");
    let text =
        |reader: &mut CardReader<'_>, name: &str| reader.string(name).map(|text| text.expose().to_owned());
    Flags {
        claims: Claims {
            is_card_on_file,
            recurring_type: text(reader, "recurringType"),
            network_transaction_id: text(reader, "networkTransactionId"),
            ..Claims::default()
        },
        three_ds: three_ds.contains(&Some(true)),
        tokenize,
    }
}

/// Korea: the plain first two digits of the card's password; sensitive authentication data.
fn read_password_digest(reader: &mut CardReader<'_>) -> Option<SecretText> {
    let text = reader.string("cardPasswordDigest")?;
    if text.expose().len() != 2 || !text.expose().bytes().all(|b| b.is_ascii_digit()) {
        reader.fault("cardPasswordDigest", "invalid_value");
        return None;
    }
    Some(text)
}

/// `mpiData.cavv`: at most 64 characters of base64.
fn read_cavv(metadata: Option<&Object<'_>>, faults: &mut Vec<FieldFault>) -> Option<SecretText> {
    const AT: &str = "/paymentMethod/paymentMethodMetaData/mpiData";
    const CAVV: &str = "/paymentMethod/paymentMethodMetaData/mpiData/cavv";
    let mut fault = |pointer, code| {
        faults.push(FieldFault::at(pointer, code));
        None
    };
    let Some(mpi) = Object::parse(metadata?.get("mpiData")?) else { return fault(AT, "invalid_type") };
    let Some(text) = json::string(mpi.get("cavv")?) else { return fault(CAVV, "invalid_type") };
    let good = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_'));
    if good { Some(SecretText::new(text.into_owned())) } else { fault(CAVV, "invalid_value") }
}

fn pass(object: &Object<'_>, without: &[&str]) -> Vec<Member> {
    object
        .iter()
        .filter(|(name, _)| !without.contains(name))
        .map(|(name, raw)| (name.to_owned(), raw.into()))
        .collect()
}

fn pass_metadata(metadata: Option<&Object<'_>>) -> (Vec<Member>, Option<usize>) {
    let Some(metadata) = metadata else { return (Vec::new(), None) };
    let mut members = pass(metadata, OWNED);
    let mpi = members.iter().position(|(name, _)| name == "mpiData");
    let with_cavv = mpi.filter(|place| {
        members
            .get_mut(*place)
            .and_then(|(_, raw)| without_cavv(raw.expose()).map(|stripped| *raw = stripped))
            .is_some()
    });
    (members, with_cavv)
}

/// `mpiData` without its `cavv`; `None` where it has none.
fn without_cavv(raw: &str) -> Option<SecretText> {
    let mpi = Object::parse(raw)?;
    mpi.get("cavv")?;
    let mut out = json::ObjectWriter::default();
    for (name, raw) in mpi.iter().filter(|(name, _)| *name != "cavv") {
        out.raw(name, raw);
    }
    Some(SecretText::new(out.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_772_366_400_000);
    const SAMPLE: &str = include_str!("../../tests/samples/pay-server-to-server.json");
    const HOSTED: &str = include_str!("../../tests/samples/pay-hosted-page.json");

    fn read(text: &str) -> Result<PayRequest, Vec<(String, &'static str)>> {
        PayRequest::read(text, NOW)
            .map_err(|faults| faults.into_iter().map(|f| (f.pointer.into_owned(), f.code)).collect())
    }

    fn changed(from: &str, to: &str) -> Vec<(String, &'static str)> {
        assert!(SAMPLE.contains(from), "{from}");
        read(&SAMPLE.replacen(from, to, 1)).err().unwrap_or_default()
    }

    #[test]
    fn the_documents_samples_are_read() {
        let request = read(SAMPLE).unwrap_or_else(|faults| panic!("{faults:?}"));
        assert_eq!(request.payment_request_id.as_str(), "PAY_20221114141714891");
        assert_eq!(request.amount.to_string(), "EUR 300.00");
        assert_eq!(request.buyer.as_ref().map(BuyerId::as_str), Some("test12345678"));
        assert!(matches!(&request.card, CardForm::Inline(card) if card.pan.expose() == "4117347806156383"));
        assert_eq!(request.sensitive.cvv.as_ref().map(Cvv::expose), Some("850"));
        let passed: Vec<&str> = request.metadata.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(passed, ["enableAuthenticationUpgrade", "is3DSAuthentication", "billingAddress"]);

        let request = read(HOSTED).unwrap_or_else(|faults| panic!("{faults:?}"));
        assert!(matches!(request.card, CardForm::HostedPage) && !request.has_metadata);
    }

    #[test]
    fn faults_are_named() {
        for (from, to, pointer, code) in [
            ("\"PAY_20221114141714891\"", "7", "/paymentRequestId", "invalid_type"),
            (
                "\"PAY_20221114141714891\"",
                "\"4111111111111111\"",
                "/paymentRequestId",
                "card_data_outside_card",
            ),
            ("\"PAY_20221114141714891\"", "\"a b\"", "/paymentRequestId", "invalid_value"),
            ("\"paymentRequestId\"", "\"x\"", "/paymentRequestId", "required"),
            (
                "\"4117347806156383\"",
                "\"4117347806156384\"",
                "/paymentMethod/paymentMethodMetaData/cardNo",
                "invalid_check_digit",
            ),
            (
                "\"isCardOnFile\": false",
                "\"isCardOnFile\": \"no\"",
                "/paymentMethod/paymentMethodMetaData/isCardOnFile",
                "invalid_type",
            ),
            (
                "\"cvv\": \"850\"",
                "\"cvv\": \"OMIT\"",
                "/paymentMethod/paymentMethodMetaData/cvv",
                "invalid_value",
            ),
            (
                "\"cvv\": \"850\"",
                "\"cardPasswordDigest\": \"1\"",
                "/paymentMethod/paymentMethodMetaData/cardPasswordDigest",
                "invalid_value",
            ),
            (
                "\"paymentMethodType\": \"CARD\"",
                "\"paymentMethodType\": \"GCASH\"",
                "/paymentMethod/paymentMethodType",
                "invalid_value",
            ),
            (
                "\"paymentMethodType\": \"CARD\"",
                "\"paymentMethodType\": \"CARD\", \"paymentMethodId\": \"card_x\"",
                "/paymentMethod/paymentMethodId",
                "conflict",
            ),
            (
                "Cappuccino #grande",
                "4111 1111 1111 1111",
                "/order/orderDescription",
                "card_data_outside_card",
            ),
            (
                "Cappuccino #grande",
                "4111111111111111 12/29",
                "/order/orderDescription",
                "card_data_outside_card",
            ),
            (
                "\"productCode\"",
                "\"metadata\": \"{\\\"n\\\":4111111111111111}\", \"productCode\"",
                "/metadata",
                "card_data_outside_card",
            ),
            (
                "\"productCode\"",
                "\"storedCredential\": 7, \"productCode\"",
                "/storedCredential",
                "invalid_type",
            ),
        ] {
            assert_eq!(changed(from, to), [(pointer.to_owned(), code)], "{from} -> {to}");
        }
        let amount = "\"paymentAmount\": {\n\"currency\": \"EUR\",\n\"value\": \"30000\"";
        for (to, pointer) in [
            ("\"currency\": \"EUR\", \"value\": 30000", "/paymentAmount/value"),
            ("\"currency\": \"EUR\", \"value\": \"030\"", "/paymentAmount/value"),
            ("\"currency\": \"eur\", \"value\": \"30\"", "/paymentAmount/currency"),
            ("\"value\": \"30\"", "/paymentAmount/currency"),
        ] {
            assert_eq!(changed(amount, &format!("\"paymentAmount\": {{{to}"))[0].0, pointer);
        }
    }

    #[test]
    fn card_members_without_a_card_are_refused() {
        let text = HOSTED.replacen(
            "\"paymentMethodType\": \"CARD\"",
            "\"paymentMethodType\": \"CARD\", \"paymentMethodMetaData\": {\"cvv\": \"850\"}",
            1,
        );
        let faults = read(&text).err().expect("a fault");
        assert_eq!(faults, [("/paymentMethod/paymentMethodMetaData/cvv".to_owned(), "without_card")]);
    }

    #[test]
    fn this_payments_pan_is_found_wherever_it_hides() {
        let pan = Pan::parse("4117347806156383").expect("a PAN");
        let found = |from: &str, to: &str| {
            let request = read(&SAMPLE.replacen(from, to, 1)).unwrap_or_else(|faults| panic!("{faults:?}"));
            request.find_outside_card(&pan).map(|fault| fault.pointer.into_owned())
        };
        assert_eq!(found("FedEx", "FedEx"), None);
        assert_eq!(found("FedEx", "x 4117 3478-0615 6383 x").as_deref(), Some("/order"));
        assert_eq!(found("FedEx", "4117.3478.0615.6383 12/29").as_deref(), Some("/order"));
        assert_eq!(found("\"colorDepth\": 48", "\"colorDepth\": 4117347806156383").as_deref(), Some("/env"));
        assert_eq!(found("\"goodsQuantity\"", "\"4117347806156383\"").as_deref(), Some("/order"));
        assert_eq!(
            found("\"is3DSAuthentication\": false", "\"\\u0034117347806156383\": false").as_deref(),
            Some("/paymentMethod/paymentMethodMetaData")
        );
        let opens = r#""storedCredential": {"initiator": "CUSTOMER", "agreement": {"type": "CARD_ON_FILE", "consent":
            {"acceptedAt": "2026-03-01T11:00:00Z", "textVersion": "v1", "note": "NOTE"}}}, "paymentAmount""#;
        // A local scheme's number, which no brand tells.
        let local = Pan::parse("9490220011669217").expect("a PAN");
        for (note, number, is_found) in [
            ("by phone", &pan, false),
            ("9490 2200 1166 9217", &pan, false),
            ("9490 2200 1166 9217", &local, true),
            ("\\u0039490220011669217", &local, true),
        ] {
            let text = SAMPLE.replacen("\"paymentAmount\"", &opens.replace("NOTE", note), 1);
            let request = read(&text).unwrap_or_else(|faults| panic!("{faults:?}"));
            let fault = request.find_outside_card(number).map(|fault| fault.pointer.into_owned());
            assert_eq!(fault.as_deref(), is_found.then_some("/storedCredential"), "{note}");
        }
    }

    #[test]
    fn the_meaning_is_the_request_without_device_card_and_secrets() {
        let base = canonical(SAMPLE);
        let same = |from: &str, to: &str| {
            assert!(SAMPLE.contains(from), "{from}");
            canonical(&SAMPLE.replacen(from, to, 1)).expose() == base.expose()
        };
        assert!(same("\"timeZoneOffset\": 1", "\"timeZoneOffset\": 2"));
        assert!(same("\"cvv\": \"850\"", "\"cvv\": \"851\""));
        assert!(same("\"cardNo\": \"4117347806156383\"", "\"cardNo\": \"4111111111111111\""));
        assert!(!same("\"productCode\": \"CASHIER_PAYMENT\",\n", ""));
        assert!(!same("FedEx", "DHL"));
        assert!(!same("\"value\": \"30000\"", "\"value\": \"30001\""));
        assert!(!base.expose().contains("4117347806156383") && !base.expose().contains("850"));
    }

    #[test]
    fn the_cryptogram_is_taken_out_of_mpi_data() {
        let text = SAMPLE.replacen(
            "\"cvv\": \"850\"",
            "\"mpiData\": {\"eci\": \"05\", \"cavv\": \"AAABBEg0VhI0VniQEjRWAAAAAAA=\", \"threeDSVersion\": \"2.2.0\"}",
            1,
        );
        let request = read(&text).unwrap_or_else(|faults| panic!("{faults:?}"));
        assert_eq!(request.sensitive.cavv.as_ref().map(|s| s.expose()), Some("AAABBEg0VhI0VniQEjRWAAAAAAA="));
        let place = request.mpi_with_cavv.expect("mpiData");
        assert_eq!(request.metadata[place].1.expose(), r#"{"eci":"05","threeDSVersion":"2.2.0"}"#);
        assert!(!canonical(&text).expose().contains("AAABBEg0"));
    }
}
