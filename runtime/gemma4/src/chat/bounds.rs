//! Filters and methods that would fill memory with spaces in one instruction, kept to widths that make sense.

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat;

/// The largest width, precision or count.
const WIDTH: u64 = 10_000;

/// Puts checks before the filters that take a width.
pub(super) fn add_filters(environment: &mut Environment<'_>) {
    environment.add_filter("batch", counted(Value::from_function(filters::batch)));
    environment.add_filter("indent", counted(Value::from_function(filters::indent)));
    environment.add_filter("slice", counted(Value::from_function(filters::slice)));
    let format = Value::from_function(filters::format);
    environment.add_filter("format", move |state: &mut State, arguments: Rest<Value>| -> Result<Value, Error> {
        check(arguments.first().and_then(Value::as_str).is_some_and(|text| percent_fields(text).any(is_wide)))?;
        format.call(state, &arguments)
    });
}

/// The methods of Python's types.
pub(super) fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    check(name == "format" && value.as_str().is_some_and(|text| brace_fields(text).any(is_wide)))?;
    pycompat::unknown_method_callback(state, value, name, arguments)
}

/// A filter whose arguments are counts.
fn counted(filter: Value) -> impl Fn(&mut State, Rest<Value>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state, arguments| {
        let given = arguments.get(1..).unwrap_or_default();
        let named = given.iter().filter(|argument| argument.kind() == ValueKind::Map);
        let named = named.flat_map(|map| {
            let names = map.try_iter().into_iter().flatten();
            names.filter_map(|name| map.get_item(&name).ok())
        });
        let wide =
            |count: &Value| count.is_integer() && count.as_i64().is_none_or(|count| count.unsigned_abs() > WIDTH);
        check(given.iter().cloned().chain(named).any(|count| wide(&count)))?;
        filter.call(state, &arguments)
    }
}

fn check(too_wide: bool) -> Result<(), Error> {
    let error =
        || Error::new(ErrorKind::InvalidOperation, format!("a width of more than {WIDTH}, or one from an argument"));
    if too_wide { Err(error()) } else { Ok(()) }
}

/// Whether a field asks for more than [`WIDTH`], or for a width that an argument gives.
fn is_wide(field: &str) -> bool {
    let mut numbers = field.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    field.contains('*') || numbers.any(|digits| digits.parse().map_or(true, |width: u64| width > WIDTH))
}

/// What stands between `%` and the letter of a field, names in parentheses aside.
fn percent_fields(text: &str) -> impl Iterator<Item = &str> {
    text.split('%').skip(1).map(|field| {
        let unnamed = field.strip_prefix('(').and_then(|field| field.split_once(')'));
        let field = unnamed.map_or(field, |(_, field)| field);
        field.split(char::is_alphabetic).next().unwrap_or_default()
    })
}

/// What stands between `:` and `}` of a field in braces; a `*` where another field follows within it.
fn brace_fields(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|field| match field.split_once('}') {
        Some((field, _)) => field.split_once(':').map(|(_, format)| format),
        None => field.contains(':').then_some("*"),
    })
}
