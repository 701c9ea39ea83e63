//! Values with units: sizes, durations, token counts; and numbers with bounds.
//!
//! Each type states its bounds twice, in `Deserialize` and in its JSON Schema, from the same constants.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// One GiB.
pub const GIB: u64 = 1 << 30;

macro_rules! schema {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

/// Reads a value from text, or says why it cannot.
type FromText<T> = fn(&str) -> Result<T, String>;

/// A value written as a number or as text with a unit.
fn number_or_text<'de, D, T>(
    deserializer: D,
    expected: &'static str,
    from_integer: fn(i64) -> Result<T, String>,
    from_float: Option<fn(f64) -> Result<T, String>>,
    from_text: Option<FromText<T>>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    struct NumberOrText<T> {
        expected: &'static str,
        from_integer: fn(i64) -> Result<T, String>,
        from_float: Option<fn(f64) -> Result<T, String>>,
        from_text: Option<FromText<T>>,
    }
    impl<T> Visitor<'_> for NumberOrText<T> {
        type Value = T;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.expected)
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            (self.from_integer)(number).map_err(E::custom)
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
            i64::try_from(number)
                .map_err(|_| E::custom("the number is too large"))
                .and_then(|number| self.visit_i64(number))
        }
        fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
            match self.from_float {
                Some(convert) => convert(number).map_err(E::custom),
                None => Err(E::invalid_type(Unexpected::Float(number), &self)),
            }
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            match self.from_text {
                Some(convert) => convert(text).map_err(E::custom),
                None => Err(E::invalid_type(Unexpected::Str(text), &self)),
            }
        }
    }
    deserializer.deserialize_any(NumberOrText { expected, from_integer, from_float, from_text })
}

/// Splits `10gb` into number and unit.
fn split_unit(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((number, unit.trim())),
        _ => Err(format!("`{text}` does not start with a number")),
    }
}

/// A whole number from 1 up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub u64);

/// The largest count: far above any machine, and small enough for products of several to be computed.
const COUNT_MAX: i64 = 1 << 24;

/// The largest count of tokens or seconds.
const LONG_MAX: i64 = 1 << 32;

fn within(number: i64, least: i64, most: i64) -> Result<u64, String> {
    match u64::try_from(number) {
        Ok(value) if (least..=most).contains(&number) => Ok(value),
        _ => Err(format!("{number} is out of range: from {least} to {most}")),
    }
}

fn count(number: i64) -> Result<Count, String> {
    within(number, 1, COUNT_MAX).map(Count)
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "an integer", count, None, None)
    }
}
schema!(Count, "Count", { "type": "integer", "minimum": 1, "maximum": COUNT_MAX });

/// A whole number from 0 up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub u64);

fn amount(number: i64) -> Result<Amount, String> {
    within(number, 0, COUNT_MAX).map(Amount)
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "an integer", amount, None, None)
    }
}
schema!(Amount, "Amount", { "type": "integer", "minimum": 0, "maximum": COUNT_MAX });

/// A count of tokens: a number, or text such as `16K` (16,384) or `16k` (16,000), as vLLM reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens(pub u64);

const TOKENS_PATTERN: &str = "^[0-9]+[kKmM]?$";

fn tokens(text: &str) -> Result<Tokens, String> {
    let wrong = || format!("`{text}` is not a count of tokens: write 16384, \"16K\" (x 1,024) or \"16k\" (x 1,000)");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "K" => 1_024,
        "m" => 1_000_000,
        "M" => 1_048_576,
        _ => return Err(wrong()),
    };
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    let number = number.checked_mul(factor).ok_or_else(wrong)?;
    within(number, 1, LONG_MAX).map(Tokens)
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(
            deserializer,
            "a count of tokens",
            |number| within(number, 1, LONG_MAX).map(Tokens),
            None,
            Some(tokens),
        )
    }
}
schema!(Tokens, "Tokens", { "type": ["integer", "string"], "minimum": 1, "maximum": LONG_MAX, "pattern": TOKENS_PATTERN });

/// A share, above 0 and at most 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub f64);

fn share(number: f64) -> Result<Share, String> {
    if number > 0.0 && number <= 1.0 {
        Ok(Share(number))
    } else {
        Err(format!("{number} is out of range: above 0, at most 1 (0.9 means 90 %)"))
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "a number", |number| share(number as f64), Some(share), None)
    }
}
schema!(Share, "Share", { "type": "number", "exclusiveMinimum": 0, "maximum": 1 });

/// A TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(pub u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(
            deserializer,
            "an integer",
            |number| match u16::try_from(number) {
                Ok(port) if port > 0 => Ok(Port(port)),
                _ => Err(format!("{number} is out of range: from 1 to 65535")),
            },
            None,
            None,
        )
    }
}
schema!(Port, "Port", { "type": "integer", "minimum": 1, "maximum": 65535 });

/// A size in bytes: a number of bytes, or text with a unit. `GiB` is 2^30, `GB` is 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

const BYTES_PATTERN: &str = "^[0-9]+(\\.[0-9]+)? *([kKmMgGtT]i?)?[bB]?$";
const BYTES_MIN: i64 = 1 << 20;

fn bytes_number(number: i64) -> Result<Bytes, String> {
    match u64::try_from(number) {
        Ok(value) if number >= BYTES_MIN => Ok(Bytes(value)),
        _ => Err(format!("{number} bytes is out of range: at least 1 MiB; write a unit, such as \"8GiB\"")),
    }
}

