//! The `gemma4ctl` binary: everything is in the library, see `gemma4ctl::cli`.

fn main() -> std::process::ExitCode {
    gemma4ctl::cli::run(std::env::args_os())
}
