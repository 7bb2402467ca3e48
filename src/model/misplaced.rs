//! Card data in members that are not for it. What is passed on is kept, sealed, and its meaning has a durable
//! digest: a CVV in the wrong place would be in both, so it is refused before anything is stored or sent.

use std::borrow::Cow;

use crate::base::card::{Pan, find_pans};
use crate::base::fault::FieldFault;
use crate::base::json::{self, Object};
use crate::base::names::{self, Kind};
use crate::base::secret::SecretText;

use super::vocabulary;

/// The code of every fault here.
const CODE: &str = "card_data_outside_card";
/// Members of free text, in which any card number of a known brand is refused wherever they stand.
const FREE_TEXT: &[&str] = &["orderDescription", "metadata", "extendInfo"];
/// How many texts of JSON are looked into, one inside the other.
const LAYERS: usize = 4;

/// Which object of a request one looks at, as far as card data has a place in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// A pay request.
    PayRequest,
    /// Its `paymentMethod`.
    Method,
    /// `paymentMethodMetaData`: the card's own map.
    Card,
    /// `mpiData`.
    Mpi,
    /// Anything else.
    Elsewhere,
}

impl Spot {
    fn inside(self, name: &str) -> Self {
        match (self, name) {
            (Self::PayRequest, "paymentMethod") => Self::Method,
            (Self::Method, "paymentMethodMetaData") => Self::Card,
            (Self::Card, "mpiData") => Self::Mpi,
            _ => Self::Elsewhere,
        }
    }

    /// Whether a member of this name is read, typed and kept apart by whoever reads the object.
    fn is_place_of(self, name: &str) -> bool {
        match self {
            Self::Card => matches!(name, "cardNo" | "cvv" | "cardPasswordDigest"),
            Self::Mpi => name == "cavv",
            Self::PayRequest | Self::Method | Self::Elsewhere => false,
        }
    }
}

/// Finds, in a whole body, card numbers in members of free text, and members that are named as card data is
/// and hold some, wherever they stand but in their own places; in texts of JSON too.
pub(super) fn find_misplaced(raw: &str, spot: Spot, faults: &mut Vec<FieldFault>) {
    Search { faults }.walk(raw, "", spot, Told { free: false, kind: Kind::Plain, short: false }, LAYERS);
}

/// What the names on the way to a value tell of it.
#[derive(Clone, Copy)]
struct Told {
    /// It is free text.
    free: bool,
    kind: Kind,
    /// It is a CVV by its name, and so has three or four digits.
    short: bool,
}

impl Told {
    fn of(self, name: &str) -> Self {
        let free = self.free || FREE_TEXT.contains(&name);
        match names::kind(name) {
            // Elsewhere than at a gateway, a `cid` is a customer's more often than a CVV.
            Kind::Secret => {
                let short = names::is_verification(name) || name.eq_ignore_ascii_case("cid");
                Self { free, kind: Kind::Secret, short }
            }
            Kind::Number => Self { free, kind: Kind::Number, short: false },
            Kind::Token | Kind::Quiet | Kind::Sum | Kind::Plain => Self { free, ..self },
        }
    }

    fn is_card_data(self, text: &str) -> bool {
        let named = match self.kind {
            Kind::Secret if self.short => {
                let text: String = text.trim().chars().map(names::narrow).collect();
                matches!(text.len(), 3 | 4) && text.bytes().all(|byte| byte.is_ascii_digit())
            }
            Kind::Secret => !text.trim().is_empty(),
            Kind::Number => Pan::parse(text.trim()).is_ok(),
            Kind::Token | Kind::Quiet | Kind::Sum | Kind::Plain => false,
        };
        named || (self.free && !find_pans(text).is_empty())
    }
}

struct Search<'f> {
    faults: &'f mut Vec<FieldFault>,
}

