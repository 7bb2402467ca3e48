//! Strict JSON over untouched text.
//!
//! A request is checked once as a whole (one value, unique member names, bounded depth, no NUL), then
//! read member by member as raw slices, so that what the vault does not own can be passed on byte for
//! byte. The lexing is serde_json's; its error texts are never used, because they repeat the value that
//! they choke on.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::limits::JSON_DEPTH;

/// Why a text is refused as a whole, and where (an RFC 6901 pointer as far down as every name is one
/// that the caller of [`check`] says is known).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonFault {
    /// What is wrong.
    pub kind: JsonFaultKind,
    /// Where; empty is the whole document.
    pub pointer: String,
}

/// What can be wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonFaultKind {
    /// Not one JSON value (RFC 8259).
    Syntax,
    /// An object names a member twice.
    Duplicate,
    /// Nested deeper than [`JSON_DEPTH`].
    Depth,
    /// A string holds U+0000.
    Nul,
}

impl JsonFaultKind {
    /// Its stable code, listed in `docs/errors.md`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Syntax => "malformed_json",
            Self::Duplicate => "duplicate_member",
            Self::Depth => "too_deep",
            Self::Nul => "nul_character",
        }
    }
}

/// Checks a whole text. `known` says which member names may be repeated in a pointer.
pub fn check(text: &str, known: &dyn Fn(&str) -> bool) -> Result<(), JsonFault> {
    let trail = RefCell::new(Trail { known, steps: Vec::new(), fault: None });
    let mut reader = serde_json::Deserializer::from_str(text);
    let walked = Walk { trail: &trail, depth: 0 }.deserialize(&mut reader).and_then(|()| reader.end());
    let trail = trail.into_inner();
    match (walked, trail.fault) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(fault)) => Err(fault),
        (Err(_), None) => Err(JsonFault { kind: JsonFaultKind::Syntax, pointer: String::new() }),
    }
}

struct Trail<'k> {
    known: &'k dyn Fn(&str) -> bool,
    steps: Vec<Step>,
    fault: Option<JsonFault>,
}

enum Step {
    Name(String),
    Index(usize),
    Unknown,
}

impl Trail<'_> {
    fn fail(&mut self, kind: JsonFaultKind) {
        let mut pointer = String::new();
        for step in &self.steps {
            match step {
                Step::Name(name) => pointer.push_str(&format!("/{name}")),
                Step::Index(index) => pointer.push_str(&format!("/{index}")),
                Step::Unknown => break,
            }
        }
        self.fault = Some(JsonFault { kind, pointer });
    }

    fn step(&self, name: &str) -> Step {
        if (self.known)(name) { Step::Name(name.to_owned()) } else { Step::Unknown }
    }
}

struct Walk<'t, 'k> {
    trail: &'t RefCell<Trail<'k>>,
    depth: usize,
}

impl Walk<'_, '_> {
    fn refuse<E: serde::de::Error>(&self, kind: JsonFaultKind) -> E {
        self.trail.borrow_mut().fail(kind);
        E::custom("refused")
    }

    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= JSON_DEPTH {
            return Err(self.refuse(JsonFaultKind::Depth));
        }
        Ok(Self { trail: self.trail, depth: self.depth + 1 })
    }

    fn again(&self) -> Self {
        Self { trail: self.trail, depth: self.depth }
    }

    fn text<E: serde::de::Error>(&self, text: &str) -> Result<(), E> {
        if text.contains('\0') { Err(self.refuse(JsonFaultKind::Nul)) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        for index in 0.. {
            self.trail.borrow_mut().steps.push(Step::Index(index));
            let more = items.next_element_seed(inner.again())?;
            self.trail.borrow_mut().steps.pop();
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            let step = self.trail.borrow().step(&name);
            self.trail.borrow_mut().steps.push(step);
            self.text::<A::Error>(&name)?;
            if !seen.insert(name) {
                return Err(self.refuse(JsonFaultKind::Duplicate));
            }
            members.next_value_seed(inner.again())?;
            self.trail.borrow_mut().steps.pop();
        }
        Ok(())
    }
}

/// As many names are compared one with another, which is quicker than a table of them; a body has room for thousands.
const FEW: usize = 32;

/// The members of one object, in their order, as raw slices of the text that they were read from.
pub struct Object<'a> {
    members: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> Object<'a> {
    /// Reads `raw` as an object; `None` where it is another kind of value, or names a member twice.
    pub fn parse(raw: &'a str) -> Option<Self> {
        let members = serde_json::from_str::<Members<'a>>(begins(raw, b'{')?).ok()?;
        Some(Self { members: members.0 })
    }

    /// A member's raw value.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.members.iter().find(|(member, _)| member == name).map(|(_, raw)| *raw)
    }

    /// All members in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.members.iter().map(|(name, raw)| (name.as_ref(), *raw))
    }
}

