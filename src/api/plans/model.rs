//! A plan, and what clients may say of one.

use chrono::{DateTime, NaiveDate, Utc};
use garde::Validate;
use headers::ETag;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::api::page::Page;
use crate::api::rules::{four_digit_year, printable};
use crate::db;
use crate::extract::MergePatch;

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, FromRow, ToSchema)]
pub struct Plan {
    /// UUIDv7: sorts by time of creation.
    #[schema(example = "0199f3c2-7b1e-7cc0-b7a5-3f1d2f3c4d5e")]
    pub id: Uuid,
    #[schema(example = "Spring launch")]
    pub name: String,
    // Always sent, if only as null.
    #[schema(required, example = "Everything for the launch in May")]
    pub description: Option<String>,
    #[schema(example = "2027-03-01")]
    pub start_date: NaiveDate,
    #[schema(example = "2027-05-31")]
    pub end_date: NaiveDate,
    #[sqlx(try_from = "String")]
    pub status: PlanStatus,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// Counts changes, from 1. The ETag is this number.
    #[schema(example = 1)]
    pub version: i64,
}

/// Where a plan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlanStatus {
    #[default]
    Draft,
    Active,
    Completed,
    Archived,
}

/// What a client says of a plan, whole.
#[derive(Debug, Clone, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanInput {
    #[garde(length(chars, min = 1, max = 200), custom(printable))]
    #[schema(min_length = 1, max_length = 200, example = "Spring launch")]
    pub name: String,
    #[garde(inner(length(chars, max = 2000), custom(printable)))]
    #[schema(max_length = 2000, example = "Everything for the launch in May")]
    pub description: Option<String>,
    #[garde(custom(four_digit_year))]
    #[schema(example = "2027-03-01")]
    pub start_date: NaiveDate,
    /// Not before `start_date`.
    #[garde(custom(four_digit_year), custom(not_before(&self.start_date)))]
    #[schema(example = "2027-05-31")]
    pub end_date: NaiveDate,
    #[garde(skip)]
    #[serde(default)]
    pub status: PlanStatus,
}

/// Some plans.
pub type PlanPage = Page<Plan>;

/// What a client says of a plan, in part.
pub type PlanPatch = MergePatch<PlanInput>;

/// Which plans, and how many at once.
#[derive(Debug, Clone, Deserialize, Validate, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PlanQuery {
    /// Plans a page.
    #[garde(range(min = 1, max = 100))]
    #[serde(default = "PlanQuery::default_limit")]
    #[param(minimum = 1, maximum = 100, default = 20)]
    pub limit: u8,
    /// Where to go on: the `next_cursor` of the page before.
    #[garde(skip)]
    pub cursor: Option<Uuid>,
    /// Only plans that stand so.
    #[garde(skip)]
    pub status: Option<PlanStatus>,
    /// Only plans with this in their name, whatever the case.
    // Short: a search reads every name, and a long pattern is slow to match.
    #[garde(inner(length(chars, min = 1, max = 64), custom(printable)))]
    #[param(min_length = 1, max_length = 64)]
    pub q: Option<String>,
}

impl Plan {
    pub fn new(input: PlanInput) -> Self {
        let now = db::now();
        let PlanInput { name, description, start_date, end_date, status } = input;
        Self {
            id: Uuid::now_v7(),
            name,
            description,
            start_date,
            end_date,
            status,
            created_at: now,
            updated_at: now,
            version: 1,
        }
    }

    /// The next version of this plan.
    pub fn revised(&self, input: PlanInput) -> Self {
        let Self { id, created_at, version, .. } = *self;
        Self { id, created_at, version: version + 1, ..Self::new(input) }
    }

    pub fn etag(&self) -> ETag {
        etag(self.version)
    }
}

/// `"7"` for version 7.
#[expect(clippy::expect_used, reason = "a number in quotes is an ETag")]
fn etag(version: i64) -> ETag {
    format!("\"{version}\"").parse().expect("a number in quotes is an ETag")
}

impl From<Plan> for PlanInput {
    fn from(plan: Plan) -> Self {
        let Plan { name, description, start_date, end_date, status, .. } = plan;
        Self { name, description, start_date, end_date, status }
    }
}

impl PlanQuery {
    const fn default_limit() -> u8 {
        20
    }
}

impl PlanStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Archived => "archived",
        }
    }
}

impl TryFrom<String> for PlanStatus {
    type Error = serde::de::value::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::deserialize(text.into_deserializer())
    }
}

fn not_before(start_date: &NaiveDate) -> impl FnOnce(&NaiveDate, &()) -> garde::Result {
    move |end_date, ()| {
        if end_date < start_date {
            return Err(garde::Error::new("end_date must be on or after start_date"));
        }
        Ok(())
    }
}
