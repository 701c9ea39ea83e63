//! Jinja as Hugging Face sets it up for chat templates.

use std::fmt::Write;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use super::bounds;
use super::json::{self, Style};

/// Instructions that one prompt may take. 3,000 short messages fit in the template of the seeded model, whose work grows with
/// their square, as it looks ahead from each.
const FUEL: u64 = 50_000_000;

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment without templates.
pub(super) fn new() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    // transformers: `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])`.
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(bounds::method);
    environment.set_fuel(Some(FUEL));
    // Errors would carry the template's variables, which may be nested deeper than whoever drops the error has stack for.
    environment.set_debug(false);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    environment.add_filter("tojson", tojson);
    bounds::add_filters(&mut environment);
    Ok(environment)
}

/// `json.dumps` with the arguments and defaults of Hugging Face's filter: nothing is escaped for HTML.
fn tojson(value: &Value, ensure_ascii: Option<bool>, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let ensure_ascii =
        ensure_ascii.map_or_else(|| options.get::<Option<bool>>("ensure_ascii"), |given| Ok(Some(given)))?;
    let indent = indent.map_or_else(|| options.get::<Option<Value>>("indent"), |given| Ok(Some(given)))?;
    let separators = options.get::<Option<Value>>("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?;
    options.assert_all_used()?;
    let style = Style::new(ensure_ascii.unwrap_or(false), indent, separators, sort_keys.unwrap_or(false))?;
    json::dumps(value, &style).map(Value::from)
}

/// A time in UTC by a format of `strftime`.
pub(super) fn strftime(now: SystemTime, format: &str) -> Result<String, Error> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    };
    let now = Timestamp::try_from(now).map_err(|error| wrong(&error))?.to_zoned(TimeZone::UTC);
    let mut text = String::new();
    write!(text, "{}", now.strftime(format)).map_err(|error| wrong(&error))?;
    Ok(text)
}
