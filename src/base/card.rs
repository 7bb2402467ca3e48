//! Card data, parsed once: the PAN, its brand, what of it may be shown, and its expiry.

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::clock::Millis;

/// Fewest digits of a PAN (ISO/IEC 7812-1 allows up to 19; the contract takes 12 and more).
const MIN_DIGITS: usize = 12;
/// Most digits of a PAN (ISO/IEC 7812-1).
const MAX_DIGITS: usize = 19;

/// A primary account number: 12 to 19 ASCII digits, Luhn-valid, of a length that its brand allows.
///
/// No `Debug`, `Display`, `Clone` or `Serialize`; wiped on drop; compared in constant time.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Pan {
    digits: [u8; MAX_DIGITS],
    len: usize,
}

/// Why a text is not a PAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PanFault {
    /// A character other than an ASCII digit, a space or a hyphen.
    #[error("not a digit")]
    NotDigits,
    /// Fewer than 12 or more than 19 digits, or a length that the brand does not issue.
    #[error("wrong length")]
    Length,
    /// The check digit is wrong (ISO/IEC 7812-1 annex B).
    #[error("wrong check digit")]
    Luhn,
}

impl Pan {
    /// Reads a PAN as a person writes it: spaces and hyphens between digits are dropped, anything else
    /// that is not an ASCII digit is refused.
    pub fn parse(text: &str) -> Result<Self, PanFault> {
        let mut pan = Self { digits: [0; MAX_DIGITS], len: 0 };
        for byte in text.bytes() {
            match byte {
                b'0'..=b'9' => {
                    *pan.digits.get_mut(pan.len).ok_or(PanFault::Length)? = byte;
                    pan.len += 1;
                }
                b' ' | b'-' if pan.len > 0 => {}
                _ => return Err(PanFault::NotDigits),
            }
        }
        if !text.ends_with(|c: char| c.is_ascii_digit()) && pan.len > 0 {
            return Err(PanFault::NotDigits);
        }
        if pan.len < MIN_DIGITS || !Brand::of(pan.bytes()).allows_length(pan.len) {
            return Err(PanFault::Length);
        }
        if !luhn(pan.bytes()) {
            return Err(PanFault::Luhn);
        }
        Ok(pan)
    }

