//! What Prometheus reads, as its own tool judges it.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::service::Service;

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say_of_a_scrape() {
    let service = Service::start([("REDIS_URL", "redis://127.0.0.1:1")]).await;
    let plan = service.plan("A plan").await;
    for path in [plan.as_str(), "/api/v1/plans", "/nowhere"] {
        service.get(path).await;
    }
    service.management("/metrics").await;
    let metrics = service.metrics().await;

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool cannot be started: it comes with Prometheus");
    promtool.stdin.take().unwrap().write_all(metrics.0.as_bytes()).unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    assert!(verdict.status.success() && verdict.stderr.is_empty(), "{verdict:?}");
}
