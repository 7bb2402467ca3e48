//! `cardvault dev`: the walk, what a second start makes of whatever is left, and what a failed walk ends with.

use std::path::Path;
use std::process::{Command, Output};

use super::command_line::{Serving, TYPED_PAN, command, curl_as, folder, text};
use super::support::vault::{SAMPLE_PAN, init};
use super::support::{leak, say};

/// The listeners that the folder's configuration gets; other tests run beside these.
const LISTEN: [&str; 6] =
    ["--api-listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--notify-listen", "127.0.0.1:0"];
const PAID: &str = "PAY_20221114141714891";

/// The command on a folder. The sandbox's listener is no part of the configuration.
fn dev(dir: &Path) -> Command {
    let mut dev = command(&["dev", "--sandbox-listen", "127.0.0.1:0", "--dir"]);
    dev.arg(dir);
    dev
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

/// The first reference of a kind in a text.
fn reference(text: &str, kind: &str) -> String {
    let begin = text.find(kind).unwrap_or_else(|| panic!("no {kind}: {text}"));
    text[begin..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn checked(output: &Output, code: i32) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out} {err}");
    for text in [&out, &err] {
        leak::assert_clean(&[SAMPLE_PAN, "850"], text.as_bytes(), "the walk");
    }
    (out, err)
}

/// `dev --once` walks through the main job, twice on one folder, and prints no card number.
#[test]
fn dev_walks_and_exits() {
    let folder = folder();
    let dir = folder.path().join("dev");
    for (turn, told) in
        ["POST /ams/sandbox/api/v1/payments/pay", "nothing is sent twice"].into_iter().enumerate()
    {
        let output = dev(&dir).arg("--once").args(LISTEN).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{turn}: {out} {err}");
        for word in ["1. ", "2. ", "3. ", "AUTHORIZED", "************6383", "has 1 charge for", told] {
            assert!(out.contains(word), "{turn}: {word}: {out}");
        }
        for text in [&out, &err] {
            leak::assert_clean(&[SAMPLE_PAN, "850"], text.as_bytes(), "the walk");
        }
    }
    leak::scan_dir(&dir, &[SAMPLE_PAN]);
}

/// What `dev` prints to be tried works as it is printed, in a folder whose name needs quotes.
#[test]
fn the_lines_that_dev_prints_work() {
    let folder = folder();
    let dir = folder.path().join("dev");
    let mut dev = Serving::start(dev(&dir).args(LISTEN));
    dev.line("Ctrl-C ends it.");
    let out = dev.out.lock().unwrap().replace("\\\n", " ");
    let lines: Vec<&str> = out.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(lines.len() >= 4, "{out}");
    if Command::new("curl").arg("--version").output().is_ok() {
        for line in lines {
            let output =
                Command::new("bash").args(["-c", &format!("{line} -sS --fail-with-body")]).output().unwrap();
            assert!(output.status.success(), "{line}: {} {}", text(&output.stdout), text(&output.stderr));
            assert!(text(&output.stdout).starts_with('{'), "{line}");
        }
    } else {
        say("no curl found: the printed lines were not tried");
    }
    let (code, _, err) = dev.stop();
    assert_eq!(code, Some(0));
    leak::assert_clean(&[SAMPLE_PAN, TYPED_PAN, "850"], err.as_bytes(), "the log");
    leak::scan_dir(&dir, &[SAMPLE_PAN, TYPED_PAN]);
}

/// A second start walks whatever became of the first walk's payments, under ids of its own, and says why; it
/// is a walk of payments that are made, and not of what is known.
#[test]
fn a_second_start_walks_whatever_is_left() {
    let folder = folder();
    let first = folder.path().join("first");
    let (out, _) = checked(&dev(&first).arg("--once").args(LISTEN).output().unwrap(), 0);
    let (card, agreement) = (reference(&out, "card_"), reference(&out, "agr_"));
    let refund = r#"{"refundRequestId":"MINE","refundAmount":{"currency":"EUR","value":"100"}}"#;
    let spoils = [
        ("POST", format!("payments/{PAID}/cancel"), None, format!("{PAID} is CANCELLED")),
        ("POST", "payments/WALK_STORE/cancel".into(), None, "WALK_STORE is CANCELLED".into()),
        (
            "POST",
            "payments/WALK_CHARGE/refunds".into(),
            Some(refund),
            "WALK_CHARGE was captured or given back by others since".into(),
        ),
        ("DELETE", format!("cards/{card}"), None, format!("{PAID} was paid with a card that is gone")),
        (
            "DELETE",
            format!("agreements/{agreement}"),
            None,
            "the agreement of WALK_STORE is no longer in force".into(),
        ),
    ];
    for (place, (method, path, body, why)) in spoils.into_iter().enumerate() {
        let dir = folder.path().join(format!("spoilt {place}"));
        copy(&first, &dir);
        let mut serving = Serving::start(&mut dev(&dir));
        let api = serving.line("The vault serves            ");
        serving.line("Ctrl-C ends it.");
        let answer = curl_as(&dir, &["-X", method], &format!("{api}/v1/{path}"), body);
        assert_eq!(serving.stop().0, Some(0));
        let Some(answer) = answer else { return };
        let (out, _) = checked(&dev(&dir).arg("--once").output().unwrap(), 0);
        if out.contains("nothing is sent twice") {
            panic!("{path}: {answer}: {out}");
        }
        for word in [why.as_str(), "has 1 charge for WALK_PAY_", "1500 cents left of WALK_CHARGE_"] {
            assert!(out.contains(word), "{path}: {answer}: {word}: {out}");
        }
    }
    let dir = folder.path().join("without the ledger");
    copy(&first, &dir);
    std::fs::remove_file(dir.join("sandbox-ledger.jsonl")).unwrap();
    let (out, _) = checked(&dev(&dir).arg("--once").output().unwrap(), 0);
    assert!(out.contains("is not charged once in the gateway's ledger"), "{out}");
}

/// A walk that fails ends `--once` with 1; without it that is told, and the vault serves. Whether there is a
/// sandbox is what the folder says, whatever a later start is told.
#[test]
fn a_failed_walk_is_told_and_the_vault_serves() {
    let folder = folder();
    let (other, dir) = (folder.path().join("other"), folder.path().join("dev"));
    init(&other, "sqlite:cardvault.db");
    let key = other.join("gateway/sandbox_public.pem");
    let gateway =
        ["--gateway-url", "https://127.0.0.1:1", "--gateway-client-id", "SANDBOX_1", "--gateway-public-key"];
    let (out, err) =
        checked(&dev(&dir).arg("--once").args(LISTEN).args(gateway).arg(&key).output().unwrap(), 1);
    assert!(out.contains("2. ") && !out.contains("3. ") && !out.contains("The gateway sandbox"), "{out}");
    assert!(err.contains("the payment was not authorised"), "{err}");

    let mut serving = Serving::start(&mut dev(&dir));
    let api = serving.line("The vault serves            ");
    serving.line("Ctrl-C ends it.");
    if let Some(answer) = curl_as(&dir, &[], &format!("{api}/v1/whoami"), None) {
        assert!(answer.contains("\"acme\""), "{answer}");
    }
    let (code, out, err) = serving.stop();
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("Taking up") && !out.contains("The gateway sandbox"), "{out}");
    assert!(out.contains(&format!("{PAID} is FAILED: this walk pays under ids of its own")), "{out}");
    assert!(err.contains("the walk stopped: the payment was not authorised"), "{err}");
    // The same command again is the same vault.
    let (_, err) =
        checked(&dev(&dir).arg("--once").args(LISTEN).args(gateway).arg(&key).output().unwrap(), 1);
    assert!(err.contains("the payment was not authorised"), "{err}");
}

