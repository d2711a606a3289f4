//! The sample resource, on both engines.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::both_engines;
use crate::support::TestApp;

async fn created(app: &TestApp, name: &str) -> Value {
    let plan = json!({"name": name, "start_date": "2027-03-01", "end_date": "2027-05-31"});
    let answer = app.post("/api/v1/plans").json(&plan).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    answer.json().await.unwrap()
}

fn path(plan: &Value) -> String {
    format!("/api/v1/plans/{}", plan["id"].as_str().unwrap())
}

both_engines! {
    async fn a_created_plan_is_where_its_location_says(app) {
        let plan = json!({"name": "Spring", "description": "All of it", "start_date": "2027-03-01",
            "end_date": "2027-03-01", "status": "active"});
        let answer = app.post("/api/v1/plans").json(&plan).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(answer.headers()["etag"], "\"1\"");
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let written: Value = answer.json().await.unwrap();

        let read = app.get(&location).send().await.unwrap();
        assert_eq!(read.headers()["etag"], "\"1\"");
        let read: Value = read.json().await.unwrap();
        assert_eq!(read, written, "to the microsecond, on either engine");
        for (member, value) in plan.as_object().unwrap() {
            assert_eq!(&read[member], value);
        }
    }

    async fn a_client_that_has_it_is_told_so(app) {
        let plan = created(&app, "Spring").await;
        let held = app.get(&path(&plan)).header("if-none-match", "\"1\"").send().await.unwrap();
        assert_eq!(held.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(held.headers()["etag"], "\"1\"");
        assert!(held.text().await.unwrap().is_empty());
        let other = app.get(&path(&plan)).header("if-none-match", "\"2\"").send().await.unwrap();
        assert_eq!(other.status(), StatusCode::OK);
    }

    async fn a_change_is_seen_by_the_next_read(app) {
        let plan = created(&app, "Spring").await;
        let cached: Value = app.get(&path(&plan)).send().await.unwrap().json().await.unwrap();
        assert_eq!(cached["name"], "Spring");
        let change = json!({"name": "Summer", "start_date": "2027-06-01", "end_date": "2027-06-02"});
        let changed =
            app.put(&path(&plan)).header("if-match", "\"1\"").json(&change).send().await.unwrap();
        assert_eq!(changed.status(), StatusCode::OK);
        assert_eq!(changed.headers()["etag"], "\"2\"");
        let read: Value = app.get(&path(&plan)).send().await.unwrap().json().await.unwrap();
        assert_eq!(read["name"], "Summer");
        assert_eq!(read["description"], Value::Null);
        assert_eq!(read["version"], 2);
        assert_eq!(read["created_at"], plan["created_at"]);
    }
}
