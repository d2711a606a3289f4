//! Scopes: what a caller may do, written `plans:read`.

use std::collections::BTreeSet;

use serde::Serialize;
use utoipa::ToSchema;

use super::spelling::suggest;

/// Scopes that were granted. `*` grants every scope, and `plans:*` all that begin with `plans:`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Scopes(BTreeSet<String>);

/// Why a scope cannot be granted, and what to do about it.
pub(super) struct Refused {
    pub problem: String,
    pub fix: String,
}

impl Scopes {
    /// Every scope there is.
    pub fn all() -> Self {
        Self::lenient(["*"])
    }

    /// What is asked for, each a scope of `known` or a pattern for some of them.
    ///
    /// # Errors
    /// One line about the first that cannot be granted, or that there is none.
    pub fn asked<'a>(
        words: impl IntoIterator<Item = &'a str>,
        known: &BTreeSet<&'static str>,
    ) -> Result<Self, String> {
        let scopes: BTreeSet<_> = words.into_iter().map(str::to_owned).collect();
        if scopes.is_empty() {
            return Err("without a scope there is nothing to allow".into());
        }
        match scopes.iter().find_map(|scope| refused(scope, known)) {
            Some(Refused { problem, fix }) => Err(format!("{problem}; {fix}")),
            None => Ok(Self(scopes)),
        }
    }

    /// What of this is a scope. Issuers put other things beside them, such as URLs.
    pub(super) fn lenient<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self(words.into_iter().filter(|word| is_well_formed(word)).map(str::to_owned).collect())
    }

    pub(super) fn extend(&mut self, more: &Self) {
        self.0.extend(more.0.iter().cloned());
    }

    /// Whether they grant this one.
    pub fn allows(&self, scope: &str) -> bool {
        self.iter().any(|granted| grants(granted, scope))
    }

    /// As they were granted, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Parted by blanks, as [`From<String>`] reads them.
    pub(super) fn to_text(&self) -> String {
        self.iter().collect::<Vec<_>>().join(" ")
    }
}

impl From<String> for Scopes {
    fn from(text: String) -> Self {
        Self::lenient(text.split_whitespace())
    }
}

/// Why a scope cannot be granted: it is not one, or no route asks for it.
pub(super) fn refused(scope: &str, known: &BTreeSet<&'static str>) -> Option<Refused> {
    if !is_well_formed(scope) {
        let problem = format!("`{scope}` is not a scope");
        let fix = "write it as `plans:read`, `plans:*` or `*`, in lower case".into();
        return Some(Refused { problem, fix });
    }
    if scope == "*" || known.iter().any(|known| grants(scope, known)) {
        return None;
    }
    let problem = format!("no route asks for the scope `{scope}`");
    Some(Refused { problem, fix: suggest(scope, known.iter().copied()) })
}

/// A pattern's `*` stands at its end, for any text.
fn grants(granted: &str, scope: &str) -> bool {
    granted == scope || granted.strip_suffix('*').is_some_and(|start| scope.starts_with(start))
}

fn is_well_formed(scope: &str) -> bool {
    let word = |word: &str| {
        let letter =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        !word.is_empty() && word.chars().all(letter)
    };
    match scope.strip_suffix('*') {
        Some("") => true,
        Some(start) => start.strip_suffix(':').is_some_and(|start| start.split(':').all(word)),
        None => scope.split(':').all(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_grants_what_it_begins() {
        for (granted, scope, allows) in [
            ("plans:read", "plans:read", true),
            ("plans:read", "plans:write", false),
            ("plans:read", "plans:read:all", false),
            ("plans:*", "plans:write", true),
            ("plans:*", "plans", false),
            ("plans:*", "plansters:read", false),
            ("*", "anything:at-all", true),
            ("*:read", "plans:read", false),
            ("pl*", "plans:read", false),
            ("", "plans:read", false),
        ] {
            assert_eq!(Scopes::lenient([granted]).allows(scope), allows, "{granted}, {scope}");
        }
    }

    #[test]
    fn only_scopes_that_a_route_asks_for_are_granted() {
        let known = BTreeSet::from(["plans:read", "plans:write"]);
        for good in ["plans:read", "plans:*", "*"] {
            assert_eq!(Scopes::asked([good], &known).unwrap().to_text(), good);
        }
        for (wrong, says) in [
            ("plans:reed", "no route asks for the scope `plans:reed`; did you mean `plans:read`?"),
            (
                "users:*",
                "no route asks for the scope `users:*`; take one of: plans:read, plans:write",
            ),
            ("Plans:read", "`Plans:read` is not a scope; write it as"),
            ("plans:", "`plans:` is not a scope"),
            ("", "`` is not a scope"),
        ] {
            let said = Scopes::asked([wrong], &known).unwrap_err();
            assert!(said.starts_with(says), "{said}");
        }
        assert!(Scopes::asked([], &known).is_err());
    }
}