    /// Takes back a number that the vault itself sealed: digits and length only, so that a table of
    /// brands that grows stricter never locks a stored card out.
    pub fn from_stored(text: &str) -> Option<Self> {
        let mut pan = Self { digits: [0; MAX_DIGITS], len: text.len() };
        let good =
            (MIN_DIGITS..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if !good {
            pan.len = 0;
            return None;
        }
        for (place, byte) in pan.digits.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        Some(pan)
    }

    fn bytes(&self) -> &[u8] {
        &self.digits[..self.len]
    }

    /// The digits. Named so that each use can be found.
    pub fn expose(&self) -> &str {
        // Only ASCII digits are ever stored, so this is always text.
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    /// The brand whose range the number is in.
    pub fn brand(&self) -> Brand {
        Brand::of(self.bytes())
    }

    /// What may be shown of the number (PCI DSS 3.4.1: at most BIN and last four).
    pub fn bin(&self, format: BinFormat) -> String {
        let digits = match format {
            BinFormat::EightOfSixteen if self.len == 16 => 8,
            _ => 6,
        };
        self.expose().chars().take(digits).collect()
    }

    /// The last four digits.
    pub fn last4(&self) -> String {
        self.expose().chars().skip(self.len - 4).collect()
    }
}

impl PartialEq for Pan {
    fn eq(&self, other: &Self) -> bool {
        (self.digits.ct_eq(&other.digits) & (self.len as u64).ct_eq(&(other.len as u64))).into()
    }
}

/// How much of the BIN a deployment shows. One format for each deployment: several truncations of one
/// PAN can be put together again (PCI DSS 3.5.1, applicability notes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BinFormat {
    /// The first six digits of every PAN.
    #[default]
    Six,
    /// The first eight digits of 16-digit PANs, six of all others.
    EightOfSixteen,
}

/// ISO/IEC 7812-1 annex B.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, byte)| {
            let digit = u32::from(byte - b'0');
            match (place % 2, digit) {
                (0, digit) => digit,
                (_, digit) if digit > 4 => digit * 2 - 9,
                (_, digit) => digit * 2,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Card brands by issuer range. Names are Antom's (`paymentResultInfo.cardBrand`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brand {
    /// Visa.
    Visa,
    /// Mastercard.
    Mastercard,
    /// American Express.
    Amex,
    /// Discover.
    Discover,
    /// Diners Club.
    Diners,
    /// JCB.
    Jcb,
    /// China UnionPay.
    Cup,
    /// Maestro.
    Maestro,
    /// Elo.
    Elo,
    /// Hipercard.
    Hipercard,
    /// Troy.
    Troy,
    /// Mir.
    Mir,
    /// No range known here; local schemes are taken all the same.
    Unknown,
}

/// Issuer ranges by leading digits, first match wins; lengths that the scheme issues.
///
/// Source: the schemes' published ranges as collected in ISO/IEC 7812 issuer listings ("Payment card
/// number", Wikipedia, table of issuer identification numbers) and in braintree/credit-card-type (MIT).
/// No crate for this is kept up well enough: the ones there are copy the number into strings or
/// regular expressions.
const RANGES: &[(&str, &str, Brand, &[usize])] = &[
    // Elo and Hipercard lie inside ranges of Visa, Discover and Maestro, so they come first.
    ("401178", "401179", Brand::Elo, &[16]),
    ("431274", "431274", Brand::Elo, &[16]),
    ("438935", "438935", Brand::Elo, &[16]),
    ("451416", "451416", Brand::Elo, &[16]),
    ("457393", "457393", Brand::Elo, &[16]),
    ("457631", "457632", Brand::Elo, &[16]),
    ("504175", "504175", Brand::Elo, &[16]),
    ("506699", "506778", Brand::Elo, &[16]),
    ("509000", "509999", Brand::Elo, &[16]),
    ("627780", "627780", Brand::Elo, &[16]),
    ("636297", "636297", Brand::Elo, &[16]),
    ("636368", "636368", Brand::Elo, &[16]),
    ("650031", "650033", Brand::Elo, &[16]),
    ("650035", "650051", Brand::Elo, &[16]),
    ("650405", "650439", Brand::Elo, &[16]),
    ("650485", "650538", Brand::Elo, &[16]),
    ("650541", "650598", Brand::Elo, &[16]),
    ("650700", "650718", Brand::Elo, &[16]),
    ("650720", "650727", Brand::Elo, &[16]),
    ("650901", "650978", Brand::Elo, &[16]),
    ("651652", "651679", Brand::Elo, &[16]),
    ("655000", "655019", Brand::Elo, &[16]),
    ("655021", "655058", Brand::Elo, &[16]),
    ("606282", "606282", Brand::Hipercard, &[13, 16, 19]),
    ("9792", "9792", Brand::Troy, &[16]),
    ("2200", "2204", Brand::Mir, &[16, 17, 18, 19]),
    ("34", "34", Brand::Amex, &[15]),
    ("37", "37", Brand::Amex, &[15]),
    ("300", "305", Brand::Diners, &[14, 16, 19]),
    ("3095", "3095", Brand::Diners, &[14, 16, 19]),
    ("36", "36", Brand::Diners, &[14, 15, 16, 17, 18, 19]),
    ("38", "39", Brand::Diners, &[14, 16, 19]),
    ("3528", "3589", Brand::Jcb, &[16, 17, 18, 19]),
    ("4", "4", Brand::Visa, &[13, 16, 18, 19]),
    ("2221", "2720", Brand::Mastercard, &[16]),
    ("51", "55", Brand::Mastercard, &[16]),
    ("6011", "6011", Brand::Discover, &[16, 17, 18, 19]),
    ("644", "649", Brand::Discover, &[16, 17, 18, 19]),
    ("65", "65", Brand::Discover, &[16, 17, 18, 19]),
    ("62", "62", Brand::Cup, &[14, 15, 16, 17, 18, 19]),
    ("81", "81", Brand::Cup, &[14, 15, 16, 17, 18, 19]),
    ("50", "50", Brand::Maestro, &[12, 13, 14, 15, 16, 17, 18, 19]),
    ("56", "58", Brand::Maestro, &[12, 13, 14, 15, 16, 17, 18, 19]),
    ("6", "6", Brand::Maestro, &[12, 13, 14, 15, 16, 17, 18, 19]),
];

impl Brand {
    fn of(digits: &[u8]) -> Self {
        Self::range(digits).map_or(Self::Unknown, |range| range.2)
    }

