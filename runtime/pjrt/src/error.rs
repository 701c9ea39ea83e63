//! What can go wrong, and XLA's status codes.
//!
//! Invariant: XLA's own message is kept whole and word for word, since it is what people search for.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::element::ElementType;
use crate::plugin::{ApiVersion, OLDEST_API};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why XLA could not be asked, or what it said.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// XLA refuses or fails.
    #[error("XLA cannot {action}: {code}: {message}")]
    Xla {
        /// What was asked, as the end of a sentence.
        action: &'static str,
        /// XLA's status code.
        code: StatusCode,
        /// XLA's own words.
        message: String,
    },
    /// The operating system does not load the file as a shared library.
    #[error("cannot load the PJRT plugin {}: {reason}; point at a plugin for this machine or install one", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// The library loads, but is no plugin.
    #[error("{} is a shared library but no PJRT plugin: {reason}; point at the library from the plugin's wheel", path.display())]
    NotAPlugin {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// The plugin speaks another version of the C API.
    #[error(
        "the PJRT plugin {} speaks C API {found}, and this program needs {}.{} or a later {}.x; install the version that the lock file names",
        path.display(), OLDEST_API.major, OLDEST_API.minor, OLDEST_API.major
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What the plugin says of itself.
        found: ApiVersion,
    },
    /// The plugin's table of functions ends before this one, or has a hole there.
    #[error("the PJRT plugin {} has no {function}; install a newer version of it", path.display())]
    MissingFunction {
        /// The plugin's file.
        path: PathBuf,
        /// Name in the C header.
        function: &'static str,
    },
    /// The plugin lacks a whole extension.
    #[error("the PJRT plugin {} has no {extension} extension, so {consequence}", path.display())]
    MissingExtension {
        /// The plugin's file.
        path: PathBuf,
        /// Name of the extension.
        extension: &'static str,
        /// What cannot be done without it.
        consequence: &'static str,
    },
    /// Two custom-call handlers of one name.
    #[error("a custom-call handler `{0}` is registered already; XLA would go on calling the first")]
    HandlerExists(String),
    /// The plugin answered with something that its C header rules out.
    #[error(
        "XLA's answer to `{action}` makes no sense: {reason}; the plugin may be of a version that this program does not know"
    )]
    Answer {
        /// What was asked.
        action: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The type of an array's elements is one that this crate does not carry.
    #[error("arrays of PJRT's element type number {0} are not supported")]
    ElementType(i32),
    /// The bytes of an array do not fit its shape.
    #[error("an array of {dims:?} {element:?} holds {wanted} bytes, not {found}")]
    Size {
        /// Type of the elements.
        element: ElementType,
        /// The shape, outermost dimension first.
        dims: Vec<i64>,
        /// Bytes that the shape takes.
        wanted: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// A shape whose size cannot be computed.
    #[error("{0:?} is no shape: dimensions are 0 or more, and their product fits in the address space")]
    Shape(Vec<i64>),
    /// An array of one type was read or written as another.
    #[error("the array holds {found:?}, not {wanted:?}")]
    WrongElement {
        /// What the caller asked for.
        wanted: ElementType,
        /// What the array holds.
        found: ElementType,
    },
    /// A device that the client does not have.
    #[error("there is no device {index}: the client has {count}, counted from 0")]
    NoSuchDevice {
        /// The position that was asked for.
        index: usize,
        /// Number of devices.
        count: usize,
    },
    /// The arguments of an execution do not fit together.
    #[error("cannot execute: {0}")]
    Arguments(String),
    /// A buffer was donated by a program that takes it whether or not the caller gave it away.
    #[error("the buffer was donated to an execution and holds nothing any more; give it as `Argument::Donate`")]
    Donated,
    /// Text that a C string or a protocol buffer cannot carry.
    #[error("{what} is out of range: {reason}")]
    OutOfRange {
        /// What was given.
        what: &'static str,
        /// Why it cannot be passed on.
        reason: String,
    },
    /// Variables were to be set after other threads had started.
    #[error(
        "cannot set {names} now, because other threads run and may read the environment; set them before the program starts, or call `environment::prepare` first thing in main"
    )]
    TooLate {
        /// The variables, separated by commas.
        names: String,
    },
    /// A file cannot be used as memory.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
}

/// What the compiler said of a program that does not fit into device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HbmExceeded {
    /// Bytes that the program needs on one device, when the message tells. Printed by XLA with two decimals of its
    /// unit, so exact to about half a percent.
    pub needed: Option<u64>,
    /// Bytes that a program may use on one device, as printed.
    pub available: Option<u64>,
}

