//! Configuration files and overriding variables: taken or refused with words, never a panic.
#![no_main]

use cardvault::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // A last line `NAME=value` is a variable of the environment.
    let (file, last) = text.rsplit_once('\n').unwrap_or((text, ""));
    let variable = last.split_once('=').map(|(name, value)| (format!("CARDVAULT_{name}"), value.to_owned()));
    match Config::parse(file, variable.into_iter()) {
        Ok(config) => {
            assert!(config.clients().is_ok(), "a configuration was taken whose clients are wrong");
            let _shared = config.shared_accounts();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
