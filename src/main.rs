//! The `trialfs` binary: hands the process's arguments to [`trialfs::cli`] and exits with its code.

fn main() -> std::process::ExitCode {
    trialfs::cli::main()
}