struct Members<'a>(Vec<(Cow<'a, str>, &'a str)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(Cow<'de, str>, &'de str)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Self::Value = Vec::new();
                let mut names = HashSet::new();
                while let Some((Name(name), raw)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    if members.len() == FEW {
                        names.extend(members.iter().map(|(member, _)| member.clone()));
                    }
                    let is_new = match members.len() {
                        0..FEW => members.iter().all(|(member, _)| *member != name),
                        _ => names.insert(name.clone()),
                    };
                    if !is_new {
                        return Err(A::Error::custom("duplicate"));
                    }
                    members.push((name, raw.get()));
                }
                Ok(members)
            }
        }
        reader.deserialize_map(Collect).map(Members)
    }
}

#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The items of a JSON array as raw slices; `None` where `raw` is another kind of value.
pub fn items(raw: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(begins(raw, b'[')?).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// The text of a JSON string; `None` where `raw` is another kind of value.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Name<'_>>(begins(raw, b'"')?).ok().map(|name| name.0)
}

/// `raw`, where its value begins like this: values are often tried as one kind after another, and an error
/// costs more than the look.
fn begins(raw: &str, with: u8) -> Option<&str> {
    let first = raw.bytes().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    (first == Some(with)).then_some(raw)
}

/// The value of a JSON boolean; `None` where `raw` is another kind of value.
pub fn boolean(raw: &str) -> Option<bool> {
    match raw {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// Appends `text` as a JSON string.
pub fn push_string(out: &mut String, text: &str) {
    out.reserve(text.len() + 2);
    out.push('"');
    // What needs no escape, which is nearly everything, is appended in one piece.
    let mut rest = text;
    while let Some(place) = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        let (plain, special) = rest.split_at(place);
        out.push_str(plain);
        let mut special = special.chars();
        match special.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(control) => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            None => {}
        }
        rest = special.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

/// Builds an object text member by member.
pub struct ObjectWriter {
    text: String,
}

impl Default for ObjectWriter {
    fn default() -> Self {
        // Most objects have room in it, so that few are moved as they grow.
        let mut text = String::with_capacity(256);
        text.push('{');
        Self { text }
    }
}

impl ObjectWriter {
    fn name(&mut self, name: &str) -> &mut String {
        if self.text.len() > 1 {
            self.text.push(',');
        }
        push_string(&mut self.text, name);
        self.text.push(':');
        &mut self.text
    }

    /// A member whose value is already JSON.
    pub fn raw(&mut self, name: &str, raw: &str) -> &mut Self {
        self.name(name).push_str(raw);
        self
    }

    /// A string member.
    pub fn string(&mut self, name: &str, text: &str) -> &mut Self {
        push_string(self.name(name), text);
        self
    }

    /// A string member, or `null`.
    pub fn string_or_null(&mut self, name: &str, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.string(name, text),
            None => self.raw(name, "null"),
        }
    }

    /// A string member where there is a text, nothing where there is none.
    pub fn string_if(&mut self, name: &str, text: Option<&str>) -> &mut Self {
        if let Some(text) = text {
            self.string(name, text);
        }
        self
    }

    /// The finished text.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.text);
        text.push('}');
        text
    }
}

