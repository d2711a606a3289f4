//! What each route does.

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use headers::{CacheControl, HeaderMapExt, IfNoneMatch};
use metrics::counter;
use uuid::Uuid;

use super::model::{Plan, PlanInput, PlanPage, PlanPatch, PlanQuery};
use super::{CREATED, store};
use crate::cache::{Cache, Key};
use crate::db::Db;
use crate::error::{Error, Result};
use crate::extract::{IfMatch, Json, Path, Query, Valid};
use crate::telemetry::timed;

/// Lists plans, newest first, a page at a time.
#[utoipa::path(
    get,
    path = "",
    tag = "plans",
    params(PlanQuery),
    responses(
        (status = 200, body = PlanPage, headers(
            ("Link" = String, description = "The next page, `rel=\"next\"`; absent on the last")
        )),
        (status = 400, description = "A parameter does not fit; `errors` names it"),
    )
)]
pub(super) async fn list(
    State(db): State<Db>,
    OriginalUri(uri): OriginalUri,
    Valid(Query(query)): Valid<Query<PlanQuery>>,
) -> Result<Response> {
    let plans = timed("plans.list", store::list(&db, &query)).await?;
    Ok(PlanPage::cut(plans, query.limit.into(), |plan| plan.id).answer(&uri))
}

/// Creates a plan.
#[utoipa::path(
    post,
    path = "",
    tag = "plans",
    responses(
        (status = 201, body = Plan, headers(
            ("Location" = String, description = "Where the plan is"),
            ("ETag" = String, description = "The plan's version")
        )),
        (status = 422, description = "The plan breaks a rule; `errors` names each"),
    )
)]
pub(super) async fn create(
    State(db): State<Db>,
    OriginalUri(uri): OriginalUri,
    Valid(Json(input)): Valid<Json<PlanInput>>,
) -> Result<Response> {
    let plan = Plan::new(input);
    store::insert(&db, &plan).await?;
    counter!(CREATED).increment(1);
    let location = [(header::LOCATION, format!("{}/{}", uri.path(), plan.id))];
    Ok((StatusCode::CREATED, location, answer(plan)).into_response())
}

/// Reads a plan.
#[utoipa::path(
    get,
    path = "/{id}",
    tag = "plans",
    params(
        ("id" = Uuid, Path, description = "The plan's id"),
        ("If-None-Match" = Option<String>, Header, example = "\"1\"", description = "ETags that the client has")
    ),
    responses(
        (status = 200, body = Plan, headers(("ETag" = String, description = "The plan's version"))),
        (status = 304, description = "The client has the current version", headers(
            ("ETag" = String, description = "The plan's version")
        )),
        (status = 400, description = "The id is not a UUID"),
        (status = 404, description = "There is no such plan"),
    )
)]
pub(super) async fn get(
    State(db): State<Db>,
    State(cache): State<Cache>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response> {
    let load = async move { Ok(store::find(&db, id).await?) };
    let plan: Plan = cache.get_or_load(&key(id), load).await?.ok_or(Error::NotFound("plan"))?;
    let held = headers.typed_get::<IfNoneMatch>();
    if held.is_some_and(|held| !held.precondition_passes(&plan.etag())) {
        return Ok((StatusCode::NOT_MODIFIED, validators(&plan)).into_response());
    }
    Ok(answer(plan))
}

/// Replaces a plan, whole.
#[utoipa::path(
    put,
    path = "/{id}",
    tag = "plans",
    params(
        ("id" = Uuid, Path, description = "The plan's id"),
        ("If-Match" = String, Header, example = "\"1\"", description = "The ETag of the version this replaces")
    ),
    responses(
        (status = 200, body = Plan, headers(("ETag" = String, description = "The new version"))),
        (status = 404, description = "There is no such plan"),
        (status = 412, description = "It has changed since"),
        (status = 422, description = "The plan breaks a rule; `errors` names each"),
        (status = 428, description = "`If-Match` is missing"),
    )
)]
pub(super) async fn replace(
    State(db): State<Db>,
    State(cache): State<Cache>,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Valid(Json(input)): Valid<Json<PlanInput>>,
) -> Result<Response> {
    change(&db, cache, id, &if_match, |_| Ok(input)).await.map(answer)
}

/// Changes parts of a plan, by JSON merge patch (RFC 7396).
#[utoipa::path(
    patch,
    path = "/{id}",
    tag = "plans",
    params(
        ("id" = Uuid, Path, description = "The plan's id"),
        ("If-Match" = String, Header, example = "\"1\"", description = "The ETag of the version this changes")
    ),
    request_body(content = PlanPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = Plan, headers(("ETag" = String, description = "The new version"))),
        (status = 404, description = "There is no such plan"),
        (status = 412, description = "It has changed since"),
        (status = 422, description = "The outcome breaks a rule; `errors` names each"),
        (status = 428, description = "`If-Match` is missing"),
    )
)]
pub(super) async fn patch(
    State(db): State<Db>,
    State(cache): State<Cache>,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    patch: PlanPatch,
) -> Result<Response> {
    change(&db, cache, id, &if_match, |plan| patch.apply(&plan.into())).await.map(answer)
}

/// Deletes a plan; with `If-Match`, only that version.
#[utoipa::path(
    delete,
    path = "/{id}",
    tag = "plans",
    params(
        ("id" = Uuid, Path, description = "The plan's id"),
        ("If-Match" = Option<String>, Header, example = "\"1\"", description = "The ETag of the version to delete")
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, description = "The id is not a UUID"),
        (status = 404, description = "There is no such plan"),
        (status = 412, description = "It has changed since"),
    )
)]
pub(super) async fn delete(
    State(db): State<Db>,
    State(cache): State<Cache>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<StatusCode> {
    let if_match = IfMatch::optional(&headers)?;
    let mut tx = db.begin().await?;
    let plan = store::find_in(&mut tx, id).await?.ok_or(Error::NotFound("plan"))?;
    if let Some(if_match) = if_match {
        if_match.check(&plan.etag())?;
    }
    if !store::delete(&mut tx, id, plan.version).await? {
        return Err(Error::PreconditionFailed);
    }
    tx.commit_then(async move { cache.remove(&key(id)).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads, checks, edits and writes a plan in one transaction, then forgets its cached copy.
async fn change(
    db: &Db,
    cache: Cache,
    id: Uuid,
    if_match: &IfMatch,
    edit: impl FnOnce(Plan) -> Result<PlanInput>,
) -> Result<Plan> {
    let mut tx = db.begin().await?;
    let current = store::find_in(&mut tx, id).await?.ok_or(Error::NotFound("plan"))?;
    if_match.check(&current.etag())?;
    let next = current.revised(edit(current.clone())?);
    // Another may have changed it since it was read: this one is then as stale as its If-Match.
    if !store::update(&mut tx, &next).await? {
        return Err(Error::PreconditionFailed);
    }
    tx.commit_then(async move { cache.remove(&key(id)).await }).await?;
    Ok(next)
}

fn key(id: Uuid) -> Key {
    Key::new("plans", id)
}

fn answer(plan: Plan) -> Response {
    (validators(&plan), Json(plan)).into_response()
}

/// Clients may keep a plan, and ask each time whether it is still the current one.
fn validators(plan: &Plan) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.typed_insert(plan.etag());
    headers.typed_insert(CacheControl::new().with_private().with_no_cache());
    headers
}
