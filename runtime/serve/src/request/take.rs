//! Taking typed values out of a JSON object, with errors that name the field.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// A JSON object whose fields are taken one by one. `null` counts as not given.
pub(crate) trait Take {
    /// Any value.
    fn value(&mut self, name: &str) -> Option<Value>;

    fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(wrong(name, "`true` or `false`")),
        }
    }

    fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "a string")),
        }
    }

    fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(wrong(name, "an object")),
        }
    }

    fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(wrong(name, "a list")),
        }
    }

    fn integer(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let found = whole(&value).and_then(|number| u64::try_from(number).ok());
        match found.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, &format!("a whole number, {least} to {most}"))),
        }
    }

    /// A number of tokens.
    fn size(&mut self, name: &str, least: u64) -> Result<Option<usize>, ApiError> {
        let found = self.integer(name, least, u64::from(i32::MAX.cast_unsigned()))?;
        Ok(found.map(|number| usize::try_from(number).unwrap_or(usize::MAX)))
    }

    /// A number for which `fits` holds.
    fn number(&mut self, name: &str, fits: impl Fn(f64) -> bool, wanted: &str) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.as_f64().filter(|number| fits(*number)) {
            Some(number) => Ok(Some(number as f32)),
            None => Err(wrong(name, &format!("a number, {wanted}"))),
        }
    }
}

impl Take for Map<String, Value> {
    fn value(&mut self, name: &str) -> Option<Value> {
        self.shift_remove(name).filter(|value| !value.is_null())
    }
}

/// A whole number, also if it is written with a fraction of zero, which JSON Schema takes for an integer.
pub(super) fn whole(value: &Value) -> Option<i128> {
    if let Some(number) = value.as_i64() {
        return Some(i128::from(number));
    }
    if let Some(number) = value.as_u64() {
        return Some(i128::from(number));
    }
    // Beyond 2^53 a fraction is not told apart.
    let number = value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0)?;
    Some(number as i128)
}

/// A token id.
pub(super) fn token(value: &Value) -> Option<u32> {
    whole(value).and_then(|number| u32::try_from(number).ok())
}

pub(super) fn wrong(name: &str, wanted: &str) -> ApiError {
    ApiError::invalid(name, format!("`{name}` must be {wanted}."))
}

/// The object in a body.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::body("The body must be a JSON object.")),
        // Says where, and quotes nothing of the body.
        Err(error) => Err(ApiError::body(format!("The body is no JSON: {error}."))),
    }
}
