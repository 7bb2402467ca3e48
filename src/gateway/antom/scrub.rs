//! Cleans what the gateway sends before it is stored, logged or relayed. A gateway should never send
//! card data back; this makes sure that it does no harm when it does.
//!
//! What is not card data stays byte for byte. Three rules, in this order of certainty: a member's name;
//! this payment's own number and CVV, where the caller knows them; a number of a brand's range with a
//! right check digit.

mod spelling;
#[cfg(test)]
mod tests;

use crate::base::card::{Pan, find_pans};
use crate::base::cvv::Cvv;
use crate::base::ids::CardId;
use crate::base::json::{self, Object, ObjectWriter, push_string};
use crate::base::names::{self, Kind};
use crate::base::secret::SecretText;

use spelling::{Spellings, decodings, without_named};

/// Stands in place of what was taken out.
const REMOVED: &str = "[removed]";
/// How many encodings are looked through, one inside the other.
const LAYERS: usize = 8;

/// The card data that the answered call carried, as far as it is known.
#[derive(Default, Clone, Copy)]
pub struct Own<'a> {
    /// The PAN that was sent.
    pub pan: Option<&'a Pan>,
    /// The CVV that was sent.
    pub cvv: Option<&'a Cvv>,
    /// Antom's token of the card, where it was sent or is told.
    pub token: Option<&'a SecretText>,
    /// The reference that stands in the token's place.
    pub token_card: Option<&'a CardId>,
}

/// Antom's token of the card in an answer, as it came: in `paymentResultInfo`, or where older pages have it,
/// in `cardInfo` (reference, section 16).
pub fn card_token(text: &str) -> Option<SecretText> {
    let answer = Object::parse(text)?;
    ["paymentResultInfo", "cardInfo"].into_iter().find_map(|place| {
        let token = json::string(Object::parse(answer.get(place)?)?.get("cardToken")?)?;
        (!token.is_empty() && token.len() <= 2048).then(|| SecretText::from(token.as_ref()))
    })
}

/// The answer without card data, as JSON. `None` where the text is not one strict JSON value.
pub fn scrub(text: &str, own: Own<'_>) -> Option<String> {
    let cleaner = Cleaner {
        cvv: own.cvv,
        pan: own.pan.map(Spellings::of),
        token: own.token.map(SecretText::expose),
        instead: own.token_card.map_or(REMOVED, CardId::as_str),
    };
    cleaner.json(text, LAYERS).map(|(cleaned, _)| cleaned)
}

struct Cleaner<'a> {
    cvv: Option<&'a Cvv>,
    pan: Option<Spellings>,
    token: Option<&'a str>,
    /// What stands in the token's place.
    instead: &'a str,
}

