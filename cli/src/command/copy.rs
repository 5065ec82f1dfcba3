//! `cloister cp`.

mod pack;
mod unpack;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cloister_sandbox::{Agent, Connection};

use crate::args::{CpArgs, Global};
use crate::name;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    /// A path of this machine.
    Here(&'a str),
    /// A tar archive on a standard stream.
    Stream,
    /// A path in a machine.
    There { name: &'a str, path: &'a str },
}

/// Copies into a machine or out of one.
pub async fn run(global: &Global, args: &CpArgs) -> Result<()> {
    match (place(&args.source), place(&args.destination)) {
        (source, Place::There { name, path }) if !matches!(source, Place::There { .. }) => {
            let (_, record, dialer) = super::running(global, name)?;
            let agent = super::agent(name, dialer).await?;
            copy_in(&agent, &record.name, source, path).await
        }
        (Place::There { name, path }, destination) if !matches!(destination, Place::There { .. }) => {
            let (_, record, dialer) = super::running(global, name)?;
            let agent = super::agent(name, dialer).await?;
            copy_out(&agent, &record.name, path, destination).await
        }
        (Place::There { .. }, Place::There { .. }) => {
            bail!("copying from one microVM to another is not possible: copy to this machine first")
        }
        _ => bail!("one of the two must be NAME:PATH; the other is a path of this machine or -"),
    }
}

/// A path with a slash before the first colon, or without a colon, is of this machine, as docker reads it.
fn place(text: &str) -> Place<'_> {
    if text == "-" {
        return Place::Stream;
    }
    match text.split_once(':') {
        Some((name, path)) if name::valid(name).is_ok() => Place::There { name, path },
        _ => Place::Here(text),
    }
}

/// Splits a destination that is not a folder into the folder above and the name the copy gets there.
fn split(path: &str) -> Option<(&str, &str)> {
    match path.rsplit_once('/') {
        Some((folder, name)) if !matches!(name, "" | "." | "..") => {
            Some((if folder.is_empty() { "/" } else { folder }, name))
        }
        _ => None,
    }
}

/// Into the folder at `path`, or as `path` when that is no folder, as docker does.
async fn copy_in(agent: &Agent, container: &str, source: Place<'_>, path: &str) -> Result<()> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let Place::Here(source) = source else {
        return send(agent, container, &path, |mut stream| {
            io::copy(&mut io::stdin().lock(), &mut stream)?;
            stream.shutdown(std::net::Shutdown::Write)
        })
        .await;
    };
    let source = Path::new(source).to_owned();
    std::fs::symlink_metadata(&source).with_context(|| format!("cannot copy {}", source.display()))?;
    let name = pack::own_name(&source)?;
    let first = {
        let source = source.clone();
        send(agent, container, &path, move |stream| pack::pack(&source, &name, stream)).await
    };
    match (first, split(&path)) {
        // The agent looks for the folder before it reads anything.
        (Err(error), Some((folder, name))) if not_a_folder(&error) => {
            let name = name.to_owned();
            send(agent, container, folder, move |stream| pack::pack(&source, &name, stream)).await
        }
        (result, _) => result,
    }
}

fn not_a_folder(error: &anyhow::Error) -> bool {
    use cloister_sandbox::Error;
    matches!(error.downcast_ref::<Error>(), Some(error) if error.is_not_found() || error.is_invalid())
}

/// Sends what `write` writes to be unpacked in a folder of the container.
async fn send(
    agent: &Agent,
    container: &str,
    folder: &str,
    write: impl FnOnce(UnixStream) -> io::Result<()> + Send + 'static,
) -> Result<()> {
    let (id, connection) = agent.open_stream().await?;
    let stream = blocking(connection)?;
    let moving = tokio::task::spawn_blocking(move || write(stream));
    let call = agent.copy_in(container, folder, id);
    // The guest's refusal says more than the broken pipe it leaves.
    call.await?;
    moving.await?.context("cannot send the files")
}

async fn copy_out(agent: &Agent, container: &str, path: &str, destination: Place<'_>) -> Result<()> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let (id, connection) = agent.open_stream().await?;
    let stream = blocking(connection)?;
    let moving = match destination {
        Place::Here(destination) => {
            let destination = Path::new(destination).to_owned();
            tokio::task::spawn_blocking(move || unpack::unpack(stream, &destination))
        }
        _ => tokio::task::spawn_blocking(move || {
            let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            let mut stream = stream;
            io::copy(&mut stream, &mut out)?;
            Ok(())
        }),
    };
    agent.copy_out(container, &path, id).await?;
    moving.await?.context("cannot write the files")
}

fn blocking(connection: Connection) -> Result<UnixStream> {
    let stream = connection.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_as_docker_does() {
        assert_eq!(place("web:/etc/hosts"), Place::There { name: "web", path: "/etc/hosts" });
        assert_eq!(place("./web:1"), Place::Here("./web:1"));
        assert_eq!(place("/a:b"), Place::Here("/a:b"));
        assert_eq!(place("file"), Place::Here("file"));
        assert_eq!(place("-"), Place::Stream);
    }

    #[test]
    fn a_new_name_is_split_from_its_folder() {
        assert_eq!(split("/etc/x"), Some(("/etc", "x")));
        assert_eq!(split("/x"), Some(("/", "x")));
        assert_eq!(split("/etc/"), None);
        assert_eq!(split("/etc/.."), None);
    }
}
