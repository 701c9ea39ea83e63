//! Where output goes. A closed pipe (`| head`) ends the program quietly.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::profile::redact;

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

    /// Takes what was collected, to show it elsewhere.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Whether stdout is a terminal that wants colour (`NO_COLOR`, `CLICOLOR_FORCE` and dumb terminals are honoured).
    pub fn colour(&self) -> bool {
        anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
    }

    /// Columns of the terminal, 100 without one.
    pub fn width(&self) -> usize {
        terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0)).max(20)
    }

    /// Writes everything out, tokens masked that slipped through everything else.
    ///
    /// # Errors
    /// If stdout does not take it, unless its reader is gone: that is the reader's right.
    pub fn finish(&mut self) -> std::io::Result<()> {
        let text = redact(&std::mem::take(&mut self.text)).into_owned();
        let mut stdout = anstream::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// Says something beside the result.
pub(super) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{}", redact(text));
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

/// Writes a whole file or nothing: into a neighbour first, then renamed into place. A link stays a link to what is
/// written, and a new file gets the permissions that the user's mask leaves.
pub(super) fn write_atomically(path: &Path, text: &str) -> anyhow::Result<()> {
    let shown = path.display();
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = std::fs::metadata(&path).ok();
    if let Some(old) = &old {
        anyhow::ensure!(!old.is_dir(), "cannot write {shown}: it is a folder");
        anyhow::ensure!(!old.permissions().readonly(), "cannot write {shown}: it is read-only");
        if !old.is_file() {
            // A device or a pipe takes what is written, and must not be replaced by a file.
            return std::fs::write(&path, text).with_context(|| format!("cannot write {shown}"));
        }
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".gemma4ctl-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).with_context(|| format!("cannot write {shown}"))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("cannot write {shown}"))?;
    if let Some(old) = old {
        file.as_file().set_permissions(old.permissions()).with_context(|| format!("cannot write {shown}"))?;
    }
    file.persist(&path).map_err(|error| error.error).with_context(|| format!("cannot write {shown}"))?;
    Ok(())
}

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
