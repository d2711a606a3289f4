//! Single flight: however many ask for a key at once, it is loaded once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::db::inherit_usage;
use crate::error::{Error, Result};

type Outcome = Result<Option<Bytes>>;

/// A load under way, which any number may await.
pub(super) type Flight = Shared<BoxFuture<'static, Outcome>>;

#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<String, Flight>>>);

impl Flights {
    /// Joins the load of `name`, or begins it with `load`; `keep` stores what came of it after
    /// those who wait have it.
    pub(super) fn join<K>(
        &self,
        name: String,
        load: impl Future<Output = Outcome> + Send + 'static,
        keep: impl FnOnce(Bytes) -> K + Send + 'static,
    ) -> Flight
    where
        K: Future<Output = ()> + Send,
    {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&name) {
            return flight.clone();
        }
        let (tell, told) = oneshot::channel();
        let flight = told
            .map(|outcome| outcome.unwrap_or_else(|_| Err(Error::internal("the load panicked"))))
            .boxed()
            .shared();
        flights.insert(name.clone(), flight.clone());
        let landing = Landing { flights: self.clone(), name, flight: flight.clone() };
        let task = async move {
            let outcome = load.await;
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

    /// Lets nobody join the load under way: what it reads may be older than a change just made.
    pub(super) fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn forget_all(&self, prefix: &str) {
        self.lock().retain(|name, _| !name.starts_with(prefix));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a flight off the board when it ends, a panic included, unless it is another's by then.
struct Landing {
    flights: Flights,
    name: String,
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        if flights.get(&self.name).is_some_and(|there| there.ptr_eq(&self.flight)) {
            flights.remove(&self.name);
        }
    }
}
