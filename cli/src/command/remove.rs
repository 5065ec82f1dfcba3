//! `cloister rm`.

use anyhow::{Result, bail};

use crate::args::{Global, RmArgs};
use crate::output;
use crate::paths::Root;
use crate::vm::Vms;

/// Removes what ended machines have left: record and logs.
pub async fn run(global: &Global, args: &RmArgs) -> Result<()> {
    let vms = Vms::new(Root::find(global)?.run());
    let mut failed = false;
    for name in &args.names {
        match remove(&vms, name, args.force).await {
            Ok(()) => output::print(&format!("{name}\n"))?,
            Err(error) => {
                eprintln!("cloister: {error:#}");
                failed = true;
            }
        }
    }
    if failed { bail!("not everything was removed") } else { Ok(()) }
}

async fn remove(vms: &Vms, name: &str, force: bool) -> Result<()> {
    let (folder, record) = vms.find(name)?;
    if record.status.is_live() {
        if !force {
            bail!("the microVM {name} is {}: stop it first, or add --force", record.status);
        }
        super::stop::end(&folder, &record).await?;
    }
    vms.remove(&folder)
}
