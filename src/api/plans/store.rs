//! The plans' SQL, one for both engines.

use uuid::Uuid;

use super::model::{Plan, PlanQuery, PlanStatus};
use crate::db::{Db, Tx, containing};
use crate::on;

/// By name, never `*`: a statement prepared with `*` fails once a migration has added a column, and
/// the release that is running must outlive the migrations of the next.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, description, start_date, end_date, status, created_at, updated_at, \
             version FROM plans ",
            $rest
        )
    };
}

const FIND: &str = select!("WHERE id = $1");

/// The largest UUID: a first page begins before nothing.
const BEFORE_ALL: Uuid = Uuid::max();

/// What is cached from here must not be a replica's yesterday.
pub(super) async fn find(db: &Db, id: Uuid) -> sqlx::Result<Option<Plan>> {
    on!(db.primary(), |conn| sqlx::query_as(FIND).bind(id).fetch_optional(conn).await)
}

pub(super) async fn find_in(tx: &mut Tx, id: Uuid) -> sqlx::Result<Option<Plan>> {
    on!(tx, |conn| sqlx::query_as(FIND).bind(id).fetch_optional(conn).await)
}

/// One more than `query.limit`, newest first. Walks the primary key, or the index by status, from
/// the cursor on, so a page's cost does not grow with its depth.
pub(super) async fn list(db: &Db, query: &PlanQuery) -> sqlx::Result<Vec<Plan>> {
    const ALL: &str = select!(
        "WHERE id < $1 AND LOWER(name) LIKE LOWER($2) ESCAPE '\\'
         ORDER BY id DESC LIMIT $3"
    );
    const BY_STATUS: &str = select!(
        "WHERE id < $1 AND LOWER(name) LIKE LOWER($2) ESCAPE '\\' AND status = $4
         ORDER BY id DESC LIMIT $3"
    );
    let cursor = query.cursor.unwrap_or(BEFORE_ALL);
    let name = query.q.as_deref().map_or("%".into(), containing);
    let limit = i64::from(query.limit) + 1;
    match query.status.map(PlanStatus::as_str) {
        None => on!(db.reader(), |conn| sqlx::query_as(ALL)
            .bind(cursor)
            .bind(name)
            .bind(limit)
            .fetch_all(conn)
            .await),
        Some(status) => on!(db.reader(), |conn| sqlx::query_as(BY_STATUS)
            .bind(cursor)
            .bind(name)
            .bind(limit)
            .bind(status)
            .fetch_all(conn)
            .await),
    }
}

pub(super) async fn insert(db: &Db, plan: &Plan) -> sqlx::Result<()> {
    on!(db.writer(), |conn| sqlx::query(
        "INSERT INTO plans
            (id, name, description, start_date, end_date, status, created_at, updated_at, version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    )
    .bind(plan.id)
    .bind(&plan.name)
    .bind(&plan.description)
    .bind(plan.start_date)
    .bind(plan.end_date)
    .bind(plan.status.as_str())
    .bind(plan.created_at)
    .bind(plan.updated_at)
    .bind(plan.version)
    .execute(conn)
    .await
    .map(drop))
}

/// Writes the next version of a plan; says whether it was still the next.
pub(super) async fn update(tx: &mut Tx, plan: &Plan) -> sqlx::Result<bool> {
    on!(tx, |conn| sqlx::query(
        "UPDATE plans
         SET name = $3, description = $4, start_date = $5, end_date = $6, status = $7,
             updated_at = $8, version = $2
         WHERE id = $1 AND version = $2 - 1"
    )
    .bind(plan.id)
    .bind(plan.version)
    .bind(&plan.name)
    .bind(&plan.description)
    .bind(plan.start_date)
    .bind(plan.end_date)
    .bind(plan.status.as_str())
    .bind(plan.updated_at)
    .execute(conn)
    .await
    .map(|done| done.rows_affected() == 1))
}

/// Deletes a plan of this version; says whether it still was.
pub(super) async fn delete(tx: &mut Tx, id: Uuid, version: i64) -> sqlx::Result<bool> {
    on!(tx, |conn| sqlx::query("DELETE FROM plans WHERE id = $1 AND version = $2")
        .bind(id)
        .bind(version)
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}