/// Appends `raw` in its one canonical form: no white space, members sorted by name, strings with the
/// fewest escapes, numbers as they stand. `skip` leaves members out by their path of names.
pub fn push_canonical(out: &mut String, raw: &str, path: &mut Vec<String>, skip: &dyn Fn(&[String]) -> bool) {
    let raw = raw.trim();
    if let Some(object) = Object::parse(raw) {
        let mut members: Vec<_> = object.iter().collect();
        members.sort_by(|a, b| a.0.cmp(b.0));
        out.push('{');
        let mut first = true;
        for (name, value) in members {
            path.push(name.to_owned());
            if !skip(path) {
                if !first {
                    out.push(',');
                }
                first = false;
                push_string(out, name);
                out.push(':');
                push_canonical(out, value, path, skip);
            }
            path.pop();
        }
        out.push('}');
    } else if let Some(items) = items(raw) {
        out.push('[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            push_canonical(out, item, path, skip);
        }
        out.push(']');
    } else if let Some(text) = string(raw) {
        push_string(out, &text);
    } else {
        out.push_str(raw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Option<(JsonFaultKind, String)> {
        check(text, &|name| name.starts_with("known")).err().map(|f| (f.kind, f.pointer))
    }

    #[test]
    fn a_text_is_one_strict_value() {
        assert_eq!(fault(r#"{"a":[1,2.5,true,null,"x"],"b":{}}"#), None);
        for bad in
            ["", "{", "{}x", "{\"a\":1,}", "[1,]", "nul", "{a:1}", "\"\u{1}\"", "01", "\"\\ud800\"", "1e999"]
        {
            assert_eq!(fault(bad).map(|f| f.0), Some(JsonFaultKind::Syntax), "{bad:?}");
        }
    }

    #[test]
    fn names_are_unique_however_they_are_spelled() {
        assert_eq!(fault(r#"{"known":1,"known":2}"#), Some((JsonFaultKind::Duplicate, "/known".into())));
        assert_eq!(fault(r#"{"a":1,"\u0061":2}"#), Some((JsonFaultKind::Duplicate, String::new())));
        assert_eq!(
            fault(r#"{"known1":[0,{"known2":{"x":{"known3":1,"known3":1}}}]}"#),
            Some((JsonFaultKind::Duplicate, "/known1/1/known2".into()))
        );
        assert!(Object::parse(r#"{"a":1,"\u0061":2}"#).is_none());
    }

    /// Names are compared one by one in small objects and by a table in large ones: neither misses one.
    #[test]
    fn a_name_that_comes_again_is_found_wherever_it_is() {
        let object = |names: &[String]| {
            let members: Vec<String> = names.iter().map(|name| format!("\"{name}\":1")).collect();
            format!("{{{}}}", members.join(","))
        };
        let names = |count: usize| (0..count).map(|n| format!("n{n}")).collect::<Vec<_>>();
        for count in [1, 2, FEW - 1, FEW, FEW + 1, FEW + 2, 8000] {
            let good = object(&names(count));
            let read = Object::parse(&good).unwrap_or_else(|| panic!("{count}"));
            assert_eq!(read.iter().count(), count);
            assert_eq!(read.get(&format!("n{}", count - 1)), Some("1"));
            for again in [0, count / 2, count - 1] {
                let mut twice = names(count);
                twice.push(format!("n{again}"));
                assert!(Object::parse(&object(&twice)).is_none(), "{again} of {count}");
                // The same name, spelled otherwise.
                if let Some(last) = twice.last_mut() {
                    *last = last.replacen('n', "\\u006e", 1);
                }
                assert!(Object::parse(&object(&twice)).is_none(), "{again} of {count}, escaped");
            }
        }
    }

    #[test]
    fn nesting_is_bounded_and_nul_is_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(fault(&nested(JSON_DEPTH)), None);
        assert_eq!(fault(&nested(JSON_DEPTH + 1)).map(|f| f.0), Some(JsonFaultKind::Depth));
        assert!(fault(&nested(100_000)).is_some());
        assert_eq!(fault(r#"{"known":"a\u0000"}"#), Some((JsonFaultKind::Nul, "/known".into())));
        assert_eq!(fault(r#"{"known\u0000":1}"#).map(|f| f.0), Some(JsonFaultKind::Nul));
    }

    #[test]
    fn members_are_slices_of_the_text() {
        let text = "{ \"a\" : { \"x\" : 1.50 } , \"\\u0062\":\"\\u0034\" }";
        let object = Object::parse(text).expect("an object");
        assert_eq!(object.get("a"), Some("{ \"x\" : 1.50 }"));
        assert_eq!(object.get("b").and_then(string).as_deref(), Some("4"));
        assert!(Object::parse("[]").is_none() && string("1").is_none() && items("{}").is_none());
    }

    #[test]
    fn a_written_object_reads_back() {
        let text = ObjectWriter::default()
            .string("a\"", "x\n\u{1}é")
            .raw("b", "[1]")
            .string_or_null("c", None)
            .finish();
        assert_eq!(text, "{\"a\\\"\":\"x\\n\\u0001é\",\"b\":[1],\"c\":null}");
        assert_eq!(fault(&text), None);
        assert_eq!(ObjectWriter::default().finish(), "{}");
    }

    #[test]
    fn the_canonical_form_forgets_spelling_and_nothing_else() {
        let canonical = |text: &str| {
            let mut out = String::new();
            push_canonical(&mut out, text, &mut Vec::new(), &|path| path == ["env"]);
            out
        };
        let one = canonical(" {\"b\" : [1, {\"d\":\"\\u0041\",\"c\":1.0}], \"a\":true, \"env\": {\"x\":1}} ");
        assert_eq!(one, "{\"a\":true,\"b\":[1,{\"c\":1.0,\"d\":\"A\"}]}");
        assert_eq!(one, canonical("{\"a\":true,\"b\":[1,{\"c\":1.0,\"d\":\"A\"}],\"env\":2}"));
        assert_ne!(canonical("{\"a\":1}"), canonical("{\"a\":1.0}"));
    }
}
