//! Bodies of requests, as the routes read them: nothing panics, what is said of a fault comes from the
//! vault's own words, and whatever is taken reads the same in its canonical form.
#![no_main]

use cardvault::base::clock::Millis;
use cardvault::base::fault::FieldFault;
use cardvault::base::json::{self, Object};
use cardvault::model::card::{self, CardPatch};
use cardvault::model::operation::OperationKind;
use cardvault::model::operation_request::{self, OperationRequest};
use cardvault::model::pay_request::{self, PayRequest};
use cardvault::model::vocabulary;
use libfuzzer_sys::fuzz_target;

const NOW: Millis = Millis(1_790_000_000_000);

fn own_words(pointer: &str) {
    for step in pointer.split('/').skip(1) {
        let index = !step.is_empty() && step.len() <= 5 && step.bytes().all(|byte| byte.is_ascii_digit());
        assert!(index || vocabulary::is_known(step), "a pointer repeats what a caller wrote");
    }
}

fn named(faults: &[FieldFault]) {
    assert!(!faults.is_empty(), "refused without a reason");
    faults.iter().for_each(|fault| own_words(&fault.pointer));
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(fault) = json::check(text, &vocabulary::is_known) {
        return own_words(&fault.pointer);
    }
    match PayRequest::read(text, NOW) {
        Err(faults) => named(&faults),
        Ok(_) => {
            let canonical = pay_request::canonical(text);
            let again = pay_request::canonical(canonical.expose());
            assert!(canonical.expose() == again.expose(), "the canonical form is not its own");
        }
    }
    for kind in [OperationKind::Capture, OperationKind::Refund] {
        if let Err(faults) = OperationRequest::read(kind, text) {
            named(&faults);
        }
    }
    if let Err(faults) = operation_request::check_cancel(text) {
        named(&faults);
    }
    let Some(object) = Object::parse(text) else { return };
    for faults in [
        card::read_new_card(&object, NOW).err(),
        CardPatch::read(&object, NOW).err(),
        card::read_cvv(&object).err(),
    ] {
        named(&faults.unwrap_or_else(|| vec![FieldFault::at("", "taken")]));
    }
});
