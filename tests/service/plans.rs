//! The sample resource, on both engines.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use reqwest::header::{ETAG, IF_MATCH, IF_NONE_MATCH, LINK};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::both_engines;
use crate::errors::{faults, problem};
use crate::support::{Engine, TestApp};

const PLANS: &str = "/api/v1/plans";

/// A valid plan with some members replaced.
fn plan(changes: Value) -> Value {
    let mut plan = json!({"name": "Spring", "start_date": "2027-03-01", "end_date": "2027-05-31"});
    plan.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    plan
}

async fn created(app: &TestApp, changes: Value) -> Value {
    let answer = app.post(PLANS).json(&plan(changes)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    answer.json().await.unwrap()
}

async fn named(app: &TestApp, name: &str) -> Value {
    created(app, json!({"name": name})).await
}

fn path(plan: &Value) -> String {
    format!("{PLANS}/{}", plan["id"].as_str().unwrap())
}

async fn sent(request: RequestBuilder) -> Response {
    request.send().await.unwrap()
}

async fn read(app: &TestApp, path: &str) -> Value {
    let answer = sent(app.get(path)).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.json().await.unwrap()
}

async fn patched(app: &TestApp, plan: &Value, patch: Value) -> Response {
    let request = app.patch(&path(plan)).header(IF_MATCH, "*");
    sent(request.header("content-type", "application/merge-patch+json").body(patch.to_string()))
        .await
}

/// The names on a page, in order.
async fn names(app: &TestApp, query: &str) -> Vec<String> {
    let page = read(app, &format!("{PLANS}?{query}")).await;
    let items = page["items"].as_array().unwrap();
    items.iter().map(|plan| plan["name"].as_str().unwrap().to_owned()).collect()
}

async fn refused_query(app: &TestApp, query: &str) -> Value {
    problem(sent(app.get(&format!("{PLANS}?{query}"))).await, 400).await
}

async fn refused(app: &TestApp, changes: Value) -> Value {
    problem(sent(app.post(PLANS).json(&plan(changes))).await, 422).await
}

/// Where `Link` says the next page is.
fn next(page: &Response) -> Option<String> {
    let link = page.headers().get(LINK)?.to_str().unwrap();
    let target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
    Some(target.to_owned())
}

both_engines! {
    async fn a_column_that_the_next_release_adds_breaks_nothing(app) {
        let id = path(&named(&app, "Spring").await);
        let ask = async || for path in [PLANS, &id] {
            assert_eq!(app.get(path).send().await.unwrap().status(), StatusCode::OK, "{path}");
        };
        ask().await;
        let added = plinth::on!(app.state.db.writer(), |conn| {
            sqlx::query("ALTER TABLE plans ADD COLUMN owner TEXT").execute(conn).await
                .map(|done| done.rows_affected())
        });
        added.unwrap();
        ask().await;
    }

    async fn another_kind_of_patch_is_not_taken_for_a_merge_patch(app) {
        let plan = path(&named(&app, "Spring").await);
        for kind in ["application/json-patch+json", "text/plain"] {
            let patch = app.patch(&plan).header(IF_MATCH, "*").header("content-type", kind).body("[]");
            let problem = patch.send().await.unwrap();
            assert_eq!(problem.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
            assert!(problem.text().await.unwrap().contains("application/merge-patch+json"));
        }
    }

    async fn a_created_plan_is_where_its_location_says(app) {
        let plan = json!({"name": "Spring", "description": "All of it", "start_date": "2027-03-01",
            "end_date": "2027-03-01", "status": "active"});
        let answer = sent(app.post(PLANS).json(&plan)).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(answer.headers()[ETAG], "\"1\"");
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let written: Value = answer.json().await.unwrap();

        let answer = sent(app.get(&location)).await;
        assert_eq!(answer.headers()[ETAG], "\"1\"");
        let read: Value = answer.json().await.unwrap();
        assert_eq!(read, written, "to the microsecond, on either engine");
        for (member, value) in plan.as_object().unwrap() {
            assert_eq!(&read[member], value);
        }
        assert_eq!(read["id"].as_str().unwrap().parse::<Uuid>().unwrap().get_version_num(), 7);
    }

    async fn what_is_left_out_has_a_default(app) {
        let plan = created(&app, json!({})).await;
        assert_eq!(plan["status"], "draft");
        assert_eq!(plan["description"], Value::Null);
        assert_eq!(plan["version"], 1);
        assert_eq!(plan["created_at"], plan["updated_at"]);
    }

    async fn a_client_that_has_it_is_told_so(app) {
        let plan = named(&app, "Spring").await;
        for held in ["\"1\"", "W/\"1\"", "\"7\", \"1\"", "*"] {
            let answer = sent(app.get(&path(&plan)).header(IF_NONE_MATCH, held)).await;
            assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{held}");
            assert_eq!(answer.headers()[ETAG], "\"1\"");
            assert!(answer.text().await.unwrap().is_empty());
        }
        for other in ["\"2\"", "1", "nonsense"] {
            let answer = sent(app.get(&path(&plan)).header(IF_NONE_MATCH, other)).await;
            assert_eq!(answer.status(), StatusCode::OK, "{other}");
        }
    }

    async fn a_change_is_seen_by_the_next_read(app) {
        let was = created(&app, json!({"description": "All", "status": "active"})).await;
        let path = path(&was);
        assert_eq!(read(&app, &path).await["name"], "Spring", "and now it is cached");
        let change = plan(json!({"name": "Summer", "end_date": "2027-06-02"}));
        let changed = sent(app.put(&path).header(IF_MATCH, "\"1\"").json(&change)).await;
        assert_eq!(changed.status(), StatusCode::OK);
        assert_eq!(changed.headers()[ETAG], "\"2\"");
        let read = read(&app, &path).await;
        assert_eq!(read, changed.json::<Value>().await.unwrap());
        assert_eq!(read["name"], "Summer");
        assert_eq!(read["description"], Value::Null);
        assert_eq!(read["status"], "draft");
        assert_eq!(read["version"], 2);
        assert_eq!(read["created_at"], was["created_at"]);
        let time = |plan: &Value| plan["updated_at"].as_str().unwrap().parse::<DateTime<Utc>>();
        assert!(time(&read).unwrap() > time(&was).unwrap());
    }

    async fn a_patch_changes_what_it_names_and_null_removes(app) {
        let plan = created(&app, json!({"description": "All", "status": "active"})).await;
        let answer = patched(&app, &plan, json!({"name": "Summer"})).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[ETAG], "\"2\"");
        let now = read(&app, &path(&plan)).await;
        assert_eq!(now["name"], "Summer");
        for kept in ["description", "status", "start_date", "end_date", "created_at"] {
            assert_eq!(now[kept], plan[kept], "{kept}");
        }
        let answer = patched(&app, &plan, json!({"description": null})).await;
        assert_eq!(answer.json::<Value>().await.unwrap()["description"], Value::Null);
        assert_eq!(read(&app, &path(&plan)).await["description"], Value::Null);
    }

    async fn the_outcome_of_a_patch_is_held_to_the_rules(app) {
        let plan = named(&app, "Spring").await;
        let cases = [
            (json!({"name": null}), "/name", "MISSING_FIELD"),
            (json!({"start_date": null}), "/start_date", "MISSING_FIELD"),
            (json!({"name": ""}), "/name", "INVALID_VALUE"),
            (json!({"name": "a\u{0}b"}), "/name", "INVALID_VALUE"),
            (json!({"color": "red"}), "/color", "UNKNOWN_FIELD"),
            (json!({"id": Uuid::now_v7()}), "/id", "UNKNOWN_FIELD"),
            (json!({"version": 9}), "/version", "UNKNOWN_FIELD"),
            (json!({"status": "lost"}), "/status", "INVALID_VALUE"),
            // The start it is before is the one the plan already has.
            (json!({"end_date": "2027-02-28"}), "/end_date", "INVALID_VALUE"),
            (json!({"start_date": "2028-01-01"}), "/end_date", "INVALID_VALUE"),
        ];
        for (patch, pointer, code) in cases {
            let problem = problem(patched(&app, &plan, patch).await, 422).await;
            assert_eq!(faults(&problem), [(pointer, code)]);
        }
        assert_eq!(read(&app, &path(&plan)).await, plan, "none of them changed anything");
    }

    async fn a_change_names_the_version_it_is_based_on(app) {
        let current = named(&app, "Spring").await;
        let path = &path(&current);
        let changes = || [app.put(path).json(&plan(json!({}))), app.patch(path).json(&json!({}))];
        for request in changes() {
            problem(sent(request).await, 428).await;
        }
        for stale in ["\"2\"", "\"0\"", "W/\"1\"", "\"2\", W/\"1\""] {
            for request in changes() {
                let answer = sent(request.header(IF_MATCH, stale)).await;
                assert_eq!(problem(answer, 412).await["code"], "PRECONDITION_FAILED", "{stale}");
            }
        }
        for malformed in ["1", "", "\"1", "w/\"1\"", "\"1\" \"2\"", "*, \"1\""] {
            for request in changes() {
                let problem = problem(sent(request.header(IF_MATCH, malformed)).await, 400).await;
                assert_eq!(faults(&problem), [("header/if-match", "INVALID_VALUE")], "{malformed}");
            }
        }
        assert_eq!(read(&app, path).await["version"], 1);
        for (right, version) in [("\"1\"", 2), ("\"7\",\"2\"", 3), ("*", 4)] {
            let answer = sent(app.patch(path).json(&json!({})).header(IF_MATCH, right)).await;
            assert_eq!(answer.json::<Value>().await.unwrap()["version"], version, "{right}");
        }
    }

    async fn what_is_deleted_is_gone(app) {
        let plan = named(&app, "Spring").await;
        read(&app, &path(&plan)).await;
        let answer = sent(app.delete(&path(&plan))).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert!(answer.text().await.unwrap().is_empty());
        for request in [app.get(&path(&plan)), app.delete(&path(&plan))] {
            assert_eq!(problem(sent(request).await, 404).await["detail"], "there is no such plan");
        }
        assert!(names(&app, "").await.is_empty());
    }

    async fn a_delete_may_name_a_version(app) {
        let plan = named(&app, "Spring").await;
        let delete = |version| sent(app.delete(&path(&plan)).header(IF_MATCH, version));
        problem(delete("\"2\"").await, 412).await;
        problem(delete("W/\"1\"").await, 412).await;
        problem(delete("1").await, 400).await;
        assert_eq!(delete("\"1\"").await.status(), StatusCode::NO_CONTENT);
        problem(delete("\"1\"").await, 404).await;
        let other = named(&app, "Summer").await;
        let any = sent(app.delete(&path(&other)).header(IF_MATCH, "*")).await;
        assert_eq!(any.status(), StatusCode::NO_CONTENT);
    }

    async fn of_many_changes_to_one_version_one_is_made(app) {
        let current = named(&app, "Spring").await;
        for round in 1..=5 {
            let change = |n: usize| {
                let body = plan(json!({"name": format!("{round}.{n}")}));
                sent(app.put(&path(&current)).header(IF_MATCH, format!("\"{round}\"")).json(&body))
            };
            let mut made = Vec::new();
            for answer in join_all((0..8).map(change)).await {
                match answer.status() {
                    StatusCode::OK => made.push(answer.json::<Value>().await.unwrap()),
                    _ => drop(problem(answer, 412).await),
                }
            }
            assert_eq!(made.len(), 1);
            assert_eq!(read(&app, &path(&current)).await, made[0]);
        }
    }

    async fn a_change_and_a_delete_of_one_version_do_not_both_happen(app) {
        for _ in 0..5 {
            let current = named(&app, "Spring").await;
            let path = &path(&current);
            let put = app.put(path).header(IF_MATCH, "\"1\"").json(&plan(json!({})));
            let delete = app.delete(path).header(IF_MATCH, "\"1\"");
            let (put, delete) = tokio::join!(sent(put), sent(delete));
            let outcome = (put.status().as_u16(), delete.status().as_u16());
            assert!(matches!(outcome, (200, 412) | (404 | 412, 204)), "{outcome:?}");
        }
    }

    async fn each_rule_is_told_by_where_and_what(app) {
        let long = "x".repeat(2001);
        let cases = [
            (json!({"name": ""}), "/name", "length is lower than 1"),
            (json!({"name": &long[..201]}), "/name", "length is greater than 200"),
            (json!({"description": long}), "/description", "length is greater than 2000"),
            (json!({"end_date": "2027-02-28"}), "/end_date",
                "end_date must be on or after start_date"),
            (json!({"name": "a\u{7}b"}), "/name", "holds the control character \\u{7}"),
            (json!({"end_date": "+10000-01-01"}), "/end_date", "the year must be 0001 to 9999"),
            (json!({"start_date": "0000-12-31"}), "/start_date", "the year must be 0001 to 9999"),
            (json!({"start_date": "-0001-12-31"}), "/start_date", "the year must be 0001 to 9999"),
        ];
        for (changes, pointer, words) in cases {
            let problem = refused(&app, changes).await;
            assert_eq!(faults(&problem), [(pointer, "INVALID_VALUE")]);
            assert_eq!(problem["errors"][0]["detail"], words);
            assert_eq!(problem["detail"], words);
        }
    }

    async fn every_broken_rule_is_told_at_once(app) {
        let changes = json!({"name": "", "description": "\u{0}", "end_date": "2027-01-01"});
        let problem = refused(&app, changes).await;
        let told: BTreeSet<_> = faults(&problem).into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(told, BTreeSet::from(["/name", "/description", "/end_date"]));
        assert_eq!(problem["detail"], "3 fields break a rule");
    }

    async fn a_date_is_one_of_the_calendar(app) {
        let dates = ["2027-02-30", "2027-13-01", "2027-3-1x", "01/02/2027", "2027-03-01T00Z", ""];
        for date in dates {
            let problem = refused(&app, json!({"end_date": date})).await;
            assert_eq!(faults(&problem), [("/end_date", "INVALID_VALUE")], "{date}");
        }
        let ends = json!({"start_date": "0001-01-01", "end_date": "9999-12-31"});
        let plan = created(&app, ends).await;
        assert_eq!(read(&app, &path(&plan)).await, plan);
    }

    async fn length_is_counted_in_characters(app) {
        let longest = "ü".repeat(200);
        let plan = named(&app, &longest).await;
        assert_eq!(read(&app, &path(&plan)).await["name"], longest);
        let problem = refused(&app, json!({"name": "ü".repeat(201)})).await;
        assert_eq!(faults(&problem), [("/name", "INVALID_VALUE")]);
        created(&app, json!({"description": "🌱".repeat(2000)})).await;
    }

    async fn text_that_no_database_should_see_is_refused(app) {
        for text in ["\u{0}", "a\u{0}", "\u{1b}[31m", "\u{7f}", "\u{85}"] {
            for member in ["name", "description"] {
                let problem = refused(&app, json!({(member): text})).await;
                assert_eq!(faults(&problem), [(&*format!("/{member}"), "INVALID_VALUE")]);
            }
        }
        for (status, escape) in [(422, r"\u0000"), (422, r"\ud800"), (400, r"\x00")] {
            let body = format!(
                r#"{{"name": "{escape}", "start_date": "2027-01-01", "end_date": "2027-01-01"}}"#
            );
            let request = app.post(PLANS).header("content-type", "application/json").body(body);
            problem(sent(request).await, status).await;
        }
        let tidy = "tab\t, line\r\n, '; DROP TABLE plans; --, 🌱, \u{202e}";
        let plan = named(&app, tidy).await;
        assert_eq!(read(&app, &path(&plan)).await["name"], tidy);
    }

    async fn the_newest_come_first(app) {
        for name in ["one", "two", "three"] {
            named(&app, name).await;
        }
        assert_eq!(names(&app, "").await, ["three", "two", "one"]);
        assert_eq!(names(&app, "limit=2").await, ["three", "two"]);
    }

    async fn a_page_holds_1_to_100(app) {
        for n in 0..101 {
            named(&app, &n.to_string()).await;
        }
        for (query, count) in [("limit=1", 1), ("limit=100", 100), ("", 20)] {
            assert_eq!(names(&app, query).await.len(), count, "{query}");
        }
        for limit in ["0", "101", "255", "256", "-1", "1.5", "abc", ""] {
            let problem = refused_query(&app, &format!("limit={limit}")).await;
            assert_eq!(faults(&problem)[0].0, "query/limit", "{limit}");
        }
    }

    async fn the_last_page_says_that_it_is(app) {
        for name in ["one", "two", "three", "four"] {
            named(&app, name).await;
        }
        let first = sent(app.get(&format!("{PLANS}?limit=2"))).await;
        let last = sent(app.get(&next(&first).unwrap())).await;
        let first: Value = first.json().await.unwrap();
        assert_eq!(first["next_cursor"], first["items"][1]["id"]);
        assert_eq!(next(&last), None, "although it is full");
        let last: Value = last.json().await.unwrap();
        assert_eq!(last["items"].as_array().unwrap().len(), 2);
        assert_eq!(last["next_cursor"], Value::Null);
        let empty = read(&app, &format!("{PLANS}?cursor={}", Uuid::nil())).await;
        assert_eq!(empty, json!({"items": [], "next_cursor": null}));
    }

    async fn a_walk_visits_each_once_while_others_come(app) {
        let all = stream::iter(0..250).map(async |n| named(&app, &n.to_string()).await);
        let all = all.buffer_unordered(4).map(|plan| plan["id"].to_string());
        let expected: BTreeSet<_> = all.collect().await;
        let mut visited = Vec::new();
        let mut path = Some(format!("{PLANS}?limit=17&status=draft"));
        while let Some(page) = path {
            let answer = sent(app.get(&page)).await;
            path = next(&answer);
            let page: Value = answer.json().await.unwrap();
            assert_eq!(path.is_none(), page["next_cursor"].is_null());
            let items = page["items"].as_array().unwrap();
            visited.extend(items.iter().map(|plan| plan["id"].to_string()));
            named(&app, "a newcomer").await;
        }
        assert_eq!(visited.len(), 250, "none twice");
        assert!(visited.is_sorted_by(|newer, older| newer > older));
        assert_eq!(visited.into_iter().collect::<BTreeSet<_>>(), expected);
    }

    async fn a_walk_keeps_its_filters(app) {
        for (name, status) in [("a&b 1", "active"), ("a&b 2", "active"), ("a&b 3", "draft"),
            ("other", "active"), ("A&B 4", "active")] {
            created(&app, json!({"name": name, "status": status})).await;
        }
        let first = sent(app.get(&format!("{PLANS}?q=a%26b&limit=2&status=active"))).await;
        let rest = read(&app, &next(&first).unwrap()).await;
        assert_eq!(rest["items"].as_array().unwrap().len(), 1);
        assert_eq!(rest["items"][0]["name"], "a&b 1");
        assert_eq!(rest["next_cursor"], Value::Null);
    }

    async fn plans_are_filtered_by_status(app) {
        for status in ["draft", "active", "completed", "archived"] {
            created(&app, json!({"name": status, "status": status})).await;
        }
        for status in ["draft", "active", "completed", "archived"] {
            assert_eq!(names(&app, &format!("status={status}")).await, [status]);
        }
        for status in ["lost", "", "DRAFT"] {
            let problem = refused_query(&app, &format!("status={status}")).await;
            assert_eq!(faults(&problem), [("query/status", "INVALID_VALUE")]);
        }
    }

    async fn names_are_searched_whatever_the_case_and_wildcards_are_letters(app) {
        for name in ["Spring", "100%", "100 x", "a_b", "axb", r"back\slash", "Über"] {
            named(&app, name).await;
        }
        let cases: [(&str, &[&str]); 10] = [
            ("sPRIN", &["Spring"]),
            ("ring", &["Spring"]),
            ("%25", &["100%"]),
            ("0%25", &["100%"]),
            ("_", &["a_b"]),
            ("a_b", &["a_b"]),
            ("%5C", &[r"back\slash"]),
            ("%5C%25", &[]),
            ("%C3%9Cber", &["Über"]),
            ("'", &[]),
        ];
        for (q, found) in cases {
            assert_eq!(names(&app, &format!("q={q}")).await, found, "{q}");
        }
        for q in ["", "%00", "%1B", &"x".repeat(201)] {
            assert_eq!(faults(&refused_query(&app, &format!("q={q}")).await)[0].0, "query/q");
        }
    }

    async fn a_parameter_nobody_knows_is_refused(app) {
        let problem = refused_query(&app, "limit=2&page=3").await;
        assert_eq!(faults(&problem), [("query/page", "UNKNOWN_FIELD")]);
        let problem = refused_query(&app, "cursor=3").await;
        assert_eq!(faults(&problem), [("query/cursor", "INVALID_VALUE")]);
    }
}

/// Plans enough that reading them all costs more than an index, a few of them archived.
const MANY: &str = "INSERT INTO plans
    SELECT gen_random_uuid(), 'Plan', NULL, '2027-01-01', '2027-01-01',
        CASE WHEN n % 1000 = 0 THEN 'archived' ELSE 'draft' END, NOW(), NOW(), 1
    FROM generate_series(1, 20000) n";

/// What the application last asked PostgreSQL.
const LAST_QUERY: &str = "SELECT query FROM pg_stat_activity
    WHERE datname = CURRENT_DATABASE() AND query LIKE 'SELECT id, name,%FROM plans%'
    ORDER BY query_start DESC LIMIT 1";

/// How an engine goes about a query for a page deep down.
macro_rules! explained {
    ($database:ty, $app:expr, $explain:literal, $column:expr, $query:expr, $status:expr) => {{
        let statement = AssertSqlSafe(format!("{} {}", $explain, $query));
        let deep = Uuid::from_u128(u128::MAX / 10);
        let query = sqlx::query(statement).bind(deep).bind("%").bind(21_i64);
        let query = if let Some(status) = $status { query.bind(status) } else { query };
        let pool = sqlx::Pool::<$database>::connect(&$app.database.url).await.unwrap();
        let rows = query.fetch_all(&pool).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>($column)).collect::<Vec<_>>().join("\n")
    }};
}