impl Error {
    /// The status code, when XLA said one.
    pub fn code(&self) -> Option<StatusCode> {
        match self {
            Error::Xla { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the program or its arrays do not fit into the device's memory, and what is known of the bytes.
    ///
    /// Reads `RESOURCE_EXHAUSTED`, whose text is `E1000: CompileTimeHbmOom: ... (32.00G) exceeds available HBM
    /// (31.24G)` or `Ran out of memory in memory space hbm. Used 33.00G of 31.24G hbm` in the TPU compiler.
    pub fn hbm_exceeded(&self) -> Option<HbmExceeded> {
        let Error::Xla { code: StatusCode::ResourceExhausted, message, .. } = self else { return None };
        Some(hbm_bytes(message))
    }
}

/// Sizes in the compiler's message.
fn hbm_bytes(message: &str) -> HbmExceeded {
    if let Some((before, after)) = message.split_once("exceeds available HBM") {
        let needed = before.rsplit_once('(').and_then(|(_, text)| printed_bytes(text));
        let available = after.split_once('(').and_then(|(_, text)| printed_bytes(text));
        return HbmExceeded { needed, available };
    }
    if let Some((_, after)) = message.split_once("Used ")
        && let Some((used, rest)) = after.split_once(" of ")
    {
        return HbmExceeded { needed: printed_bytes(used), available: printed_bytes(rest) };
    }
    HbmExceeded { needed: None, available: None }
}

/// `31.24G` at the beginning of a text as bytes; XLA's units are powers of 1024.
fn printed_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let number: f64 = text[..digits].parse().ok()?;
    let unit: f64 = match text[digits..].chars().next()? {
        'B' | ')' | ' ' => 1.0,
        'K' => 1024.0,
        'M' => 1024.0 * 1024.0,
        'G' => 1024.0 * 1024.0 * 1024.0,
        'T' => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = (number * unit).round();
    // 2^63 is far above any memory and exactly representable, so the cast below loses nothing.
    if !(0.0..9.2e18).contains(&bytes) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    Some(bytes as u64)
}

/// `absl::StatusCode`: the kinds of failure that XLA tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StatusCode {
    /// The caller gave up.
    Cancelled,
    /// Nothing is known of the reason.
    Unknown,
    /// The program or an argument is wrong, whatever the state of the system.
    InvalidArgument,
    /// It took too long.
    DeadlineExceeded,
    /// Something named does not exist.
    NotFound,
    /// Something to be made is there already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// Memory, of a device or of the host, does not suffice.
    ResourceExhausted,
    /// The system is not in the state that this needs.
    FailedPrecondition,
    /// Given up because of something else at work.
    Aborted,
    /// Past an end.
    OutOfRange,
    /// The plugin does not do this.
    Unimplemented,
    /// An invariant of XLA's is broken, or a custom-call handler failed.
    Internal,
    /// Not available now.
    Unavailable,
    /// Data are lost for good.
    DataLoss,
    /// The caller did not say who they are.
    Unauthenticated,
    /// A number that `absl` had not given a meaning when this was written.
    Other(i32),
}

impl StatusCode {
    /// The status of a number from the C API.
    pub(crate) fn from_raw(code: i32) -> Self {
        match code {
            1 => StatusCode::Cancelled,
            2 => StatusCode::Unknown,
            3 => StatusCode::InvalidArgument,
            4 => StatusCode::DeadlineExceeded,
            5 => StatusCode::NotFound,
            6 => StatusCode::AlreadyExists,
            7 => StatusCode::PermissionDenied,
            8 => StatusCode::ResourceExhausted,
            9 => StatusCode::FailedPrecondition,
            10 => StatusCode::Aborted,
            11 => StatusCode::OutOfRange,
            12 => StatusCode::Unimplemented,
            13 => StatusCode::Internal,
            14 => StatusCode::Unavailable,
            15 => StatusCode::DataLoss,
            16 => StatusCode::Unauthenticated,
            other => StatusCode::Other(other),
        }
    }
}

impl fmt::Display for StatusCode {
    /// The name as XLA prints it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            StatusCode::Cancelled => "CANCELLED",
            StatusCode::Unknown => "UNKNOWN",
            StatusCode::InvalidArgument => "INVALID_ARGUMENT",
            StatusCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
            StatusCode::NotFound => "NOT_FOUND",
            StatusCode::AlreadyExists => "ALREADY_EXISTS",
            StatusCode::PermissionDenied => "PERMISSION_DENIED",
            StatusCode::ResourceExhausted => "RESOURCE_EXHAUSTED",
            StatusCode::FailedPrecondition => "FAILED_PRECONDITION",
            StatusCode::Aborted => "ABORTED",
            StatusCode::OutOfRange => "OUT_OF_RANGE",
            StatusCode::Unimplemented => "UNIMPLEMENTED",
            StatusCode::Internal => "INTERNAL",
            StatusCode::Unavailable => "UNAVAILABLE",
            StatusCode::DataLoss => "DATA_LOSS",
            StatusCode::Unauthenticated => "UNAUTHENTICATED",
            StatusCode::Other(code) => return write!(formatter, "status {code}"),
        };
        formatter.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, HbmExceeded, StatusCode};

    fn exhausted(message: &str) -> Option<HbmExceeded> {
        let message = message.to_owned();
        Error::Xla { action: "compile", code: StatusCode::ResourceExhausted, message }.hbm_exceeded()
    }

    #[test]
    fn the_compilers_message_gives_its_bytes() {
        // libtpu 0.0.51 says this of an identity over 32 GiB for v6e:1x1.
        let first = exhausted(
            "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries \
             (64.00G) exceeds available HBM (31.24G). HLO module: main.",
        );
        assert_eq!(first, Some(HbmExceeded { needed: Some(64 << 30), available: Some(33_543_694_582) }));
        let second = exhausted("Ran out of memory in memory space hbm. Used 512.00M of 256.00M hbm.");
        assert_eq!(second, Some(HbmExceeded { needed: Some(512 << 20), available: Some(256 << 20) }));
        assert_eq!(exhausted("no more handles"), Some(HbmExceeded { needed: None, available: None }));
    }

    #[test]
    fn other_codes_are_not_taken_for_exhausted_memory() {
        let error = Error::Xla { action: "compile", code: StatusCode::Internal, message: "Used 1G of 1G".to_owned() };
        assert_eq!(error.hbm_exceeded(), None);
    }
}
