//! The `hooklane` program: reads the command line, runs the command, ends with its documented exit code.

use std::process::ExitCode;

use hooklane::cli::{self, Cli, Failure};

/// The system allocator gives way to one that does not slow down when many threads free each other's memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = match Cli::read(std::env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => run(cli),
        Err(stop) => cli::explain(&stop),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(cli.run());
    // A command has drained what it must before it returns: what is still blocked (a write into a full pipe) is not waited for.
    runtime.shutdown_background();
    outcome
}
