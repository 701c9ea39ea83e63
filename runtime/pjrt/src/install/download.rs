//! Fetching a wheel with the user's own `pip`, so that mirrors, proxies and credentials are those they configured.
//!
//! Invariant: commands are lists of arguments, never text for a shell, and write only into the folder they are given.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{InstallError, Package, Progress, Target, Wheel};

/// Programs that understand `download`, in the order in which they are tried. `uv` has no such command, but runs pip.
const COMMANDS: [&[&str]; 4] =
    [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["uv", "tool", "run", "--quiet", "pip"]];

/// How often the size of what has arrived is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Fetches the wheel into a folder.
pub(super) fn fetch(
    target: Target,
    package: &Package,
    wheel: &Wheel,
    folder: &Path,
    search_path: Option<&OsStr>,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, InstallError> {
    let requirement = package.requirement();
    let (program, leading) = find_pip(search_path).ok_or_else(|| {
        let tried: Vec<_> = COMMANDS.iter().map(|words| format!("`{}`", words.join(" "))).collect();
        InstallError::NoPip { package: requirement.clone(), tried: tried.join(", ") }
    })?;
    let mut command = Command::new(&program);
    command.args(leading).args(["download", "--no-deps", "--only-binary=:all:", "--no-input"]);
    // The bar is for terminals. pip writes into TMPDIR first, which is how progress is seen from outside.
    command.args(["--progress-bar", "off", "--disable-pip-version-check"]);
    command.args(["--platform", &wheel.platform, "--python-version", &wheel.python]);
    command.arg("--dest").arg(folder).arg(&requirement);
    command.env("TMPDIR", folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(path) = search_path {
        command.env("PATH", path);
    }
    let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let shown = format!("{} {}", program.display(), words.join(" "));
    progress(Progress::Command(shown.clone()));

    let child = command.spawn().map_err(InstallError::file("run", &program))?;
    let (success, messages) =
        watch(child, folder, wheel.bytes, progress).map_err(InstallError::file("run", &program))?;
    let file = folder.join(&wheel.file);
    if success && file.is_file() {
        return Ok(file);
    }
    let variable = target.variable();
    let line = messages.iter().rev().find(|line| !line.trim().is_empty()).cloned();
    let line = line.unwrap_or_else(|| "no message".to_owned());
    Err(if success {
        let line = format!("it left no file {}", wheel.file);
        InstallError::Download { package: requirement, command: shown, line, variable }
    } else if let Some(line) = messages.iter().rev().find(|line| speaks_of_network(line)) {
        // More telling than the last line, which says that there is no such package.
        let line = line.clone();
        InstallError::Offline { package: requirement, command: shown, line, variable }
    } else if messages.iter().any(|line| line.contains("No matching distribution found")) {
        let platform = wheel.platform.clone();
        InstallError::NoPackage { package: requirement, platform, command: shown, line, variable }
    } else {
        InstallError::Download { package: requirement, command: shown, line, variable }
    })
}

/// Whether a line of pip's is about the network. Without one pip ends by saying that there is no such package.
fn speaks_of_network(line: &str) -> bool {
    const SIGNS: [&str; 6] = [
        "NewConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ProxyError",
        "SSLError",
        "Temporary failure in name resolution",
    ];
    SIGNS.iter().any(|sign| line.contains(sign))
}

/// The first command that runs.
fn find_pip(search_path: Option<&OsStr>) -> Option<(PathBuf, &'static [&'static str])> {
    let search_path = search_path?;
    COMMANDS.iter().find_map(|words| {
        let (name, rest) = words.split_first()?;
        let program = std::env::split_paths(search_path).map(|folder| folder.join(name)).find(|file| file.is_file())?;
        let mut version = Command::new(&program);
        version.args(rest).arg("--version").env("PATH", OsString::from(search_path));
        let output = version.stdin(Stdio::null()).output().ok()?;
        output.status.success().then_some((program, rest))
    })
}

/// Waits for a command, telling how much it has written. Gives whether it succeeded, and the lines of its errors.
fn watch(
    mut child: Child,
    folder: &Path,
    total: u64,
    progress: &mut dyn FnMut(Progress),
) -> std::io::Result<(bool, Vec<String>)> {
    let errors = child.stderr.take();
    std::thread::scope(|scope| {
        // Read beside, so that a command with much to say does not wait for a reader.
        let reader = scope.spawn(move || -> Vec<String> {
            let Some(errors) = errors else { return Vec::new() };
            BufReader::new(errors)
                .split(b'\n')
                .map_while(Result::ok)
                .map(|line| String::from_utf8_lossy(&line).into_owned())
                .collect()
        });
        let mut last = 0;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            let bytes = largest_file(folder).min(total);
            if bytes != last {
                last = bytes;
                progress(Progress::Download { bytes, total });
            }
            std::thread::sleep(POLL);
        };
        let messages = reader.join().unwrap_or_default();
        Ok((status.success(), messages))
    })
}

/// Size of the largest file below a folder: the wheel, wherever pip puts it meanwhile. Files that vanish while this
/// looks do not matter.
fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => largest_file(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).max().unwrap_or(0)
}