/// What a folder already says is not passed over: a flag that says otherwise is refused with the mend, and one
/// that says the same is taken.
#[test]
fn a_flag_that_the_folder_contradicts_is_refused() {
    let folder = folder();
    let (other, dir) = (folder.path().join("other"), folder.path().join("dev"));
    init(&other, "sqlite:cardvault.db");
    let same = ["--database-url", "sqlite:vault.db", "--server-name", "vault.example"];
    checked(&dev(&dir).arg("--once").args(LISTEN).args(same).output().unwrap(), 0);
    checked(&dev(&dir).arg("--once").args(LISTEN).args(same).output().unwrap(), 0);
    let key = other.join("gateway/sandbox_public.pem");
    let key = key.to_str().unwrap();
    for (arguments, mend) in [
        (&["--api-listen", "127.0.0.1:1"][..], "listen under [api]"),
        (&["--ops-listen", "127.0.0.1:1"], "listen under [ops]"),
        (&["--notify-listen", "127.0.0.1:1"], "listen under [notify]"),
        (&["--notify-url", "https://vault.example/notify"], "public_url under [notify]"),
        (&["--database-url", "sqlite:other.db"], "url under [database]"),
        (&["--database-url", "postgres://u:p@h/d"], "url under [database]"),
        (&["--server-name", "other.example"], "choose another --dir"),
        (&["--gateway-client-id", "SANDBOX_2"], "client_id under [[gateway]]"),
        (&["--gateway-private-key", key], "private_keys under [[gateway]]"),
        (
            &[
                "--gateway-url",
                "https://127.0.0.1:1",
                "--gateway-client-id",
                "SANDBOX_2",
                "--gateway-public-key",
                key,
            ],
            "base_url under [[gateway]]",
        ),
    ] {
        let (out, err) = checked(&dev(&dir).arg("--once").args(arguments).output().unwrap(), 1);
        assert!(err.contains(arguments[0]) && err.contains(mend) && !out.contains("serves"), "{err}");
    }
}
