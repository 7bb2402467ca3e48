//! Sums of money as Antom writes them: ISO 4217 code and a whole number of the smallest unit, as text.

use std::fmt;

use iso_currency::Currency;

/// Longest `value` (the SDK's own limit; reference, section 6), in digits.
const MAX_DIGITS: usize = 16;

/// A positive sum of money. Its `value` has no sign, no dot and no leading zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount {
    currency: Currency,
    value: String,
}

/// Why an amount is refused. The names are those of the official SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountFault {
    /// Not three ASCII capitals.
    #[error("not a currency code")]
    InvalidCurrency,
    /// No currency of ISO 4217 that money can be moved in.
    #[error("unknown currency")]
    UnsupportedCurrency,
    /// Not a whole positive number without leading zeros.
    #[error("not an amount")]
    InvalidAmountFormat,
    /// More than 16 digits.
    #[error("too long")]
    ValueTooLong,
    /// The currency has a rule of its own (rupiah: whole rupiah only, so `value` ends in `00`).
    #[error("breaks a rule of the currency")]
    RuleViolation,
}

impl AmountFault {
    /// Whether the currency is to blame (and not the value).
    pub fn is_currency(self) -> bool {
        matches!(self, Self::InvalidCurrency | Self::UnsupportedCurrency)
    }
}

impl Amount {
    /// Reads `{"currency", "value"}` as it stands on the wire. Zero is refused: nothing can be paid,
    /// captured or refunded with it.
    pub fn from_wire(currency: &str, value: &str) -> Result<Self, AmountFault> {
        let currency = parse_currency(currency)?;
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) || value.starts_with('0') {
            return Err(AmountFault::InvalidAmountFormat);
        }
        Self::checked(currency, value.to_owned())
    }

    fn checked(currency: Currency, value: String) -> Result<Self, AmountFault> {
        if value.len() > MAX_DIGITS {
            return Err(AmountFault::ValueTooLong);
        }
        if currency == Currency::IDR && !value.ends_with("00") && value != "0" {
            return Err(AmountFault::RuleViolation);
        }
        Ok(Self { currency, value })
    }

    /// ISO 4217, three capitals.
    pub fn currency(&self) -> &'static str {
        self.currency.code()
    }

    /// The number of smallest units. At most 16 digits, so it always fits.
    pub fn minor_units(&self) -> i64 {
        self.value.parse().unwrap_or(i64::MAX)
    }

    /// Digits in the smallest unit.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = usize::from(exponent(self.currency).unwrap_or(0));
        let digits = format!("{:0>width$}", self.value, width = places + 1);
        let (whole, fraction) = digits.split_at(digits.len() - places);
        match fraction {
            "" => write!(f, "{} {whole}", self.currency()),
            fraction => write!(f, "{} {whole}.{fraction}", self.currency()),
        }
    }
}

fn parse_currency(code: &str) -> Result<Currency, AmountFault> {
    if code.len() != 3 || !code.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err(AmountFault::InvalidCurrency);
    }
    let currency = Currency::from_code(code).ok_or(AmountFault::UnsupportedCurrency)?;
    exponent(currency)?;
    Ok(currency)
}

/// Decimal places. A code without them (gold, test codes, no currency) is not money that can be moved.
fn exponent(currency: Currency) -> Result<u16, AmountFault> {
    currency.exponent().ok_or(AmountFault::UnsupportedCurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_amount_is_a_whole_positive_number() {
        assert!(Amount::from_wire("EUR", "30000").is_ok());
        for bad in ["", "0", "007", "-1", "1.5", "1e3", "+1", "٣", " 1", "1 "] {
            assert_eq!(Amount::from_wire("EUR", bad), Err(AmountFault::InvalidAmountFormat), "{bad:?}");
        }
        assert_eq!(Amount::from_wire("EUR", "12345678901234567"), Err(AmountFault::ValueTooLong));
        assert_eq!(Amount::from_wire("IDR", "10050"), Err(AmountFault::RuleViolation));
    }

    #[test]
    fn a_currency_is_one_of_iso_4217() {
        for (code, fault) in [
            ("eur", AmountFault::InvalidCurrency),
            ("EURO", AmountFault::InvalidCurrency),
            ("", AmountFault::InvalidCurrency),
            ("XXX", AmountFault::UnsupportedCurrency),
            ("XAU", AmountFault::UnsupportedCurrency),
            ("QQQ", AmountFault::UnsupportedCurrency),
        ] {
            assert_eq!(Amount::from_wire(code, "1"), Err(fault), "{code}");
        }
    }

    #[test]
    fn an_amount_is_shown_as_people_write_it() {
        let shown = |currency, value| Amount::from_wire(currency, value).expect("an amount").to_string();
        assert_eq!(shown("EUR", "30000"), "EUR 300.00");
        assert_eq!(shown("EUR", "1"), "EUR 0.01");
        assert_eq!(shown("JPY", "120"), "JPY 120");
        assert_eq!(shown("KWD", "1000"), "KWD 1.000");
    }

    /// What the official SDK makes of decimal numbers is taken from the wire as it stands, and shown as it
    /// was typed; what the SDK refuses for its currency or length is refused here by the same name. (Precision
    /// and decimal text are the SDK's helper's alone: the wire has neither.)
    #[test]
    fn what_the_sdk_makes_is_taken() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/antom/amounts.json")).expect("vectors");
        let cases = vectors["cases"].as_array().expect("cases");
        assert!(cases.len() >= 26);
        let mut taken = 0;
        for case in cases {
            let text = |name: &str| case[name].as_str().unwrap_or_default();
            let (currency, typed) = (text("currency"), text("amount"));
            match case["value"].as_str() {
                Some("0") => {
                    let made = Amount::from_wire(currency, "0");
                    assert_eq!(made, Err(AmountFault::InvalidAmountFormat), "{case}");
                }
                Some(value) => {
                    let amount = Amount::from_wire(currency, value).unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!((amount.currency(), amount.value()), (currency, value));
                    let shown = amount.to_string();
                    let shown = shown.strip_prefix(currency).map(str::trim).expect("the currency");
                    assert_eq!(ten_thousandths(shown), ten_thousandths(typed), "{case}: {shown}");
                    taken += 1;
                }
                None => {
                    let fault = text("error");
                    let smallest = typed.replace('.', "");
                    let (value, expected) = match fault {
                        "EXCESS_PRECISION" | "INVALID_AMOUNT_FORMAT" => (typed, "INVALID_AMOUNT_FORMAT"),
                        _ => (smallest.as_str(), fault),
                    };
                    match Amount::from_wire(currency, value) {
                        Err(fault) => assert_eq!(name_of(fault), expected, "{case}"),
                        // The SDK's table lacks it.
                        Ok(_) => assert_eq!((currency, value), ("KWD", "1000"), "{case}"),
                    }
                }
            }
        }
        assert!(taken >= 12, "{taken}");
    }

    /// A decimal number with at most four places, exactly.
    fn ten_thousandths(text: &str) -> u128 {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        format!("{whole}{fraction:0<4}").parse().expect("a number")
    }

    fn name_of(fault: AmountFault) -> &'static str {
        match fault {
            AmountFault::InvalidCurrency => "INVALID_CURRENCY",
            AmountFault::UnsupportedCurrency => "UNSUPPORTED_CURRENCY",
            AmountFault::InvalidAmountFormat => "INVALID_AMOUNT_FORMAT",
            AmountFault::ValueTooLong => "VALUE_TOO_LONG",
            AmountFault::RuleViolation => "RULE_VIOLATION",
        }
    }
}