    fn range(digits: &[u8]) -> Option<&'static (&'static str, &'static str, Brand, &'static [usize])> {
        RANGES.iter().find(|(low, high, ..)| {
            digits.get(..low.len()).is_some_and(|lead| low.as_bytes() <= lead && lead <= high.as_bytes())
        })
    }

    fn allows_length(self, len: usize) -> bool {
        // A brand's lengths are the same in all of its ranges, but for Diners, whose union is taken.
        self == Self::Unknown
            || RANGES.iter().any(|(_, _, brand, lengths)| *brand == self && lengths.contains(&len))
    }

    /// Antom's name of the brand; `UNKNOWN` where no range is known.
    pub fn name(self) -> &'static str {
        match self {
            Self::Visa => "VISA",
            Self::Mastercard => "MASTERCARD",
            Self::Amex => "AMEX",
            Self::Discover => "DISCOVER",
            Self::Diners => "DINERS",
            Self::Jcb => "JCB",
            Self::Cup => "CUP",
            Self::Maestro => "MAESTRO",
            Self::Elo => "ELO",
            Self::Hipercard => "HIPERCARD",
            Self::Troy => "TROY",
            Self::Mir => "MIR",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// Finds Luhn-valid numbers of a known brand, and gives their byte ranges. Used to keep card numbers out
/// of fields that are not for them, and to scrub what the gateway sends.
///
/// A number may stand in one piece, in the groups in which cards print it with whatever marks between
/// them, or in any groups with single spaces or hyphens. What stands before or behind it (an expiry, a
/// CVV, a date) does not hide it. A piece longer than 19 digits, or one that only contains a valid
/// number, is an id of something else: Antom's own ids are 30 digits and more, and one in ten numbers
/// passes the Luhn check. For the same reason a telephone number with its `+` is none.
pub fn find_pans(text: &str) -> Vec<std::ops::Range<usize>> {
    let groups = digit_groups(text);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((first, rest)) = groups.get(at..).and_then(<[Group]>::split_first) {
        let taken = groups_of_pan(text, first, rest);
        if let Some(last) = taken.checked_sub(1).and_then(|more| groups.get(at + more)) {
            let range = first.range.start..last.range.end;
            if !is_telephone(text, &range) {
                found.push(range);
            }
        }
        at += taken.max(1);
    }
    found
}

/// Digits without a gap, and what parts them from the group before.
struct Group {
    range: std::ops::Range<usize>,
    gap: Gap,
}

/// What stands between two groups of digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    /// One space or hyphen, as people write a number.
    Usual,
    /// At most three characters, none of them a letter or digit.
    Marks,
    /// Anything else.
    Apart,
}

/// Groups in which numbers are printed, tried in this order.
const PRINTED: &[&[usize]] =
    &[&[4, 4, 4, 4, 3], &[4, 4, 4, 4], &[4, 6, 5], &[4, 6, 4], &[4, 4, 5], &[8, 8], &[6, 13]];

fn digit_groups(text: &str) -> Vec<Group> {
    let bytes = text.as_bytes();
    let mut groups: Vec<Group> = Vec::new();
    let mut at = 0;
    while let Some(more) = bytes.iter().skip(at).position(u8::is_ascii_digit) {
        let start = at + more;
        let end = start + bytes.iter().skip(start).take_while(|byte| byte.is_ascii_digit()).count();
        let gap = match groups.last() {
            Some(_) => gap_of(text.get(at..start).unwrap_or_default()),
            None => Gap::Apart,
        };
        groups.push(Group { range: start..end, gap });
        at = end;
    }
    groups
}

fn gap_of(between: &str) -> Gap {
    match between {
        " " | "-" => Gap::Usual,
        _ if between.chars().any(char::is_alphanumeric) || between.chars().count() > 3 => Gap::Apart,
        _ => Gap::Marks,
    }
}

/// How many groups from `first` on are a card number; 0 where none begins here.
fn groups_of_pan(text: &str, first: &Group, rest: &[Group]) -> usize {
    let is_pan = |more: &[Group]| {
        let all = std::iter::once(first).chain(more).filter_map(|group| text.get(group.range.clone()));
        is_branded(all.collect::<String>().as_bytes())
    };
    // Only from a run's first group: a long run is read once.
    if first.gap != Gap::Usual {
        let run = rest.iter().take_while(|group| group.gap == Gap::Usual).count();
        let run = rest.get(..run).unwrap_or_default();
        if (run.is_empty() || is_card_like(first, run)) && is_pan(run) {
            return run.len() + 1;
        }
    }
    for printed in PRINTED {
        let more = rest.get(..printed.len() - 1).unwrap_or_default();
        let lengths = std::iter::once(first).chain(more).map(|group| group.range.len());
        let together = more.iter().all(|group| group.gap <= Gap::Marks);
        if together && lengths.eq(printed.iter().copied()) && is_pan(more) {
            return printed.len();
        }
    }
    usize::from(is_pan(&[]))
}

/// Whether a run of groups may be a card number for its looks. Short ones are telephone numbers and
/// dates, unless they stand in fours.
fn is_card_like(first: &Group, run: &[Group]) -> bool {
    let digits: usize = first.range.len() + run.iter().map(|group| group.range.len()).sum::<usize>();
    let fours = std::iter::once(first).chain(run).all(|group| group.range.len() == 4);
    digits >= 14 || fours
}

/// Digits in one piece that are a valid number of a known brand.
fn is_branded(digits: &[u8]) -> bool {
    let brand = Brand::of(digits);
    (MIN_DIGITS..=MAX_DIGITS).contains(&digits.len())
        && brand != Brand::Unknown
        && brand.allows_length(digits.len())
        && luhn(digits)
}

/// A number in E.164's spelling: a `+` that nothing stands right before, and no more digits than
/// countries use. (A form's `+` is a space, but stands behind a word.)
fn is_telephone(text: &str, range: &std::ops::Range<usize>) -> bool {
    let digits = text.get(range.clone()).unwrap_or_default().bytes().filter(u8::is_ascii_digit).count();
    let before = text.get(..range.start).unwrap_or_default().strip_suffix('+');
    digits <= 14 && before.is_some_and(|before| !before.ends_with(char::is_alphanumeric))
}

/// When a card ends: two-digit month and year as printed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    month: u8,
    year: u8,
}

