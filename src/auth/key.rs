//! What an API key looks like: `prefix_`, 22 characters of 128 random bits, 6 of a checksum.

use sha2::{Digest, Sha256};

/// Digits in base 62 of the largest `u128`, and of the largest `u32`.
const RANDOM: usize = 22;
const CHECKSUM: usize = 6;

/// How much of the random part may be shown, for people to know a key by.
const HINT: usize = 4;

/// An API key in full. It cannot be printed by accident.
pub struct Key {
    text: String,
    random_at: usize,
}

impl Key {
    /// A new one, of the system's randomness.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn generate(prefix: &str) -> Result<Self, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let digits = base62::encode(u128::from_ne_bytes(random));
        let mut text = format!("{prefix}_{digits:0>RANDOM$}");
        text.push_str(&checksum(&text));
        Ok(Self { text, random_at: prefix.len() + 1 })
    }

    /// Takes what could be a key. The checksum tells garbage, and a key that lost a character,
    /// without asking the database.
    pub fn parse(text: &str, prefix: &str) -> Option<Self> {
        let rest = text.strip_prefix(prefix)?.strip_prefix('_')?;
        if rest.len() != RANDOM + CHECKSUM || !rest.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return None;
        }
        let (body, sum) = text.split_at(text.len() - CHECKSUM);
        let right = sum == checksum(body);
        right.then(|| Self { text: text.to_owned(), random_at: prefix.len() + 1 })
    }

    /// The key itself, to be shown once.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What the database keeps in its place. A key is random, so it needs no slow hash: those are
    /// for passwords.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(&self.text[self.random_at..][..RANDOM]);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// How it begins.
    pub fn hint(&self) -> String {
        self.text[..self.random_at + HINT].to_owned()
    }
}

fn checksum(body: &str) -> String {
    format!("{:0>CHECKSUM$}", base62::encode(crc32fast::hash(body.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back() {
        let key = Key::generate("acme-2").unwrap();
        let text = key.expose();
        assert_eq!(text.len(), "acme-2_".len() + 28);
        let read = Key::parse(text, "acme-2").unwrap();
        assert_eq!((read.hash(), read.hint()), (key.hash(), text[..11].to_owned()));
        assert_ne!(Key::generate("acme-2").unwrap().hash(), key.hash());
    }

    /// The format is a promise: keys that were handed out must go on working.
    #[test]
    fn the_format_does_not_change() {
        let text = "plinth_00000000000000000000072l5ghC";
        let hash = "ba449ced4df8f19b2d416c3193934a4468878ba475dbe0c03ed357138a7daab6";
        assert_eq!(Key::parse(text, "plinth").unwrap().hash(), hash);
    }

    #[test]
    fn garbage_is_told_by_its_checksum() {
        let key = Key::generate("plinth").unwrap();
        let good = key.expose();
        for place in 0..good.len() {
            let other = if good.as_bytes()[place] == b'x' { "y" } else { "x" };
            let mut bad = good.to_owned();
            bad.replace_range(place..=place, other);
            assert!(Key::parse(&bad, "plinth").is_none(), "{place}");
        }
        for bad in [&good[1..], &good[..good.len() - 1], "", "plinth_", &format!("{good}0")] {
            assert!(Key::parse(bad, "plinth").is_none(), "{bad}");
        }
        let wide = format!("plinth_{}", "é".repeat(14));
        assert!(Key::parse(&wide, "plinth").is_none());
        assert!(Key::parse(good, "other").is_none());
    }
}
