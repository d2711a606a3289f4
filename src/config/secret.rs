//! Values that cannot be printed.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

pub(super) const REDACTED: &str = "[redacted]";

/// A secret. Printing, logging or serialising it gives `[redacted]`; [`Secret::expose`] is the
/// one way to its text. It reads from a string or from a number, so that a password of digits
/// only works in a TOML file too.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                // A secret that was printed and read back would be the same for everyone.
                if text.contains(REDACTED) {
                    return Err(E::custom("it was redacted"));
                }
                Ok(Secret::new(text))
            }
            fn visit_i64<E>(self, digits: i64) -> Result<Secret, E> {
                Ok(Secret::new(digits.to_string()))
            }
            fn visit_u64<E>(self, digits: u64) -> Result<Secret, E> {
                Ok(Secret::new(digits.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A URL that may hold a password. It prints with the password, and any secret-looking query
/// value, redacted.
#[derive(Clone)]
pub struct SecretUrl(Secret);

impl SecretUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(Secret::new(url))
    }

    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// The part before `:`, or nothing when there is none.
    pub fn scheme(&self) -> &str {
        self.expose().split_once(':').map_or("", |(scheme, _)| scheme)
    }

    /// The password between `:` and `@`, as written: empty when it is given empty.
    pub(super) fn password(&self) -> Option<&str> {
        let (_, rest) = self.expose().split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (userinfo, _) = authority.rsplit_once('@')?;
        userinfo.split_once(':').map(|(_, password)| password)
    }

    fn redacted(&self) -> String {
        let Ok(mut url) = Url::parse(self.expose()) else {
            return REDACTED.to_owned();
        };
        if url.password().is_some() && url.set_password(Some("REDACTED")).is_err() {
            return REDACTED.to_owned();
        }
        if url.query().is_some() {
            url.set_query(Some("REDACTED"));
        }
        url.to_string().replace("REDACTED", REDACTED)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Secret::deserialize(deserializer).map(Self)
    }
}
