//! What programs write when they try a network that is not there.

/// Of names that no server answers for. Words that also tell of something else are as long as it takes: package managers "could
/// not resolve" dependencies, and EFAULT is a "bad address".
const NAMES: [&str; 15] = [
    "temporary failure in name resolution",
    "temporary failure resolving",
    "could not resolve host",
    "couldn't resolve host",
    "unable to resolve host",
    "name or service not known",
    "no such host",
    "bad address '",
    "getaddrinfo eai_again",
    "getaddrinfo enotfound",
    "unknownhostexception",
    "dns lookup error",
    "dns: transient error",
    "dns failure",
    "temporary error (try again later)",
];

/// Of addresses that no route leads to.
const ROUTES: [&str; 3] = ["network is unreachable", "network unreachable", "enetunreach"];

/// curl's words for both, of a host that it names between these.
const CONNECT: (&str, &str) = ("failed to connect to ", " port ");

/// A step's own machine, which is there without any network.
const LOOPBACK: [&str; 4] = ["localhost", "127.", "[::1]", "::1"];

/// How many lines may follow a program's complaint before it counts for nothing: what ends a step is told at its end.
const NEAR: usize = 10;

/// A shell found no program, or none that can be executed.
const NO_PROGRAM: [u32; 2] = [126, 127];

/// Whether a line says that a program tried the network.
pub(crate) fn tried(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let any = |list: &[&str]| list.iter().any(|words| line.contains(words));
    let refused = || {
        let (_, rest) = line.split_once(CONNECT.0)?;
        let (host, rest) = rest.split_once(CONNECT.1)?;
        let local = LOOPBACK.iter().any(|name| host.starts_with(name));
        Some(!local && rest.contains("couldn't connect to server"))
    };
    any(&NAMES) || any(&ROUTES) || refused().unwrap_or(false)
}

/// Whether a step that wrote these lines last, and ended with this code, failed for want of a network. A step that went on
/// and was stopped by a compiler did not.
pub(crate) fn stopped(tail: &[String], exit_code: Option<u32>) -> bool {
    let from = tail.len().saturating_sub(NEAR);
    let Some(at) = tail[from..].iter().rposition(|line| tried(line)) else { return false };
    let compiler = |line: &String| line.contains(": error: ") || line.contains(": fatal error: ");
    !exit_code.is_some_and(|code| NO_PROGRAM.contains(&code)) && !tail[from + at + 1..].iter().any(compiler)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_miss_a_network_are_understood() {
        for line in [
            "curl: (6) Could not resolve host: a.example",
            "curl: (7) Failed to connect to 192.0.2.1 port 443 after 2 ms: Couldn't connect to server",
            "wget: bad address 'a.example'",
            "wget: unable to resolve host address ‘a.example’",
            "wget: can't connect to remote host (192.0.2.1): Network is unreachable",
            "W: Failed to fetch http://a.example/InRelease  Temporary failure resolving 'a.example'",
            "ERROR: fetching https://a.example/APKINDEX.tar.gz: temporary error (try again later)",
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(': Failed to establish a \
             new connection: [Errno -3] Temporary failure in name resolution')': /simple/flask/",
            "npm error request to https://a.example/express failed, reason: getaddrinfo EAI_AGAIN a.example",
            "go: github.com/a/b@v1: Get \"https://a.example\": dial tcp: lookup a.example: no such host",
            "dial udp 0.0.0.0:53: connect: network is unreachable",
            "Caused by: java.net.UnknownHostException: a.example",
            "  [6] Couldn't resolve host name (Could not resolve host: index.a.example)",
        ] {
            assert!(tried(line), "{line}");
        }
    }

    #[test]
    fn other_trouble_is_not_the_network_s() {
        for line in [
            "npm error Could not resolve dependency:",
            "Could not resolve './app' from src/main.js",
            "> Could not resolve all files for configuration ':compileClasspath'.",
            "write: Bad address",
            "curl: (7) Failed to connect to localhost port 8080 after 0 ms: Couldn't connect to server",
            "curl: (7) Failed to connect to 127.0.0.1 port 80 after 0 ms: Couldn't connect to server",
            "psql: error: connection to server on socket failed: Connection refused",
            "ls: a: No such file or directory",
        ] {
            assert!(!tried(line), "{line}");
        }
    }

    #[test]
    fn only_what_a_step_ended_with_counts() {
        let tail = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let curl = "curl: (6) Could not resolve host: a.example";
        assert!(stopped(&tail(&[curl]), Some(6)));
        let apt =
            ["W: Failed to fetch x  Temporary failure resolving 'x'", "E: Unable to locate package git"];
        assert!(stopped(&tail(&apt), Some(100)));
        assert!(!stopped(&tail(&[curl, "a.c:1:2: error: expected ';'", "make: *** [a] Error 1"]), Some(2)));
        assert!(!stopped(&tail(&[curl, "sh: make: not found"]), Some(127)));
        let mut long = tail(&[curl]);
        long.extend((0..NEAR).map(|number| format!("test {number} ok")));
        assert!(!stopped(&long, Some(1)));
        assert!(!stopped(&[], Some(1)));
    }
}