impl Search<'_> {
    fn refuse(&mut self, at: &str) {
        self.faults.push(FieldFault { pointer: Cow::Owned(at.to_owned()), code: CODE });
    }

    fn walk(&mut self, raw: &str, at: &str, spot: Spot, told: Told, layers: usize) {
        if let Some(object) = Object::parse(raw) {
            for (name, raw) in object.iter() {
                let inner = pointer_to(at, name);
                let told = if spot.is_place_of(name) { told } else { told.of(name) };
                if told.free && !find_pans(name).is_empty() {
                    self.refuse(at);
                }
                self.walk(raw, &inner, spot.inside(name), told, layers);
            }
        } else if let Some(items) = json::items(raw) {
            items.into_iter().for_each(|raw| self.walk(raw, at, Spot::Elsewhere, told, layers));
        } else if let Some(text) = json::string(raw) {
            if told.is_card_data(&text) {
                self.refuse(at);
            } else if let Some(layers) = layers.checked_sub(1)
                && text.trim_start().starts_with(['{', '['])
                && json::check(&text, &|_| false).is_ok()
            {
                // Nobody points into a text.
                let mut inner = Vec::new();
                Search { faults: &mut inner }.walk(text.trim(), "", Spot::Elsewhere, told, layers);
                if !inner.is_empty() {
                    self.refuse(at);
                }
            }
        } else if !matches!(raw, "true" | "false" | "null") && told.is_card_data(raw) {
            self.refuse(at);
        }
    }
}

/// Whether a number of a known brand stands in a value, in a name or a text of it, however it is spelled there; in
/// texts of JSON too.
pub(super) fn holds_number(raw: &str) -> bool {
    fn inside(raw: &str, layers: usize) -> bool {
        if let Some(object) = Object::parse(raw) {
            object.iter().any(|(name, raw)| !find_pans(name).is_empty() || inside(raw, layers))
        } else if let Some(items) = json::items(raw) {
            items.into_iter().any(|raw| inside(raw, layers))
        } else if let Some(text) = json::string(raw) {
            let nested = text.trim_start().starts_with(['{', '[', '"']);
            !find_pans(&text).is_empty()
                || (nested && layers.checked_sub(1).is_some_and(|layers| inside(text.trim(), layers)))
        } else {
            !find_pans(raw).is_empty()
        }
    }
    inside(raw, LAYERS)
}

/// Whether a member holds this number, in its name or its value.
pub(super) fn holds(name: &str, raw: &str, pan: &Pan) -> bool {
    has_pan(name, pan) || has_pan_in(raw, pan)
}

/// The fault of a member that holds card data.
pub(super) fn fault_at(prefix: &str, name: &str) -> FieldFault {
    FieldFault { pointer: Cow::Owned(pointer_to(prefix, name)), code: CODE }
}

/// A name that is not known is a caller's text, and not repeated.
fn pointer_to(prefix: &str, name: &str) -> String {
    if vocabulary::is_known(name) { format!("{prefix}/{name}") } else { prefix.to_owned() }
}

/// Whether the number stands in a text, whatever stands between its digits.
fn has_pan(text: &str, pan: &Pan) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    SecretText::new(digits).expose().contains(pan.expose())
}

