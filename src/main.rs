//! The `cardvault` binary.

use std::process::ExitCode;

/// Clears memory when it is freed, so that what libraries copied of a request does not stay behind.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

#[tokio::main]
async fn main() -> ExitCode {
    cardvault::cli::run().await
}
