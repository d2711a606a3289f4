//! Rules that the input of many a resource keeps, for `#[garde(custom(…))]`; of an `Option`, within
//! `inner(custom(…))`.

use chrono::{Datelike, NaiveDate};

/// PostgreSQL cannot keep NUL, and nobody wants the rest in a name.
pub fn printable(text: &str, _: &()) -> garde::Result {
    match text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        Some(c) => {
            Err(garde::Error::new(format!("holds the control character {}", c.escape_unicode())))
        }
        None => Ok(()),
    }
}

/// What ISO 8601 writes as `YYYY-MM-DD`.
pub fn four_digit_year(date: &NaiveDate, _: &()) -> garde::Result {
    match date.year() {
        1..=9999 => Ok(()),
        _ => Err(garde::Error::new("the year must be 0001 to 9999")),
    }
}
