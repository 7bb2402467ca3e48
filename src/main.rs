//! The `cardvault` binary.

use std::process::ExitCode;

/// Clears memory when it is freed, so that what libraries copied of a request does not stay behind.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(cardvault::base::stack::overwrite)
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(cardvault::cli::run());
            drop(runtime);
            cardvault::telemetry::finish();
            code
        }
        Err(error) => {
            eprintln!("cardvault: threads cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}
