//! Counts in Redis, which all processes share.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use deadpool_redis::redis::Script;

use super::Cost;
use super::caller::Subject;
use super::class::Window;
use super::verdict::Verdict;
use crate::redis::Redis;

/// Looks at all windows, then counts in each if every one has room.
///
/// KEYS[1] is a hash with a count `n<length>` and an end `e<length>` for each window. ARGV is the
/// cost, then length (ms) and quota of each window. The answer has, for each window, what was
/// counted before and the time left (ms), none when it had not begun. Time is Redis's own, so
/// that no process's clock counts. As in memory, the millisecond that has begun is not counted as
/// time that has gone by.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
         local now = time[1] * 1000 + math.floor(time[2] / 1000)
         local cost = tonumber(ARGV[1])
         local answer, changes, fits, last = {}, {}, true, 0
         for i = 2, #ARGV, 2 do
             local length, quota = ARGV[i], tonumber(ARGV[i + 1])
             local seen = redis.call('HMGET', KEYS[1], 'n' .. length, 'e' .. length)
             local count, finish = tonumber(seen[1] or 0), tonumber(seen[2] or 0)
             local left = finish - now
             if left <= 0 then
                 count, left, finish = 0, 0, now + 1 + length
             end
             fits = fits and count < quota
             last = math.max(last, finish)
             answer[#answer + 1] = {count, left}
             changes[#changes + 1], changes[#changes + 2] = 'n' .. length, count + cost
             changes[#changes + 1], changes[#changes + 2] = 'e' .. length, finish
         end
         if fits and cost > 0 then
             redis.call('HSET', KEYS[1], unpack(changes))
             -- Never sooner than it was: another release may count in longer windows.
             if redis.call('PTTL', KEYS[1]) < last - now then
                 redis.call('PEXPIREAT', KEYS[1], last)
             end
         end
         return answer",
    )
});

pub(super) struct Shared {
    redis: Arc<Redis>,
}

impl Shared {
    pub(super) fn new(redis: Arc<Redis>) -> Self {
        Self { redis }
    }

    /// `None` when Redis did not say; the request may have been counted all the same.
    pub(super) async fn look(
        &self,
        class: &str,
        subject: &Subject<'_>,
        windows: &[Window],
        cost: Cost,
    ) -> Option<Verdict> {
        let live = self.redis.live()?;
        let mut script = LOOK.key(self.redis.key(&key(class, subject)));
        script.arg(cost.requests());
        for Window { policy, .. } in windows {
            script.arg(policy.window.as_secs() * 1000).arg(policy.quota);
        }
        // Half, because a request that waited here in vain goes on to ask the cache.
        let budget = self.redis.budget() / 2;
        let ask = async move |mut redis| script.invoke_async::<Vec<(u32, u64)>>(&mut redis).await;
        let seen = self.redis.ask(&live, budget, ask).await?;
        let before = windows.iter().zip(seen).map(|(window, (count, left))| {
            window.with_count(count, (left > 0).then(|| Duration::from_millis(left)))
        });
        let mut verdict = Verdict::before_counting(before.collect());
        if verdict.allowed {
            for window in &mut verdict.windows {
                window.remaining -= cost.requests();
            }
        }
        Some(verdict)
    }
}

/// Braces as Redis Cluster has them. A subject may be any text, but it comes last, and no class's
/// name has a colon: so no two keys are alike.
fn key(class: &str, subject: &Subject<'_>) -> String {
    format!("ratelimit:{{{class}:{subject}}}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn no_subject_can_write_itself_another_ones_key() {
        let ip = Ipv4Addr::LOCALHOST;
        let subjects = [
            Subject::Principal("b"),
            Subject::Principal("principal:b"),
            Subject::Principal("b}:{a:principal:b"),
            Subject::Principal("ip:127.0.0.1"),
            Subject::ApiKey("b"),
            Subject::Ip(ip.into()),
        ];
        let classes = ["a", "a-principal", "principal"];
        let keys: HashSet<_> = classes
            .into_iter()
            .flat_map(|class| subjects.iter().map(move |subject| key(class, subject)))
            .collect();
        assert_eq!(keys.len(), classes.len() * subjects.len());
        assert!(keys.contains("ratelimit:{a:principal:b}"));
    }
}
