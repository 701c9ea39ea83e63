//! The `gemma4ctl` binary: everything is in the library, see `gemma4ctl::cli`.

fn main() -> std::process::ExitCode {
    // Before anything else: a plugin reads the environment when it is loaded, and it may only be changed while there is
    // one thread.
    gemma4ctl::cli::prepare();
    gemma4ctl::cli::run(std::env::args_os())
}
