//! What a name that nobody knows was meant to be.

/// How alike two names must be for one to be taken for the other.
const ALIKE: f64 = 0.7;

/// How to mend `unknown`: the known name most like it, or all of them.
pub(super) fn suggest<'a>(unknown: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let closest = known
        .clone()
        .map(|name| (strsim::normalized_damerau_levenshtein(name, unknown), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((likeness, name)) if likeness > ALIKE => format!("did you mean `{name}`?"),
        Some(_) => format!("take one of: {}", known.collect::<Vec<_>>().join(", ")),
        None => "remove it: there is none yet".into(),
    }
}