/// Whether a value holds this number.
pub(super) fn has_pan_in(raw: &str, pan: &Pan) -> bool {
    if let Some(object) = Object::parse(raw) {
        object.iter().any(|(name, raw)| holds(name, raw, pan))
    } else if let Some(items) = json::items(raw) {
        items.into_iter().any(|raw| has_pan_in(raw, pan))
    } else {
        json::string(raw).map_or_else(|| has_pan(raw, pan), |text| has_pan(&text, pan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &str, spot: Spot) -> Vec<String> {
        let mut faults = Vec::new();
        find_misplaced(body, spot, &mut faults);
        assert!(faults.iter().all(|fault| fault.code == CODE));
        faults.into_iter().map(|fault| fault.pointer.into_owned()).collect()
    }

    fn in_card(member: &str) -> String {
        format!(r#"{{"paymentMethod":{{"paymentMethodMetaData":{{{member}}}}}}}"#)
    }

    const CARD: &str = "/paymentMethod/paymentMethodMetaData";

    #[test]
    fn card_data_has_its_places() {
        for member in [
            r#""cardNo":"4111111111111111""#,
            r#""cvv":"850""#,
            r#""cardPasswordDigest":"12""#,
            r#""mpiData":{"cavv":"AAABBEg0VhI0VniQEjRWAAAAAAA="}"#,
        ] {
            assert_eq!(found(&in_card(member), Spot::PayRequest), Vec::<String>::new(), "{member}");
            // In a capture or a refund it has none.
            assert_eq!(found(&in_card(member), Spot::Elsewhere).len(), 1, "{member}");
        }
    }

    #[test]
    fn elsewhere_it_is_found_by_its_name() {
        for (body, at) in [
            (r#"{"cvv":"850"}"#.to_owned(), "/cvv"),
            (r#"{"cvv":850}"#.to_owned(), "/cvv"),
            (r#"{"cardNo":"9490220006611406"}"#.to_owned(), "/cardNo"),
            (r#"{"paymentMethod":{"cvv":"850"}}"#.to_owned(), "/paymentMethod/cvv"),
            (r#"{"order":{"x":{"security_code":" 850 "}}}"#.to_owned(), "/order"),
            (r#"{"order":{"goods":[{"cvc2":"８５０"}]}}"#.to_owned(), "/order/goods"),
            (r#"{"env":{"cvv":{"value":["850"]}}}"#.to_owned(), "/env/cvv/value"),
            (r#"{"metadata":"{\"cvv\":\"850\"}"}"#.to_owned(), "/metadata"),
            (r#"{"metadata":"[\"{\\\"cavv\\\":\\\"AAAB\\\"}\"]"}"#.to_owned(), "/metadata"),
            (r#"{"metadata":"{\"n\":4111111111111111}"}"#.to_owned(), "/metadata"),
            (in_card(r#""CVV":"850""#), CARD),
            (in_card(r#""securityCode":"8500""#), "/paymentMethod/paymentMethodMetaData/securityCode"),
            (in_card(r#""cavv":"AAABBEg0""#), "/paymentMethod/paymentMethodMetaData/cavv"),
            (
                in_card(r#""mpiData":{"caav":"AAABBEg0"}"#),
                "/paymentMethod/paymentMethodMetaData/mpiData/caav",
            ),
            (in_card(r#""mpiData":{"cvv":"850"}"#), "/paymentMethod/paymentMethodMetaData/mpiData/cvv"),
            // One step past the place is not the place.
            (in_card(r#""x":{"cvv":"850"}"#), "/paymentMethod/paymentMethodMetaData/cvv"),
            (
                in_card(r#""x":{"mpiData":{"cavv":"AAABBEg0"}}"#),
                "/paymentMethod/paymentMethodMetaData/mpiData/cavv",
            ),
        ] {
            assert_eq!(found(&body, Spot::PayRequest), [at], "{body}");
        }
    }

    #[test]
    fn what_only_sounds_like_it_is_left() {
        for body in [
            r#"{"cid":"cus-4711"}"#,
            r#"{"metadata":"{\"verificationCode\":\"571204\"}"}"#,
            r#"{"cardNo":"************1111"}"#,
            r#"{"order":{"cvvPassed":true,"cvvResult":"M","cvv":null}}"#,
            r#"{"paymentAmount":{"currency":"EUR","value":"850"}}"#,
            r#"{"cvv":""}"#,
            r#"{"metadata":"{not json, cvv}"}"#,
        ] {
            assert_eq!(found(body, Spot::PayRequest), Vec::<String>::new(), "{body}");
        }
    }

    #[test]
    fn no_member_of_antoms_is_taken_for_card_data_by_mistake() {
        let named = |name: &&&str| matches!(names::kind(name), Kind::Secret | Kind::Number);
        let named: Vec<&str> = vocabulary::NAMES.iter().filter(named).copied().collect();
        let expected = ["cardNo", "cvv", "cavv", "cardPasswordDigest", "caav", "cvc", "cvn", "securityCode"];
        assert_eq!(named, expected);
    }
}
