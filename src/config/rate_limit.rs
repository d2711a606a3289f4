//! Quotas: how often a caller may call, by class of route.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Policies;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    pub enabled: bool,
    /// Of routes that name no other class.
    pub default: Policies,
    /// Of credentials that fail, by address; and of routes that take passwords or codes.
    pub auth: Policies,
    /// Of what is costly.
    pub strict: Policies,
    /// Who has no quota: networks as CIDRs, and principals such as `key:ci` or `user:alice`.
    pub exempt: Vec<String>,
    /// What becomes of a request when Redis does not answer. The class `auth` is `local` all the
    /// same, unless it is itself set to `deny`.
    pub on_store_failure: OnStoreFailure,
    /// More classes by name, and other settings for those above.
    pub classes: BTreeMap<String, ClassConfig>,
}

/// One class. What is unset is as it is for the class `default`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassConfig {
    /// Required of a class that is not one of the three above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Policies>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyBy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_store_failure: Option<OnStoreFailure>,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyBy {
    /// One principal's, through whichever credential; an anonymous caller's by address.
    #[default]
    Principal,
    /// One API key's; of a caller without one as for `principal`.
    ApiKey,
    /// One client address's.
    Ip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStoreFailure {
    /// Counted in this process until Redis is back.
    #[default]
    Local,
    /// Refused with 429.
    Deny,
    /// Let through, uncounted.
    Allow,
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            default: Policies::new(100, 60),
            auth: Policies::new(5, 60),
            strict: Policies::new(3, 60),
            exempt: Vec::new(),
            on_store_failure: OnStoreFailure::Local,
            classes: BTreeMap::new(),
        }
    }
}

impl RateLimitConfig {
    /// The classes that are always there.
    pub const BUILT_IN: [&str; 3] = ["default", "auth", "strict"];

    /// The names of all classes.
    pub fn classes(&self) -> BTreeSet<String> {
        Self::BUILT_IN.map(str::to_owned).into_iter().chain(self.classes.keys().cloned()).collect()
    }
}
