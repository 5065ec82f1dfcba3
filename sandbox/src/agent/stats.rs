//! Counters and out-of-memory kills.

use cloister_protocol::{limits, v1};

use super::{Agent, QUICK, call};
use crate::error::Error;

/// Out-of-memory kills as they happen.
pub struct OomEvents(tonic::Streaming<v1::OomEvent>);

impl Agent {
    /// The counters of a container's cgroup, or with an empty name those of the whole guest.
    ///
    /// # Errors
    /// When the agent refuses, or answers more than a guest has.
    pub async fn stats(&self, container: &str) -> Result<v1::StatsResponse, Error> {
        const CALL: &str = "read the container's counters";
        let request = v1::StatsRequest { container_id: container.to_owned() };
        let reply = call(CALL, QUICK, self.client.clone().stats(request)).await?;
        check(&reply).map_err(|why| Error::Reply { call: CALL, why })?;
        Ok(reply)
    }

    /// Listens for out-of-memory kills from now on.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn oom_events(&self) -> Result<OomEvents, Error> {
        let request = v1::OomEventsRequest {};
        let stream =
            call("listen for out-of-memory kills", QUICK, self.client.clone().oom_events(request)).await?;
        Ok(OomEvents(stream))
    }
}

impl OomEvents {
    /// The next container that was hit; `None` when the agent ends the stream. The caller compares the name with those
    /// it made: a guest may say anything. Has no deadline.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        const CALL: &str = "listen for out-of-memory kills";
        match self.0.message().await {
            Ok(Some(event)) if limits::is_id(&event.container_id) => Ok(Some(event.container_id)),
            Ok(Some(_)) => Err(Error::Reply { call: CALL, why: "it names a container by no valid id" }),
            Ok(None) => Ok(None),
            Err(status) => Err(Error::call(CALL, &status)),
        }
    }
}

/// Lists are bounded and names printable: they travel on into metrics and the host's own messages.
fn check(stats: &v1::StatsResponse) -> Result<(), &'static str> {
    let word = |name: &String, most: usize| {
        !name.is_empty() && name.len() <= most && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if stats.memory_stat.len() > limits::MEMORY_STATS || !stats.memory_stat.keys().all(|key| word(key, 64)) {
        return Err("its memory counters are too many or have no names");
    }
    if stats.disks.len() > limits::DISKS {
        return Err("it has too many disks");
    }
    let interfaces = &stats.interfaces;
    if interfaces.len() > limits::INTERFACES
        || !interfaces.iter().all(|i| word(&i.name, limits::INTERFACE_BYTES))
    {
        return Err("its interfaces are too many or have no names");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_and_unprintable_names_are_refused() {
        let interface = |name: &str| v1::InterfaceStats { name: name.into(), ..Default::default() };
        let good = v1::StatsResponse {
            memory_stat: [("anon".to_owned(), 1)].into(),
            interfaces: vec![interface("eth0")],
            ..v1::StatsResponse::default()
        };
        assert!(check(&good).is_ok());
        let many = (0..1000).map(|n| (n.to_string(), n)).collect();
        assert!(check(&v1::StatsResponse { memory_stat: many, ..Default::default() }).is_err());
        for name in ["", "a\x1b[2J", "0123456789abcdef"] {
            let bad = v1::StatsResponse { interfaces: vec![interface(name)], ..Default::default() };
            assert!(check(&bad).is_err(), "{name:?}");
        }
        let disks = vec![v1::DiskStats::default(); limits::DISKS + 1];
        assert!(check(&v1::StatsResponse { disks, ..Default::default() }).is_err());
    }
}
