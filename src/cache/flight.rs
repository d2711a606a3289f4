//! Single flight: however many ask for a key at once, it is loaded once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::oneshot;
use tracing::Instrument;

use super::entry::Ticket;
use crate::db::inherit_usage;
use crate::error::{Error, Result};
use crate::telemetry::panic;

type Outcome = Result<Option<Bytes>>;

/// A load under way, which any number may await.
pub(super) type Flight = Shared<BoxFuture<'static, Outcome>>;

/// What is loaded, and what the lookup saw in its place: after a removal that is a tombstone, so
/// nobody joins a load begun before.
type Route = (String, Ticket);

/// Longest a load may take; others wait for it, so it must end. Above what the
/// database's own timeouts add up to by default.
const LOAD_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<Route, Flight>>>);

impl Flights {
    /// Joins the load on this route, or begins it with `load`; `keep` stores what came of it after
    /// those who wait have it.
    pub(super) fn join<K>(
        &self,
        route: Route,
        load: impl Future<Output = Outcome> + Send + 'static,
        keep: impl FnOnce(Bytes) -> K + Send + 'static,
    ) -> Flight
    where
        K: Future<Output = ()> + Send,
    {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&route) {
            return flight.clone();
        }
        let (tell, told) = oneshot::channel();
        let flight = told
            .map(|outcome| outcome.unwrap_or_else(|_| Err(Error::internal("the load was dropped"))))
            .boxed()
            .shared();
        flights.insert(route.clone(), flight.clone());
        let landing = Landing { flights: self.clone(), route, flight: flight.clone() };
        let task = async move {
            let load = tokio::time::timeout(LOAD_TIMEOUT, panic::catch(load));
            let outcome = match load.await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panicked)) => Err(Error::internal(panicked)),
                Err(_) => Err(Error::Timeout),
            };
            let body = outcome.as_ref().ok().cloned().flatten();
            // Nobody waits for a background refresh.
            let _ = tell.send(outcome);
            if let Some(body) = body {
                keep(body).await;
            }
            drop(landing);
        };
        tokio::spawn(inherit_usage(task).in_current_span());
        flight
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Route, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a flight off the board when it ends, a panic included, unless it is another's by then.
struct Landing {
    flights: Flights,
    route: Route,
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        if flights.get(&self.route).is_some_and(|there| there.ptr_eq(&self.flight)) {
            flights.remove(&self.route);
        }
    }
}
