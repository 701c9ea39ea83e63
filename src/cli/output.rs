//! Where output goes. A closed pipe (`| head`) ends the program quietly.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// Collects what goes to stdout and writes it in one piece.
#[derive(Debug, Default)]
pub struct Output {
    text: String,
}

impl Output {
    /// Adds to the result.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds a line to the result.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    /// Whether stdout is a terminal that wants colour (`NO_COLOR`, `CLICOLOR_FORCE` and dumb terminals are honoured).
    pub fn colour(&self) -> bool {
        anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
    }

    /// Columns of the terminal, 100 without one.
    pub fn width(&self) -> usize {
        terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0)).max(20)
    }

    /// Writes everything out.
    pub fn finish(&mut self) {
        let mut stdout = anstream::stdout().lock();
        // The reader may be gone, which is its right.
        let _ = stdout.write_all(self.text.as_bytes()).and_then(|()| stdout.flush());
        self.text.clear();
    }
}

/// Says something beside the result.
pub(super) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Prints an error with its causes.
pub(super) fn report(error: &anyhow::Error) {
    let bold = anstyle_bold();
    let mut text = format!("{bold}error{bold:#}: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("\n  caused by: {cause}"));
    }
    note(&text);
}

fn anstyle_bold() -> clap::builder::styling::Style {
    clap::builder::styling::AnsiColor::Red.on_default().bold()
}

/// Writes a whole file or nothing: into a neighbour first, then renamed into place.
pub(super) fn write_atomically(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = path.display();
    let mut file = tempfile::Builder::new()
        .prefix(".gemma4ctl-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot write {shown}"))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("cannot write {shown}"))?;
    keep_permissions(path, file.path());
    file.persist(path).map_err(|error| error.error).with_context(|| format!("cannot write {shown}"))?;
    Ok(())
}

/// Gives the new file the permissions of the one it replaces, or those of any new file.
#[cfg(unix)]
fn keep_permissions(old: &Path, new: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(old).map_or(0o644, |metadata| metadata.permissions().mode());
    // A file with the tempfile's tighter permissions is still the right content.
    let _ = std::fs::set_permissions(new, std::fs::Permissions::from_mode(mode));
}

#[cfg(not(unix))]
fn keep_permissions(_: &Path, _: &Path) {}

/// Lets whoever may read a file execute it.
#[cfg(unix)]
pub(super) fn make_executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let shown = path.display();
    let mode = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.permissions().mode();
    let permissions = std::fs::Permissions::from_mode(mode | ((mode & 0o444) >> 2));
    std::fs::set_permissions(path, permissions).with_context(|| format!("cannot make {shown} executable"))
}

#[cfg(not(unix))]
pub(super) fn make_executable(_: &Path) -> anyhow::Result<()> {
    Ok(())
}