impl Cleaner<'_> {
    /// The cleaned text of a JSON value, and whether anything was taken out.
    fn json(&self, text: &str, layers: usize) -> Option<(String, bool)> {
        json::check(text, &|_| false).ok()?;
        let mut out = String::with_capacity(text.len());
        let touched = self.value(&mut out, text.trim(), Kind::Plain, layers);
        Some((out, touched))
    }

    /// Appends one value, of the kind that its member's name gives it, and tells whether anything was
    /// taken out.
    fn value(&self, out: &mut String, raw: &str, kind: Kind, layers: usize) -> bool {
        let cleaned = if kind == Kind::Secret && !matches!(raw, "true" | "false") {
            Some(REMOVED.to_owned())
        } else if kind == Kind::Token {
            Some(self.instead.to_owned())
        } else if let Some(members) = Object::parse(raw) {
            return self.object(out, &members, layers);
        } else if let Some(items) = json::items(raw) {
            return self.list(out, &items, kind, layers);
        } else if let Some(text) = json::string(raw) {
            self.text(&text, kind, layers)
        } else {
            self.number(raw, kind)
        };
        match &cleaned {
            Some(text) => push_string(out, text),
            None => out.push_str(raw),
        }
        cleaned.is_some()
    }

    fn object(&self, out: &mut String, members: &Object<'_>, layers: usize) -> bool {
        let is_sum = members.get("currency").is_some() && members.get("value").is_some();
        let mut touched = false;
        let mut cleaned = ObjectWriter::default();
        for (name, raw) in members.iter() {
            if self.text(name, Kind::Plain, layers).is_some() {
                touched = true;
                continue;
            }
            let kind = if is_sum && name == "value" { Kind::Sum } else { names::kind(name) };
            let mut value = String::new();
            touched |= self.value(&mut value, raw, kind, layers);
            cleaned.raw(name, &value);
        }
        out.push_str(&cleaned.finish());
        touched
    }

    fn list(&self, out: &mut String, items: &[&str], kind: Kind, layers: usize) -> bool {
        let mut touched = false;
        let mut cleaned = Vec::with_capacity(items.len());
        for item in items {
            let mut value = String::new();
            touched |= self.value(&mut value, item, kind, layers);
            cleaned.push(value);
        }
        // A number may have been cut into pieces, or into the codes of its characters.
        if self.pan.as_ref().is_some_and(|pan| pan.stand_in(&pieces(&cleaned))) {
            push_string(out, REMOVED);
            return true;
        }
        out.push('[');
        out.push_str(&cleaned.join(","));
        out.push(']');
        touched
    }

    /// The text without card data; `None` where it has none.
    fn text(&self, text: &str, kind: Kind, layers: usize) -> Option<String> {
        // Three digits alone say nothing; only a whole string is taken for the CVV, and a sum is not.
        if kind != Kind::Sum && self.cvv.is_some_and(|cvv| cvv.expose() == text.trim()) {
            return Some(REMOVED.to_owned());
        }
        if kind == Kind::Number {
            return unmasked(text);
        }
        if let Some(token) = self.token.filter(|token| text.contains(token)) {
            let replaced = text.replace(token, self.instead);
            return Some(self.text(&replaced, kind, layers.saturating_sub(1)).unwrap_or(replaced));
        }
        // Some members carry JSON as text: names count there too.
        if text.trim_start().starts_with(['{', '[']) {
            let inner = layers.checked_sub(1).map(|layers| self.json(text, layers));
            match inner {
                None => return Some(REMOVED.to_owned()),
                Some(Some((cleaned, true))) => return Some(cleaned),
                Some(Some((_, false))) => return self.own(text),
                Some(None) => {}
            }
        }
        // Before anything is taken out: what is left would not decode any more.
        if kind != Kind::Sum
            && let Some(layers) = layers.checked_sub(1)
            && decodings(text).iter().any(|inner| self.text(inner, kind, layers).is_some())
        {
            return Some(REMOVED.to_owned());
        }
        let named = without_named(text);
        let unnamed = named.as_deref().unwrap_or(text);
        let masked = if matches!(kind, Kind::Quiet | Kind::Sum) { None } else { mask_found(unnamed) };
        let left = masked.as_deref().unwrap_or(unnamed);
        if let Some(removed) = self.own(left) {
            // A number that masking leaves nothing of is shown masked, whatever its name.
            return mask_found(left).filter(|masked| self.own(masked).is_none()).or(Some(removed));
        }
        masked.or(named)
    }

    /// What stands in place of a text that holds this payment's own number in any spelling.
    fn own(&self, text: &str) -> Option<String> {
        self.pan.as_ref().is_some_and(|pan| pan.stand_in(text)).then(|| REMOVED.to_owned())
    }

    /// As [`Self::text`], for a number of JSON. It is never taken for the CVV, which is a text.
    fn number(&self, raw: &str, kind: Kind) -> Option<String> {
        let found = match kind {
            Kind::Number => raw != "null" && unmasked(raw).is_some(),
            Kind::Quiet | Kind::Sum => false,
            Kind::Secret | Kind::Token | Kind::Plain => mask_found(raw).is_some(),
        };
        (found || self.own(raw).is_some()).then(|| REMOVED.to_owned())
    }
}

/// The texts and numbers of a list, one behind the other.
fn pieces(items: &[String]) -> String {
    let scalars = items.iter().filter(|raw| !raw.starts_with(['{', '[']));
    let texts = scalars.map(|raw| json::string(raw).unwrap_or(raw.into()));
    texts.collect::<Vec<_>>().join(" ")
}

/// What stands in place of a number that shows more than BIN and last four; `None` where it does not.
fn unmasked(text: &str) -> Option<String> {
    let is_mask = |c: char| matches!(c, '*' | 'x' | 'X' | '.' | '#' | '\u{2022}' | '\u{25cf}' | '\u{ff0a}');
    let only_number = text.chars().all(|c| c.is_ascii_digit() || is_mask(c) || c == ' ' || c == '-');
    let shown = text.bytes().filter(u8::is_ascii_digit).count();
    let masks = text.chars().filter(|c| is_mask(*c)).count();
    if text.is_empty() || (only_number && (shown == 4 || (masks > 0 && shown <= 10))) {
        return None;
    }
    if let Ok(pan) = Pan::parse(text) {
        return Some(mask(pan.expose()));
    }
    // Eight digits of a BIN are more than any number here shows.
    let last4 = text.rsplit(is_mask).next().filter(|end| end.len() == 4);
    match (text.get(..6), last4) {
        (Some(bin), Some(last4))
            if only_number && masks >= 4 && shown <= 12 && bin.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Some(format!("{bin}{}{last4}", "*".repeat(shown + masks - 10)))
        }
        _ => Some(REMOVED.to_owned()),
    }
}

fn mask(digits: &str) -> String {
    let (hidden, last4) = digits.split_at(digits.len().saturating_sub(4));
    format!("{}{last4}", "*".repeat(hidden.len()))
}

/// The text with every number masked that looks like a card's; `None` where none does.
fn mask_found(text: &str) -> Option<String> {
    let found = find_pans(text);
    let mut out = String::new();
    let mut at = 0;
    for range in &found {
        let number = text.get(range.clone()).unwrap_or_default();
        out.push_str(text.get(at..range.start).unwrap_or_default());
        out.push_str(&mask(&number.chars().filter(char::is_ascii_digit).collect::<String>()));
        at = range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    (!found.is_empty()).then_some(out)
}
