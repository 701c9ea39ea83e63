//! A size that Docker does not read.

use super::prelude::*;

rule!("shm-size-invalid", Error, "a size of /dev/shm that Docker does not read");

/// Smaller than this, a unit was forgotten.
const SMALLEST: f64 = 1_048_576.0;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(size) = context.docker().and_then(|docker| docker.shm_size.get()) else { return };
    let message = match bytes(size) {
        None => format!("Docker does not read `{size}` as a size"),
        Some(bytes) if bytes < SMALLEST => format!("`{size}` is {bytes:.0} bytes: a unit is missing"),
        Some(_) => return,
    };
    findings.push(
        RULE.finding(context.at("deploy.docker.shm_size"), message)
            .help("write a number and a unit, such as \"16g\"; k, m and g are powers of 1,024"),
    );
}

/// What Docker reads: a number, then `b` or k, m, g, t or p with `b` or `ib` behind it, in upper or lower case.
fn bytes(size: &str) -> Option<f64> {
    let at = size.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(size.len());
    let (digits, unit) = size.split_at(at);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) || !digits.ends_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number: f64 = digits.parse().ok()?;
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    Some(number * 1024_f64.powi(power))
}