fn bytes(text: &str) -> Result<Bytes, String> {
    let (number, unit) = split_unit(text)?;
    let factor: f64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "ki" | "kib" => 1024.0,
        "mi" | "mib" => 1_048_576.0,
        "gi" | "gib" => GIB as f64,
        "ti" | "tib" => 1024.0 * GIB as f64,
        _ => {
            return Err(format!(
                "`{unit}` is not a unit of size: KiB, MiB, GiB, TiB (powers of 1,024), kB, MB, GB, TB (powers of 1,000)"
            ));
        }
    };
    let value = number * factor;
    if value > 1e18 {
        return Err(format!("`{text}` is too large"));
    }
    bytes_number(value as i64)
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "a size such as \"8GiB\"", bytes_number, None, Some(bytes))
    }
}
schema!(Bytes, "Bytes", { "type": ["integer", "string"], "minimum": BYTES_MIN, "pattern": BYTES_PATTERN });

/// An amount of memory in GiB as a number, or text with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gib {
    /// Bytes.
    pub bytes: u64,
}

fn gib(number: f64) -> Result<Gib, String> {
    if number > 0.0 && number < 1e6 {
        Ok(Gib { bytes: (number * GIB as f64).round() as u64 })
    } else {
        Err(format!("{number} is out of range: GiB above 0"))
    }
}

impl<'de> Deserialize<'de> for Gib {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(
            deserializer,
            "a number of GiB",
            |number| gib(number as f64),
            Some(gib),
            Some(|text| bytes(text).map(|Bytes(bytes)| Gib { bytes })),
        )
    }
}
schema!(Gib, "Gib", { "type": ["number", "string"], "exclusiveMinimum": 0, "exclusiveMaximum": 1_000_000, "pattern": BYTES_PATTERN });

/// A duration: seconds as a number, or text such as `4h`, `2h30m` or `7d`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whole seconds.
    pub seconds: u64,
    /// As it was written.
    pub text: String,
}

const SPAN_PATTERN: &str = "^([0-9]+ *[smhd] *)+$";

fn span(text: &str) -> Result<Span, String> {
    let wrong = || format!("`{text}` is not a duration: write \"90s\", \"30m\", \"4h\", \"7d\" or \"2h30m\"");
    let mut seconds: u64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (digits, tail) = rest.split_at(at);
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let tail = tail.trim_start();
        let unit = tail.chars().next().ok_or_else(wrong)?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        seconds = number.checked_mul(factor).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = tail[1..].trim_start();
    }
    Ok(Span { seconds, text: text.trim().to_owned() })
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(
            deserializer,
            "a duration such as \"4h\"",
            |number| within(number, 1, LONG_MAX).map(|seconds| Span { seconds, text: format!("{seconds}s") }),
            None,
            Some(span),
        )
    }
}
schema!(Span, "Span", { "type": ["integer", "string"], "minimum": 1, "maximum": LONG_MAX, "pattern": SPAN_PATTERN });

/// A value of an environment variable: text, a number or a boolean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvValue(pub String);

impl<'de> Deserialize<'de> for EnvValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EnvVisitor;
        impl Visitor<'_> for EnvVisitor {
            type Value = EnvValue;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, a number or a boolean")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<EnvValue, E> {
                Ok(EnvValue(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<EnvValue, E> {
                Ok(EnvValue(number.to_string()))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<EnvValue, E> {
                Ok(EnvValue(number.to_string()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<EnvValue, E> {
                // The TPU backend reads 0 and 1 only.
                Ok(EnvValue(if value { "1" } else { "0" }.to_owned()))
            }
        }
        deserializer.deserialize_any(EnvVisitor)
    }
}
schema!(EnvValue, "EnvValue", { "type": ["string", "integer", "number", "boolean"] });

/// A name that Docker and systemd take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerName(pub String);

const CONTAINER_NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9_.-]*$";

impl<'de> Deserialize<'de> for ContainerName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) && name.bytes().all(plain) {
            Ok(ContainerName(name))
        } else {
            Err(de::Error::custom("a name has letters, digits, `_`, `.` and `-`, a letter or digit first"))
        }
    }
}
schema!(ContainerName, "ContainerName", { "type": "string", "pattern": CONTAINER_NAME_PATTERN });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        assert_eq!(bytes("8GiB"), Ok(Bytes(8 << 30)));
        assert_eq!(bytes("8 GB"), Ok(Bytes(8_000_000_000)));
        assert_eq!(bytes("1.5Gi"), Ok(Bytes(3 << 29)));
        assert!(bytes("8 parsecs").is_err());
        assert!(bytes("8").is_err(), "eight bytes are a forgotten unit");
        assert!(bytes("999999999TB").is_err());
    }

    #[test]
    fn durations_add_up() {
        assert_eq!(span("2h30m").map(|span| span.seconds), Ok(9_000));
        assert_eq!(span("7d").map(|span| span.seconds), Ok(604_800));
        assert!(span("h").is_err());
        assert!(span("4").is_err());
        assert!(span("").is_err());
        assert!(span("4é").is_err());
        assert!(span("99999999999999999999d").is_err());
    }

    #[test]
    fn token_counts_follow_vllm() {
        assert_eq!(tokens("16K"), Ok(Tokens(16_384)));
        assert_eq!(tokens("16k"), Ok(Tokens(16_000)));
        assert!(tokens("-1").is_err());
        assert!(tokens("9999999999999K").is_err());
    }
}