/// Why an expiry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExpiryFault {
    /// Not two ASCII digits, or a month outside `01` to `12`.
    #[error("not a two-digit month or year")]
    Format,
    /// The card's last month is over everywhere on earth.
    #[error("expired")]
    Expired,
}

impl Expiry {
    /// Reads a month (`01` to `12`).
    pub fn parse_month(text: &str) -> Result<u8, ExpiryFault> {
        two_digits(text).filter(|month| (1..=12).contains(month)).ok_or(ExpiryFault::Format)
    }

    /// Reads a year (`00` to `99`, meaning 2000 to 2099).
    pub fn parse_year(text: &str) -> Result<u8, ExpiryFault> {
        two_digits(text).ok_or(ExpiryFault::Format)
    }

    /// Puts the two together.
    pub fn new(month: u8, year: u8) -> Self {
        Self { month, year }
    }

    /// Refuses a card whose last month is over, in the last time zone on earth.
    pub fn check(self, now: Millis) -> Result<(), ExpiryFault> {
        let (year, month) = now.last_year_month();
        if (2000 + i32::from(self.year), self.month) < (year, month) {
            return Err(ExpiryFault::Expired);
        }
        Ok(())
    }

    /// Two digits, as sent and shown.
    pub fn month_text(self) -> String {
        format!("{:02}", self.month)
    }

