//! Load shed: a bound on the requests that are worked on at once. A service that takes on more than
//! it can do does all of it too late; one that refuses the rest at once goes on doing its best.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::counter;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::client_ip::ClientIp;
use crate::config::ServerConfig;
use crate::error::Error;

/// The places, and who is in them.
pub(super) struct LoadShed {
    places: Semaphore,
    wait: Duration,
    per_client: usize,
    /// Requests in a place or waiting for one, by client. Without a bound of its own, one that sends
    /// many bodies slowly would have all the places.
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// A request's place; dropping it gives it back.
struct Place<'a> {
    _permit: SemaphorePermit<'a>,
    _presence: Presence<'a>,
}

/// A request counted as its client's.
struct Presence<'a> {
    shed: &'a LoadShed,
    client: IpAddr,
}

impl LoadShed {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self {
            places: Semaphore::new(config.max_in_flight.min(Semaphore::MAX_PERMITS)),
            wait: config.queue_timeout,
            per_client: config.max_in_flight_per_client,
            clients: Mutex::default(),
        }
    }

    async fn enter(&self, client: IpAddr) -> Option<Place<'_>> {
        let presence = self.appear(client)?;
        // Whoever finds a place free does not start a timer.
        let permit = match self.places.try_acquire() {
            Ok(permit) => permit,
            Err(_) => tokio::time::timeout(self.wait, self.places.acquire()).await.ok()?.ok()?,
        };
        Some(Place { _permit: permit, _presence: presence })
    }

    fn appear(&self, client: IpAddr) -> Option<Presence<'_>> {
        let mut clients = self.lock();
        let count = clients.entry(client).or_default();
        if *count >= self.per_client {
            return None;
        }
        *count += 1;
        Some(Presence { shed: self, client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let mut clients = self.shed.lock();
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

pub(super) async fn load_shed(
    State(shed): State<Arc<LoadShed>>,
    request: Request,
    next: Next,
) -> Response {
    match shed.enter(ClientIp::of(&request).address()).await {
        Some(_place) => next.run(request).await,
        None => {
            counter!("load_shed_refused_total").increment(1);
            Error::Overloaded.into_response()
        }
    }
}
