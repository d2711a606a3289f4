//! The principals file: which roles API keys, subjects and groups have, what a role may do, and who
//! has quotas of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::{Table, Value};

use super::Known;
use super::scopes::{self, Refused, Scopes};
use super::spelling::suggest;
use crate::config::{Fault, Faults, Policies};

const TABLES: [&str; 5] = ["roles", "keys", "subjects", "groups", "limits"];

/// The file, with every role replaced by its scopes.
#[derive(Debug, Default)]
pub(super) struct Principals {
    /// By an API key's name.
    pub keys: BTreeMap<String, Scopes>,
    /// By a token's `sub`.
    pub subjects: BTreeMap<String, Scopes>,
    /// By a group in a token.
    pub groups: BTreeMap<String, Scopes>,
    /// By a principal's id, then by class.
    pub limits: BTreeMap<String, BTreeMap<String, Policies>>,
}

/// Everything that is wrong with the file.
pub fn check(path: &Path, known: &Known<'_>) -> Vec<Fault> {
    read(path, known).err().map(|faults| faults.0).unwrap_or_default()
}

/// Reads the file.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn read(path: &Path, known: &Known<'_>) -> Result<Principals, Faults> {
    let source = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let fix = "correct APP_AUTH__PRINCIPALS_FILE, or let the service's user read the file";
            let (key, problem) =
                ("auth.principals_file".into(), format!("cannot be read: {error}"));
            return Err(Faults(vec![Fault { key, source, problem, fix: fix.into() }]));
        }
    };
    parse(source, &text, known)
}

fn parse(source: String, text: &str, known: &Known<'_>) -> Result<Principals, Faults> {
    let mut reader = Reader { source, known, roles: BTreeMap::new(), faults: Vec::new() };
    let principals = match text.parse() {
        Ok(file) => reader.principals(&file),
        Err(error) => {
            reader.unreadable(text, &error);
            Principals::default()
        }
    };
    if reader.faults.is_empty() { Ok(principals) } else { Err(Faults(reader.faults)) }
}

struct Reader<'a> {
    source: String,
    known: &'a Known<'a>,
    roles: BTreeMap<String, Scopes>,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn principals(&mut self, file: &Table) -> Principals {
        for name in file.keys().filter(|name| !TABLES.contains(&name.as_str())) {
            self.fault(name, "there is no such table", suggest(name, TABLES.into_iter()));
        }
        // The others name them.
        self.roles = self.roles(file);
        Principals {
            keys: self.grants(file, "keys"),
            subjects: self.grants(file, "subjects"),
            groups: self.grants(file, "groups"),
            limits: self.limits(file),
        }
    }

    fn roles(&mut self, file: &Table) -> BTreeMap<String, Scopes> {
        let mut roles = BTreeMap::new();
        for (role, value) in self.table("roles", file.get("roles")) {
            let key = join("roles", &role);
            let words = self.words(&key, &value);
            for Refused { problem, fix } in
                words.iter().filter_map(|word| scopes::refused(word, self.known.scopes))
            {
                self.fault(&key, problem, fix);
            }
            roles.insert(role, Scopes::lenient(words));
        }
        roles
    }

    fn grants(&mut self, file: &Table, table: &str) -> BTreeMap<String, Scopes> {
        let mut grants = BTreeMap::new();
        for (name, value) in self.table(table, file.get(table)) {
            let key = join(table, &name);
            let mut scopes = Scopes::default();
            for role in self.words(&key, &value) {
                match self.roles.get(role) {
                    Some(granted) => scopes.extend(granted),
                    None => {
                        let fix = suggest(role, self.roles.keys().map(String::as_str));
                        self.fault(&key, format!("there is no role `{role}`"), fix);
                    }
                }
            }
            grants.insert(name, scopes);
        }
        grants
    }

    fn limits(&mut self, file: &Table) -> BTreeMap<String, BTreeMap<String, Policies>> {
        let mut limits = BTreeMap::new();
        for (principal, value) in self.table("limits", file.get("limits")) {
            let key = join("limits", &principal);
            if !is_principal(&principal) {
                let fix = "write it as `key:ci` or `user:alice`, in quotes";
                self.fault(&key, format!("`{principal}` is not a principal"), fix);
            }
            let classes = self.table(&key, Some(&value));
            limits.insert(principal, self.policies(&key, &classes));
        }
        limits
    }

    fn policies(&mut self, table: &str, classes: &Table) -> BTreeMap<String, Policies> {
        let mut policies = BTreeMap::new();
        for (class, value) in classes {
            let key = join(table, class);
            if !self.known.classes.contains(class) {
                let fix = suggest(class, self.known.classes.iter().map(String::as_str));
                self.fault(&key, format!("there is no class `{class}`"), fix);
            }
            let limit = value.as_str().ok_or_else(|| format!("`{value}` is not text"));
            match limit.and_then(str::parse) {
                Ok(limit) => drop(policies.insert(class.clone(), limit)),
                Err(problem) => self.fault(&key, problem, "write it as `\"1000/minute\"`"),
            }
        }
        policies
    }

    fn table(&mut self, key: &str, value: Option<&Value>) -> Table {
        match value {
            None => Table::new(),
            Some(Value::Table(table)) => table.clone(),
            Some(other) => {
                let problem = format!("it is {}, not a table", in_words(other));
                self.fault(key, problem, format!("begin it with `[{key}]`"));
                Table::new()
            }
        }
    }

    fn words<'v>(&mut self, key: &str, value: &'v Value) -> Vec<&'v str> {
        let words = value.as_array().map(|list| list.iter().map(Value::as_str).collect());
        words.flatten().unwrap_or_else(|| {
            self.fault(key, "it is not a list of names", "write it as `[\"one\", \"two\"]`");
            Vec::new()
        })
    }

    fn unreadable(&mut self, text: &str, error: &toml::de::Error) {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let fix = "write it as TOML has it: names with other characters than letters, digits, \
                   `-` and `_` in quotes";
        self.fault(&format!("line {line}"), error.message().to_owned(), fix);
    }

    fn fault(&mut self, key: &str, problem: impl Into<String>, fix: impl Into<String>) {
        let (problem, fix) = (problem.into(), fix.into());
        self.faults.push(Fault { key: key.into(), source: self.source.clone(), problem, fix });
    }
}