    /// Two digits, as sent and shown.
    pub fn year_text(self) -> String {
        format!("{:02}", self.year)
    }
}

fn two_digits(text: &str) -> Option<u8> {
    let good = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
    good.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Option<PanFault> {
        Pan::parse(text).err()
    }

    #[test]
    fn well_known_test_numbers_are_taken_with_their_brand() {
        for (number, brand) in [
            ("4117347806156383", Brand::Visa),
            ("4054695723100768", Brand::Visa),
            ("5162774114974622", Brand::Mastercard),
            ("9490220011669217", Brand::Unknown),
            ("378282246310005", Brand::Amex),
            ("6011111111111117", Brand::Discover),
            ("30569309025904", Brand::Diners),
            ("3530111333300000", Brand::Jcb),
            ("6200000000000005", Brand::Cup),
            ("2223003122003222", Brand::Mastercard),
            ("5066991111111118", Brand::Elo),
            ("6759649826438453", Brand::Maestro),
        ] {
            let pan = Pan::parse(number).unwrap_or_else(|fault| panic!("{number}: {fault}"));
            assert_eq!(pan.brand(), brand, "{number}");
        }
    }

    #[test]
    fn a_number_is_read_as_people_write_it() {
        for text in ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111"] {
            assert_eq!(Pan::parse(text).expect("a PAN").expose(), "4111111111111111");
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for (text, expected) in [
            ("", PanFault::Length),
            ("41111111111", PanFault::Length),
            ("41111111111111111111", PanFault::Length),
            ("41111111111111", PanFault::Length),
            ("4111111111111112", PanFault::Luhn),
            ("٤١١١١١١١١١١١١١١١", PanFault::NotDigits),
            ("４１１１１１１１１１１１１１１１", PanFault::NotDigits),
            ("4111111111111111\0", PanFault::NotDigits),
            ("\u{a0}4111111111111111", PanFault::NotDigits),
            (" 4111111111111111", PanFault::NotDigits),
            ("4111111111111111 ", PanFault::NotDigits),
            ("4111.1111.1111.1111", PanFault::NotDigits),
            ("+4111111111111111", PanFault::NotDigits),
        ] {
            assert_eq!(fault(text), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn a_stored_number_comes_back_whatever_the_brands_say_now() {
        assert_eq!(Pan::from_stored("4111111111111112").expect("a PAN").expose(), "4111111111111112");
        for bad in ["", "41111111111", "41111111111111111111", "4111 1111 1111 1111"] {
            assert!(Pan::from_stored(bad).is_none());
        }
    }

    #[test]
    fn only_bin_and_last_four_are_shown() {
        let pan = Pan::parse("4111111111111111").expect("a PAN");
        assert_eq!((pan.bin(BinFormat::Six), pan.last4()), ("411111".into(), "1111".into()));
        assert_eq!(pan.bin(BinFormat::EightOfSixteen), "41111111");
        let amex = Pan::parse("378282246310005").expect("a PAN");
        assert_eq!(amex.bin(BinFormat::EightOfSixteen), "378282");
    }

    #[test]
    fn luhn_agrees_with_a_slow_reference() {
        // The textbook way: double every second digit from the right, add the digits of the products.
        let reference = |text: &str| {
            let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
            let sum: u32 = digits
                .iter()
                .rev()
                .enumerate()
                .flat_map(|(i, d)| if i % 2 == 1 { vec![d * 2 / 10, d * 2 % 10] } else { vec![*d] })
                .sum();
            sum.is_multiple_of(10)
        };
        for number in 0..20_000_u64 {
            let text = format!("94{:014}", number * 7_919);
            assert_eq!(luhn(text.as_bytes()), reference(&text), "{text}");
        }
    }

    #[test]
    fn card_numbers_are_found_in_text_and_long_ids_are_not() {
        let text = "a 4111 1111-1111 1111, b 20211112194010800100188570271832381 c 4111111111111112";
        let found = find_pans(text);
        assert_eq!(found.iter().map(|r| &text[r.clone()]).collect::<Vec<_>>(), ["4111 1111-1111 1111"]);
        assert!(find_pans("1772366400123 2026-03-01T12:00:00 é4é").is_empty());
        assert_eq!(find_pans("x4111111111111111x").len(), 1);
    }

    #[test]
    fn what_stands_beside_a_card_number_does_not_hide_it() {
        for (text, expected) in [
            ("4111111111111111 12/29", "4111111111111111"),
            ("4111 1111 1111 1111 12/29 123", "4111 1111 1111 1111"),
            ("2026-11-24 4111111111111111", "4111111111111111"),
            ("12 4111-1111-1111-1111", "4111-1111-1111-1111"),
            ("378282246310005 1234", "378282246310005"),
            ("3782 822463 10005 0129", "3782 822463 10005"),
            ("4111.1111.1111.1111", "4111.1111.1111.1111"),
            ("4111  1111  1111  1111", "4111  1111  1111  1111"),
            ("4111\u{a0}1111\u{a0}1111\u{a0}1111", "4111\u{a0}1111\u{a0}1111\u{a0}1111"),
            ("4111/1111/1111/1111", "4111/1111/1111/1111"),
            ("4111 - 1111 - 1111 - 1111", "4111 - 1111 - 1111 - 1111"),
            ("41 11 11 11 11 11 11 11", "41 11 11 11 11 11 11 11"),
            ("card+4111111111111111", "4111111111111111"),
            ("6304 0000 0000", "6304 0000 0000"),
        ] {
            let found = find_pans(text);
            assert_eq!(found.iter().map(|r| &text[r.clone()]).collect::<Vec<_>>(), [expected], "{text}");
        }
    }

    #[test]
    fn telephone_numbers_dates_and_sums_are_no_card_numbers() {
        // Each of these with a card's digits and a right check digit, were it written in one piece.
        for text in ["+639171234565", "+63 917 123 4565", "63 917 123 4565", "tel. (+639171234565)"] {
            assert!(is_branded(b"639171234565"));
            assert!(find_pans(text).is_empty(), "{text}");
        }
        for text in ["5.019717010103742", "5,019,717,010,103,742", "50197-17010-10"] {
            assert!(find_pans(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_card_is_good_until_its_last_month_is_over_everywhere() {
        let march = Millis(1_772_366_400_000); // 2026-03-01T12:00:00Z
        assert_eq!(Expiry::new(3, 26).check(march), Ok(()));
        assert_eq!(Expiry::new(2, 26).check(march), Err(ExpiryFault::Expired));
        assert_eq!(Expiry::new(2, 26).check(Millis(march.0 - 1)), Ok(()));
        assert_eq!(Expiry::new(1, 99).check(march), Ok(()));
    }

    #[test]
    fn an_expiry_is_two_ascii_digits() {
        assert_eq!(Expiry::parse_month("12"), Ok(12));
        for bad in ["13", "00", "1", "012", "1a", "١٢", "+1", " 1"] {
            assert_eq!(Expiry::parse_month(bad), Err(ExpiryFault::Format), "{bad:?}");
        }
        assert_eq!(Expiry::parse_year("2029"), Err(ExpiryFault::Format));
    }
}
