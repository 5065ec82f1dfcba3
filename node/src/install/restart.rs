//! Restarting containerd, which reads its configuration at no other time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use tracing::info;
use zbus::Connection;
use zbus::zvariant::OwnedObjectPath;

/// How long a restart may take; systemd's own limits are 90 s for the end and 90 s for the start.
const DEADLINE: Duration = Duration::from_secs(200);
/// How long somebody may take who restarts it by hand.
const BY_HAND: Duration = Duration::from_secs(24 * 3600);

/// Who restarts containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restart {
    /// systemd, asked to restart the first of these units that runs: of containerd, or of the k3s or RKE2 that it is a
    /// part of.
    Systemd(Vec<String>),
    /// An administrator: we wait for it.
    ByHand,
}

impl FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "by-hand" => Ok(Self::ByHand),
            Some(("systemd", units)) if units.split(',').all(|unit| unit.ends_with(".service")) => {
                Ok(Self::Systemd(units.split(',').map(str::to_owned).collect()))
            }
            _ => Err("expected systemd:UNIT.service or by-hand".to_owned()),
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd(units) => write!(f, "systemd:{}", units.join(",")),
            Self::ByHand => f.write_str("by-hand"),
        }
    }
}

impl Restart {
    /// Restarts it, and returns when it runs; an administrator is only asked.
    pub async fn now(&self) -> Result<()> {
        match self {
            Self::Systemd(units) => {
                let restart = tokio::time::timeout(DEADLINE, restart(units)).await;
                let unit = restart
                    .with_context(|| format!("{self} did not restart within {} s", DEADLINE.as_secs()))
                    .flatten()?;
                info!(unit, "containerd restarted");
            }
            Self::ByHand => info!("restart containerd now: this waits for it"),
        }
        Ok(())
    }

    /// How long to wait for it, when whoever is asked needs `least` himself.
    pub fn patience(&self, least: Duration) -> Duration {
        match self {
            Self::Systemd(_) => least,
            Self::ByHand => BY_HAND,
        }
    }
}

/// What is asked of systemd (org.freedesktop.systemd1(5)).
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    /// The object of a unit that systemd has loaded.
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    /// Queues a restart; returns the job.
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Asks for signals.
    fn subscribe(&self) -> zbus::Result<()>;

    /// A job has ended: `done`, `failed`, `timeout`, …
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

/// What systemd says of one unit.
#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    /// `active`, `inactive`, `failed`, …
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
}

/// The first unit that runs, or should: one that has just failed is restarted with its old configuration.
async fn choose<'a>(bus: &Connection, systemd: &ManagerProxy<'_>, units: &'a [String]) -> Result<&'a str> {
    if let [unit] = units {
        return Ok(unit);
    }
    for unit in units {
        let Ok(path) = systemd.get_unit(unit).await else { continue };
        let found = UnitProxy::builder(bus).path(path)?.build().await?;
        if found.active_state().await? != "inactive" {
            return Ok(unit);
        }
    }
    bail!("none of {} runs", units.join(", "))
}

/// The system bus by its own path: the usual one begins with `/var/run`, which images without a system lack.
async fn system_bus() -> zbus::Result<Connection> {
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS");
    let address = address.as_deref().unwrap_or("unix:path=/run/dbus/system_bus_socket");
    zbus::connection::Builder::address(address)?.build().await
}

/// Has systemd restart a unit, and waits for the end of that job; which one it was. systemd's own socket would need no
/// bus, but its answers there name a sender that zbus takes for an impossible one.
async fn restart(units: &[String]) -> Result<String> {
    let bus =
        system_bus().await.context("cannot reach the system bus: is /run/dbus/system_bus_socket there?")?;
    let systemd = ManagerProxy::new(&bus).await.context("cannot speak to systemd")?;
    let unit = choose(&bus, &systemd, units).await.context("systemd runs no containerd")?;
    systemd.subscribe().await.context("systemd tells nothing")?;
    let mut ended = systemd.receive_job_removed().await.context("systemd tells nothing")?;
    let job = systemd.restart_unit(unit, "replace").await;
    let job = job.with_context(|| format!("systemd does not restart {unit}"))?;
    while let Some(signal) = ended.next().await {
        let signal = signal.args().context("systemd is not understood")?;
        match signal.result.as_str() {
            _ if signal.job != job => {}
            "done" => return Ok(unit.to_owned()),
            other => bail!("{unit} did not start again ({other}): `journalctl -u {unit}` says why"),
        }
    }
    bail!("the system bus hung up while {unit} restarted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_restart_are_named() {
        for text in ["systemd:containerd.service", "systemd:k3s.service,k3s-agent.service", "by-hand"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        assert!("systemd:".parse::<Restart>().is_err() && "reboot".parse::<Restart>().is_err());
    }
}