fn is_principal(name: &str) -> bool {
    let kinds = ["key:", "user:"];
    kinds.iter().any(|kind| name.strip_prefix(kind).is_some_and(|name| !name.is_empty()))
}

/// A key as TOML writes it.
fn join(table: &str, name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(bare) {
        format!("{table}.{name}")
    } else {
        format!("{table}.{name:?}")
    }
}

fn in_words(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

impl Principals {
    /// What the owner of this API key's name may do, beside what the key itself grants.
    pub(super) fn of_key(&self, name: &str) -> Scopes {
        self.keys.get(name).cloned().unwrap_or_default()
    }

    /// The same of a token's subject and its groups.
    pub(super) fn of_user(&self, subject: &str, groups: &BTreeSet<String>) -> Scopes {
        let mut scopes = self.subjects.get(subject).cloned().unwrap_or_default();
        let granted = groups.iter().filter_map(|group| self.groups.get(group));
        granted.for_each(|granted| scopes.extend(granted));
        scopes
    }

    /// Quotas of this principal's own.
    pub(super) fn limits_of(&self, id: &str) -> BTreeMap<String, Policies> {
        self.limits.get(id).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Principals, Vec<Fault>> {
        let scopes = BTreeSet::from(["plans:read", "plans:write"]);
        let classes = BTreeSet::from(["default".to_owned(), "strict".to_owned()]);
        let known = Known { scopes: &scopes, classes: &classes };
        parse("principals.toml".into(), text, &known).map_err(|faults| faults.0)
    }

    #[test]
    fn roles_become_scopes() {
        let principals = read(
            r#"
            [roles]
            reader = ["plans:read"]
            writer = ["plans:write"]
            admin = ["*"]
            [keys]
            ci = ["reader", "writer"]
            [subjects]
            "auth0|123" = ["reader"]
            [groups]
            platform = ["admin"]
            [limits."key:ci"]
            default = "1000/minute, 5000/hour"
            "#,
        )
        .unwrap();
        assert_eq!(principals.of_key("ci").to_text(), "plans:read plans:write");
        assert_eq!(principals.of_key("cj").to_text(), "");
        let groups = BTreeSet::from(["platform".into(), "other".into()]);
        assert_eq!(principals.of_user("auth0|123", &groups).to_text(), "* plans:read");
        let limits = principals.limits_of("key:ci");
        assert_eq!(limits["default"].to_string(), "1000/minute, 5000/hour");
        assert!(principals.limits_of("user:ci").is_empty());
    }

    #[test]
    fn an_empty_file_is_a_file() {
        assert!(read("").unwrap().keys.is_empty());
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let faults = read(
            r#"
            rolls = {}
            groups = "platform"
            [roles]
            reader = ["plans:reed", "Plans"]
            writer = "plans:write"
            [keys]
            ci = ["raeder"]
            "a b" = [1]
            [limits.ci]
            default = "0/minute"
            [limits."key:ci"]
            defualt = 5
            "#,
        )
        .unwrap_err();
        let told: Vec<_> = faults.iter().map(|f| (&*f.key, &*f.problem, &*f.fix)).collect();
        let list = "write it as `[\"one\", \"two\"]`";
        let policy = "write it as `\"1000/minute\"`";
        assert_eq!(
            told,
            [
                ("rolls", "there is no such table", "did you mean `roles`?"),
                (
                    "roles.reader",
                    "no route asks for the scope `plans:reed`",
                    "did you mean `plans:read`?"
                ),
                (
                    "roles.reader",
                    "`Plans` is not a scope",
                    "write it as `plans:read`, `plans:*` or `*`, in lower case"
                ),
                ("roles.writer", "it is not a list of names", list),
                ("keys.\"a b\"", "it is not a list of names", list),
                ("keys.ci", "there is no role `raeder`", "did you mean `reader`?"),
                ("groups", "it is text, not a table", "begin it with `[groups]`"),
                (
                    "limits.ci",
                    "`ci` is not a principal",
                    "write it as `key:ci` or `user:alice`, in quotes"
                ),
                ("limits.ci.default", "`0/minute` lets nobody through", policy),
                (
                    "limits.\"key:ci\".defualt",
                    "there is no class `defualt`",
                    "did you mean `default`?"
                ),
                ("limits.\"key:ci\".defualt", "`5` is not text", policy),
            ]
        );
        assert!(faults.iter().all(|fault| fault.source == "principals.toml"));
    }

    #[test]
    fn what_is_not_toml_is_told_by_its_line() {
        let faults = read("[roles]\nreader = [\"plans:read\"]\nauth0|1 = []\n").unwrap_err();
        assert_eq!((faults.len(), &*faults[0].key), (1, "line 3"));
    }
}
