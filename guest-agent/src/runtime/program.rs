//! From a process's arguments to `execve(2)`, in the container's root and as the container's user.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Process;
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file that the first argument names, by PATH unless it has a slash.
///
/// # Errors
/// [`Kind::NotFound`], or [`Kind::Denied`] when what is there cannot be executed.
pub fn find(process: &Process) -> Result<PathBuf> {
    let name = process.args().as_ref().and_then(|args| args.first()).map_or("", String::as_str);
    if name.is_empty() {
        return Err(Error::invalid("no program given"));
    }
    if name.contains('/') {
        let path = PathBuf::from(name);
        return executable(&path).map(|()| path).map_err(|errno| failed(name, errno));
    }
    let mut denied = None;
    for folder in
        variable(process, "PATH").unwrap_or(DEFAULT_PATH).split(':').filter(|folder| !folder.is_empty())
    {
        let path = Path::new(folder).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => denied = Some(errno),
        }
    }
    Err(denied.map_or_else(
        || Error::new(Kind::NotFound, format!("exec {name:?}: executable file not found in $PATH")),
        |errno| failed(name, errno),
    ))
}

/// Becomes the program; returns only with the reason why it did not.
pub fn execute(process: &Process) -> Error {
    let path = match find(process) {
        Ok(path) => path,
        Err(error) => return error,
    };
    let strings = |list: &Option<Vec<String>>| -> std::result::Result<Vec<CString>, Error> {
        let list = list.as_deref().unwrap_or_default().iter();
        list.map(|text| CString::new(text.as_str()))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::invalid("a NUL byte in the arguments or the environment"))
    };
    let prepared = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid("a NUL byte in the program's name"))
        .and_then(|file| Ok((file, strings(process.args())?, strings(process.env())?)));
    let (file, args, env) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    // SAFETY: this process has one thread; the standard library's start-up ignores SIGPIPE, which programs do not
    // expect to inherit. The arrays end in null and outlive the call.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(file.as_ptr(), argv.as_ptr(), envp.as_ptr());
    }
    let errno = std::io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error);
    failed(&path.to_string_lossy(), errno)
}

/// The value of a variable in the process's environment.
pub fn variable<'a>(process: &'a Process, name: &str) -> Option<&'a str> {
    let env = process.env().as_deref().unwrap_or_default();
    env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn executable(path: &Path) -> rustix::io::Result<()> {
    let stat = stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::ACCESS),
    }
}

fn failed(name: &str, errno: Errno) -> Error {
    let kind = match errno {
        Errno::NOENT | Errno::NOTDIR => Kind::NotFound,
        Errno::TOOBIG => Kind::Invalid,
        Errno::NOMEM => Kind::Exhausted,
        _ => Kind::Denied,
    };
    Error::new(kind, format!("exec {name:?}: {errno}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::ProcessBuilder;
    use std::os::unix::fs::PermissionsExt;

    fn process(program: &str, env: &[&str]) -> Process {
        let env: Vec<String> = env.iter().map(ToString::to_string).collect();
        ProcessBuilder::default().args(vec![program.to_owned()]).env(env).build().unwrap()
    }

    #[test]
    fn programs_are_found_by_path_and_told_apart_from_what_cannot_run() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("tool"), "").unwrap();
        std::fs::write(at("text"), "").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::set_permissions(at("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(at("text"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let path = format!("PATH=:/nonexistent:{}", folder.path().display());
        let find = |name: &str| find(&process(name, &["A=b", &path]));
        assert_eq!(find("tool").unwrap(), at("tool"));
        assert_eq!(find(at("tool").to_str().unwrap()).unwrap(), at("tool"));
        assert_eq!(find("missing").unwrap_err().kind, Kind::NotFound);
        assert_eq!(find("/missing/x").unwrap_err().kind, Kind::NotFound);
        assert_eq!(find("text").unwrap_err().kind, Kind::Denied);
        assert_eq!(find("folder").unwrap_err().kind, Kind::Denied);
        assert_eq!(find(folder.path().to_str().unwrap()).unwrap_err().kind, Kind::Denied);
        assert_eq!(find("").unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn what_the_kernel_refuses_is_told_apart_from_what_is_missing() {
        // `execute` itself changes how the whole process handles SIGPIPE: the VM tests exercise it.
        for (errno, kind) in [
            (Errno::NOENT, Kind::NotFound),
            (Errno::NOEXEC, Kind::Denied),
            (Errno::ACCESS, Kind::Denied),
            (Errno::TOOBIG, Kind::Invalid),
        ] {
            assert_eq!(failed("x", errno).kind, kind, "{errno}");
        }
    }
}