/// Both engines in one test: PostgreSQL tells which query is asked, and they share it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deep_page_is_a_range_of_an_index() {
    let Some(postgres) = TestApp::start(Engine::Postgres).await else { return };
    let sqlite = TestApp::start(Engine::Sqlite).await.unwrap();
    let admin = sqlx::PgPool::connect(&postgres.database.url).await.unwrap();
    sqlx::query(MANY).execute(&admin).await.unwrap();
    sqlx::query("ANALYZE plans").execute(&admin).await.unwrap();

    let ways = [
        ("", None, "id<?", "(id < "),
        ("&status=archived", Some("archived"), "status=? AND id<?", "(status = "),
    ];
    for (filter, status, sqlite_range, postgres_range) in ways {
        read(&postgres, &format!("{PLANS}?cursor={}{filter}", Uuid::max())).await;
        let asked: String = sqlx::query_scalar(LAST_QUERY).fetch_one(&admin).await.unwrap();

        let plan = explained!(sqlx::Postgres, postgres, "EXPLAIN", 0, asked, status);
        let range = plan.lines().find(|line| line.contains("Index Cond:"));
        let range = range.unwrap_or_else(|| panic!("{plan}"));
        assert!(range.contains("(id < ") && range.contains(postgres_range), "{plan}");
        assert!(!plan.contains("Sort") && !plan.contains("Seq Scan"), "{plan}");

        let plan = explained!(sqlx::Sqlite, sqlite, "EXPLAIN QUERY PLAN", "detail", asked, status);
        assert!(plan.starts_with("SEARCH plans USING ") && plan.contains(sqlite_range), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}
