//! Engine versions, as far as rules depend on them: major and minor.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Major and minor version of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Before the first dot.
    pub major: u32,
    /// After the first dot.
    pub minor: u32,
}

impl Version {
    /// The version `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Version { major, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = String;

    /// Reads `0.21`, `v0.21.0` or `0.26.1rc1.dev256+gf5bb701fa`; what follows the minor version is not used.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a version; write for example \"0.21\"");
        let mut parts = text.trim().trim_start_matches('v').split('.');
        let major = parts.next().and_then(|part| part.parse().ok()).ok_or_else(wrong)?;
        let minor = parts.next().ok_or_else(wrong)?;
        let digits: &str = &minor[..minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len())];
        let minor = digits.parse().map_err(|_| wrong())?;
        Ok(Version { major, minor })
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_engines_print() {
        assert_eq!("0.26.1rc1.dev256+gf5bb701fa".parse(), Ok(Version::new(0, 26)));
        assert_eq!("v0.9".parse(), Ok(Version::new(0, 9)));
        assert_eq!("0.30rc1".parse(), Ok(Version::new(0, 30)));
        assert!("latest".parse::<Version>().is_err());
        assert!("1".parse::<Version>().is_err());
        assert!("0.é".parse::<Version>().is_err());
    }
}
