//! What an issuer's decline says about trying again. The schemes fine merchants who do not listen.

use crate::base::json::{self, Object};

/// How grave a decline is, from the mildest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decline {
    /// A later attempt may succeed.
    Soft,
    /// The issuer will never approve this card: do not try again.
    Never,
    /// The buyer has stopped such payments: the agreement is over.
    Revoked,
}

/// Visa response codes R0, R1 and R3: the buyer revoked the payment, all payments, or all preauthorised
/// payments (Visa Core Rules, stop payment service).
const REVOKED_CODES: &[&str] = &["R0", "R1", "R3"];
/// Mastercard merchant advice code 21: recurring payments were cancelled.
const REVOKED_ADVICE: &[&str] = &["21"];
/// Visa's decline category 1, "issuer will never approve": pick up, no such number, no such issuer, lost,
/// stolen, closed, not permitted (Visa rule on reattempts, May 2025 edition).
const NEVER_CODES: &[&str] = &["04", "07", "12", "14", "15", "41", "43", "46", "57"];
/// Mastercard merchant advice code 03: do not try again.
const NEVER_ADVICE: &[&str] = &["03"];

/// Antom's codes of a decline by the card's issuer or scheme (reference, section 12).
const ISSUER_CODES: &[&str] = &[
    "DO_NOT_HONOR",
    "ISSUER_REJECTS_TRANSACTION",
    "USER_BALANCE_NOT_ENOUGH",
    "USER_AMOUNT_EXCEED_LIMIT",
    "CARD_EXPIRED",
    "INVALID_EXPIRATION_DATE",
    "INVALID_CVV",
    "INVALID_CARD_NUMBER",
    "INVALID_CARD",
    "SUSPECTED_CARD",
    "AUTHENTICATION_REQUIRED",
];

impl Decline {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Soft, Self::Never, Self::Revoked];

    /// As the database spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Never => "never",
            Self::Revoked => "revoked",
        }
    }

    /// Reads a class.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|decline| decline.name() == text)
    }

    /// The class of a decline from the answer that told it: the issuer's raw code and the scheme's
    /// advice, wherever `paymentResultInfo` has them. `None` where the failure was not an issuer's word:
    /// a bad request or a missing contract is no attempt in the schemes' count.
    pub fn of_answer(answer: &str) -> Option<Self> {
        let object = Object::parse(answer)?;
        let inside = |name: &str| object.get(name).and_then(Object::parse);
        let (info, result) = (inside("paymentResultInfo"), inside("result"));
        let read = |object: Option<&Object<'_>>, name: &str| {
            let text = object.and_then(|object| object.get(name)).and_then(json::string);
            text.map(|text| text.trim().to_ascii_uppercase()).unwrap_or_default()
        };
        let (code, advice) =
            (read(info.as_ref(), "refusalCodeRaw"), read(info.as_ref(), "merchantAdviceCode"));
        if REVOKED_CODES.contains(&code.as_str()) || REVOKED_ADVICE.contains(&advice.as_str()) {
            return Some(Self::Revoked);
        }
        if NEVER_CODES.contains(&code.as_str()) || NEVER_ADVICE.contains(&advice.as_str()) {
            return Some(Self::Never);
        }
        // An inquiry's own result speaks of the inquiry.
        let of_payment = read(Some(&object), "paymentResultCode");
        let result = if of_payment.is_empty() { read(result.as_ref(), "resultCode") } else { of_payment };
        let by_issuer = !code.is_empty() || !advice.is_empty() || ISSUER_CODES.contains(&result.as_str());
        by_issuer.then_some(Self::Soft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schemes_words_are_heard() {
        let class = |code: &str, advice: &str| {
            Decline::of_answer(&format!(
                r#"{{"paymentResultInfo":{{"refusalCodeRaw":"{code}","merchantAdviceCode":"{advice}"}}}}"#
            ))
        };
        for (code, advice, expected) in [
            ("51", "", Decline::Soft),
            ("05", "02", Decline::Soft),
            ("05", "03", Decline::Never),
            ("05", "21", Decline::Revoked),
            ("r1", "", Decline::Revoked),
            ("R0", "03", Decline::Revoked),
            ("R3", "", Decline::Revoked),
            ("14", "", Decline::Never),
            ("41", "24", Decline::Never),
        ] {
            assert_eq!(class(code, advice), Some(expected), "{code} {advice}");
        }
        let result = |text: &str| Decline::of_answer(text);
        assert_eq!(result(r#"{"result":{"resultCode":"DO_NOT_HONOR"}}"#), Some(Decline::Soft));
        assert_eq!(result(r#"{"result":{"resultCode":"PARAM_ILLEGAL"}}"#), None);
        assert_eq!(
            result(r#"{"result":{"resultCode":"SUCCESS"},"paymentResultCode":"INVALID_CVV"}"#),
            Some(Decline::Soft)
        );
        assert_eq!((result("{}"), result("x")), (None, None));
        assert!(Decline::Revoked > Decline::Never && Decline::Never > Decline::Soft);
    }
}
