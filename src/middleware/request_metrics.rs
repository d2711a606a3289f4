//! The histograms of requests, by route, method and status.
//!
//! To find three of them by their labels costs more than to write to them, so each thread keeps those
//! that it has found. There are as many as there are series: routes, methods and statuses are few.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use metrics::{Histogram, histogram};

/// Those of one route, method and status.
pub(super) struct RequestMetrics {
    pub duration: Histogram,
    pub sent: Histogram,
    /// Only of requests that have a body.
    received: OnceCell<Histogram>,
    labels: Labels,
}

type Labels = [(&'static str, String); 3];

/// Of one route.
type ByMethodAndStatus = Vec<((&'static str, u16), RequestMetrics)>;

thread_local! {
    static FOUND: RefCell<HashMap<String, ByMethodAndStatus>> = RefCell::default();
}

pub(super) fn of(
    route: &str,
    method: &'static str,
    status: u16,
    write: impl FnOnce(&RequestMetrics),
) {
    FOUND.with_borrow_mut(|routes| {
        if !routes.contains_key(route) {
            routes.insert(route.to_owned(), Vec::new());
        }
        let Some(found) = routes.get_mut(route) else { return };
        let at = found.iter().position(|(labels, _)| *labels == (method, status));
        let at = at.unwrap_or_else(|| {
            found.push(((method, status), RequestMetrics::find(route, method, status)));
            found.len() - 1
        });
        write(&found[at].1);
    });
}

impl RequestMetrics {
    fn find(route: &str, method: &'static str, status: u16) -> Self {
        let labels: Labels = [
            ("http_request_method", method.to_owned()),
            ("http_route", route.to_owned()),
            ("http_response_status_code", status.to_string()),
        ];
        Self {
            duration: histogram!("http_server_request_duration_seconds", &labels),
            sent: histogram!("http_server_response_body_size_bytes", &labels),
            received: OnceCell::new(),
            labels,
        }
    }

    pub fn received(&self) -> &Histogram {
        let find = || histogram!("http_server_request_body_size_bytes", &self.labels);
        self.received.get_or_init(find)
    }
}
