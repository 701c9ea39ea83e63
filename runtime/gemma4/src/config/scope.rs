//! Reads single values with the path of the field in each error.

use super::ConfigError;

/// The object that fields are read from.
#[derive(Clone, Copy)]
pub(super) struct Scope(pub(super) &'static str);

impl Scope {
    /// Path of a field, for example `text_config.hidden_size`.
    pub(super) fn path(self, name: &str) -> String {
        if self.0.is_empty() { name.to_owned() } else { format!("{}.{name}", self.0) }
    }

    /// A value that has to be there.
    pub(super) fn required<T>(self, name: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::Missing { field: self.path(name) })
    }

    /// A dimension: there, not zero, at most `limit`.
    pub(super) fn size(self, name: &str, value: Option<u64>, limit: u64) -> Result<u64, ConfigError> {
        let value = self.at_most(name, self.required(name, value)?, limit)?;
        if value == 0 {
            return Err(ConfigError::Zero { field: self.path(name) });
        }
        Ok(value)
    }

    /// A value that may be zero, at most `limit`.
    pub(super) fn at_most(self, name: &str, value: u64, limit: u64) -> Result<u64, ConfigError> {
        if value > limit {
            return Err(ConfigError::TooLarge { field: self.path(name), value, limit });
        }
        Ok(value)
    }

    /// A number that is finite and positive.
    pub(super) fn positive(self, name: &str, value: f64) -> Result<f64, ConfigError> {
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            let expected = "a finite number above 0";
            Err(ConfigError::OutOfRange { field: self.path(name), value, expected })
        }
    }

    /// The epsilon of the norms. 1e-6 where it is not written, the value of every published Gemma 4.
    pub(super) fn epsilon(self, value: Option<f64>) -> Result<f64, ConfigError> {
        self.positive("rms_norm_eps", value.unwrap_or(1e-6))
    }

    /// `value` has to be a multiple of `divisor`.
    pub(super) fn divisible(
        self,
        name: &str,
        value: u64,
        divisor: u64,
        divisor_name: &'static str,
    ) -> Result<(), ConfigError> {
        if divisor != 0 && value.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(ConfigError::NotDivisible { field: self.path(name), value, divisor, divisor_name })
    }

    /// Two fields that disagree.
    pub(super) fn contradiction(self, name: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError::Contradiction { field: self.path(name), reason: reason.into() }
    }

    /// A value nothing here is made for.
    pub(super) fn unsupported(self, name: &str, value: impl ToString, supported: &'static str) -> ConfigError {
        ConfigError::Unsupported { field: self.path(name), value: value.to_string(), supported }
    }
}
