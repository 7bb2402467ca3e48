//! Nothing is acknowledged before the disk was told to keep it. A kill does not show that: what a process has
//! written, the kernel keeps. So the calls themselves are counted, in the real program.

use std::path::Path;
use std::process::Command;

use crate::support::vault::{TestVault, fresh_pan};
use crate::support::{Database, say};

/// Stands before the C library and adds a byte to a file for each call.
const COUNTER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static void count(void) {
    const char *name = getenv("SYNCS_COUNTED_IN");
    int file = name ? open(name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file >= 0) { ssize_t done = write(file, "x", 1); (void)done; close(file); }
}
int fsync(int file) { count(); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file); }
int fdatasync(int file) { count(); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file); }
"#;

/// Builds the counter; the compiler is there, because SQLite was built.
fn counter(folder: &Path) -> std::path::PathBuf {
    let (source, library) = (folder.join("counter.c"), folder.join("counter.so"));
    std::fs::write(&source, COUNTER).expect("a file");
    let mut cc = Command::new("cc");
    let done = cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").output();
    let done = done.expect("a C compiler");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    library
}

/// With `synchronous` NORMAL or OFF there would be a few calls in all, or none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_write_was_synced_on_sqlite() {
    const CARDS: usize = 40;
    if !cfg!(target_os = "linux") {
        return say("durability::syncs: left out: it counts calls as Linux lets it");
    }
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (library, counted) = (counter(folder.path()), folder.path().join("counted"));
    for (name, value) in [("LD_PRELOAD", &library), ("SYNCS_COUNTED_IN", &counted)] {
        vault.environment.push((name.to_owned(), value.display().to_string()));
    }
    let mut program = vault.start_program().await;
    let caller = vault.client("checkout");
    let calls = || std::fs::metadata(&counted).map_or(0, |facts| facts.len());
    let (mut unsynced, mut pans) = (0, Vec::new());
    for _ in 0..CARDS {
        let (before, pan) = (calls(), fresh_pan());
        caller.card(&pan).await;
        unsynced += usize::from(calls() == before);
        pans.push(pan);
    }
    program.kill().expect("killed");
    program.wait().expect("killed");
    say(&format!("{CARDS} cards stored one after the other: {} calls of fsync and fdatasync", calls()));
    assert_eq!(unsynced, 0, "of {CARDS} cards that were acknowledged");
    vault.finish(&pans.iter().map(String::as_str).collect::<Vec<_>>()).await;
}
